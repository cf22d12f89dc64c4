"""Lays out the W&B workspace of a project of runs: `diffem dashboard ENTITY/PROJECT`.

    diffem dashboard me/diffem
    diffem dashboard me/diffem --out workspace.json

The workspace is saved in W&B, as a view of its own, and needs an account; with --out its
specification is written into a file, and nothing is sent.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffem.cli.arguments import parse_dashboard
from diffem.cli.compose import compose
from diffem.cli.errors import report_user_errors
from diffem.config.build import build
from diffem.config.extras import WANDB, WORKSPACES
from diffem.metric import Evaluation
from diffem.metric.distribution import FRECHET_PIXELS
from diffem.runtime.errors import UserError, usable
from diffem.runtime.extras import check_installed
from diffem.runtime.progress import plain_console
from diffem.storage.atomic import write_text

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def main(arguments: Sequence[str] | None = None) -> None:
    """Saves the workspace, or writes its specification.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_dashboard(arguments)
    with report_user_errors():
        for needed in (WANDB, WORKSPACES):
            check_installed("diffem dashboard", needed)
        from diffem.logging.wandb_workspace import make_workspace

        entity, project = split_project(chosen.project)
        workspace = make_workspace(entity, project, shown_scores())
        if chosen.out is None:
            plain_console().print(f"saved {save(workspace)}", soft_wrap=True)
        else:
            write_specification(workspace, chosen.out)
            plain_console().print(f"wrote {chosen.out}", soft_wrap=True)


def shown_scores() -> list[tuple[str, str]]:
    """Returns the titles and names of the scores that rounds may have: first without truth."""
    evaluation: Evaluation = build(compose([]).metric, "metric")
    first = evaluation.truth_free
    others = [s for s in evaluation.scores if s not in (*first, FRECHET_PIXELS)]
    return [(score.title, score.name) for score in (*first, *others)]


def split_project(given: str) -> tuple[str, str]:
    """Returns the entity and the project of ENTITY/PROJECT.

    Raises:
        UserError: If the text is not of this form.
    """
    entity, _, project = given.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(
            f"{given!r} is no W&B project; give ENTITY/PROJECT, as in me/diffem, where ENTITY is "
            "a user or a team"
        )
    return entity, project


def write_specification(workspace: "Workspace", path: Path) -> None:
    """Writes what W&B would be sent as JSON.

    Arguments:
        workspace: The workspace.
        path: A file that does not exist.

    Raises:
        UserError: If it exists or cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists; choose another --out")
    content = workspace._to_model().model_dump_json(by_alias=True, indent=1)
    with usable("--out", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)


def save(workspace: "Workspace") -> str:
    """Saves a workspace in W&B and returns its address.

    Raises:
        UserError: If there is no account here, or W&B refuses or does not answer.
    """
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    account = settings.api_key or settings.identity_token_file
    if not account and not get_netrc_auth(settings.base_url):
        raise UserError(
            "no W&B account is known on this machine; run wandb login, or write the workspace "
            "into a file by --out workspace.json"
        )
    try:
        return workspace.save().url
    except Exception as error:  # of W&B's client, of the connection, of the server
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"W&B did not save the workspace of {workspace.entity}/{workspace.project} ({text}); "
            "a project exists once a run of it was uploaded: check its name and the connection"
        ) from error
