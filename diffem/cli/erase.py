"""Withdraws measurements from a finished run: `diffem erase RUN --rows FILE --out NEW`.

    diffem erase runs/mine --rows rows.txt --out runs/without

NEW is a run like any other, whose measurements lack the rows. Its denoiser has unlearned them
(`diffem.em.erase`) and has drawn the reconstructions of the other measurements anew, since RUN's
were drawn by a denoiser that knew the rows; its prior and its student are trained on these alone.
No round and no checkpoint of RUN is in it. erased.json says what was erased, what it cost, and
what an audit found. RUN is left as it is, and must be deleted by the user; nothing here is a
certificate.
"""

import hashlib
import io
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any, TextIO, cast

import torch

from diffem.cli.arguments import parse_erase
from diffem.cli.erase_run import name_run, open_new_run, write_run
from diffem.cli.erase_source import Source, part
from diffem.cli.errors import report_user_errors
from diffem.cli.launch import quiet
from diffem.config.build import build
from diffem.data.format import new_folder
from diffem.data.measurements import MeasurementSet
from diffem.em.erase import Erasing, Rows
from diffem.em.objective import Objective, Recorrupted, Unconditional
from diffem.em.state import EMState
from diffem.posterior.posterior import DenoiserPosterior
from diffem.report.live_page import LivePage
from diffem.result.result import newest_round
from diffem.runtime.errors import UserError
from diffem.runtime.progress import plain_console
from diffem.runtime.ranges import check
from diffem.storage.atomic import write_text
from diffem.storage.lock import unlock_folder
from diffem.storage.run_dir import ERASED
from diffem.storage.status import RunStatus, State
from diffem.storage.strict_json import to_json

SHARE = 0.1  # of the run's optimiser steps: how many erasing takes
NO_CERTIFICATE = (
    "the audit finds what one test finds; it is no certificate that nothing of the rows is left"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Erases measurements and writes the new run.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_erase(arguments)
    with report_user_errors(), quiet():
        for key in ("steps", "eta", "lr"):  # before the run is read
            check(f"--{key}", getattr(chosen, key))
        source = Source.of(chosen.run, chosen.rows, device=chosen.device, trust=chosen.trust)
        if chosen.out.resolve().is_relative_to(chosen.run.resolve()):
            raise UserError(
                f"--out={chosen.out} is in {chosen.run}, which is to be deleted; give another "
                "folder"
            )
        shown = io.StringIO()  # said when the folder is there
        with new_folder(chosen.out, size=source.size) as folder:
            try:
                with named(folder, chosen.out, shown), finite_numbers(chosen.lr):
                    record = erase(source, folder, chosen)
            finally:
                unlock_folder(folder)
            name_run(folder, chosen.out.absolute())
        # The page that is there names the folder of before.
        LivePage(chosen.out).write(RunStatus(State.FINISHED))
        plain_console().print(shown.getvalue(), end="", soft_wrap=True)
        report(record, chosen)


class Renaming:
    """A stream of texts in which a name is replaced by another.

    Arguments:
        stream: Where the texts go.
        before: The name in them.
        after: The other name.
    """

    def __init__(self, stream: TextIO, before: str, after: str) -> None:
        self.stream, self.before, self.after = stream, before, after

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the stream
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes a text with the other name."""
        return self.stream.write(text.replace(self.before, self.after))


@contextmanager
def named(folder: Path, out: Path, shown: TextIO) -> Iterator[None]:
    """Opens a scope in which all that is said of the new run names the folder that it will have.

    In errors `new_folder` does so.

    Arguments:
        folder: The folder under its temporary name.
        out: The folder that it will be.
        shown: Where what would go to stdout is written.
    """
    names = str(folder), str(out)
    with (
        redirect_stdout(cast(TextIO, Renaming(shown, *names))),
        redirect_stderr(cast(TextIO, Renaming(sys.stderr, *names))),
    ):
        yield


@contextmanager
def finite_numbers(lr: float) -> Iterator[None]:
    """Opens a scope in which numbers that are not finite are a UserError that names --lr.

    The run's own advice is about its M-steps and its run directory.
    """
    try:
        yield
    except (FloatingPointError, UserError) as error:
        if not isinstance(error.__cause__ or error, FloatingPointError):
            raise
        raise UserError(
            f"--lr={lr:g} leads to numbers that are not finite; give a lower one"
        ) from error


def erase(source: Source, folder: Path, chosen: Namespace) -> dict[str, Any]:
    """Writes the new run into a folder, and returns what erased.json says.

    Arguments:
        source: The run.
        folder: The new run's directory, empty.
        chosen: The command's arguments.

    Raises:
        UserError: If the run's method cannot unlearn, or the run cannot do without the rows.
        FloatingPointError: If numbers are not finite.
    """
    cfg, result = source.cfg, source.result
    objective: Objective = build(cfg.method.objective, "method.objective")
    if not isinstance(objective, Recorrupted | Unconditional):
        raise UserError(
            f"method.objective={type(objective).__name__} learns from the measurements, not from "
            "reconstructions that could be erased; train again without the rows"
        )
    steps = chosen.steps or max(1, round(SHARE * source.optimizer_steps))
    erasing = Erasing(objective, build(cfg.m_step, "m_step"), steps, chosen.eta, chosen.lr)
    new, about = open_new_run(source, folder), source.about
    x = newest_round(about, source.path).__getitems__(range(about.size)).x
    stays = torch.ones(len(x), dtype=torch.bool)
    stays[source.rows] = False
    kept = Rows(x[stays], part(source.train, stays.nonzero().flatten()))
    posterior = result.posterior.posterior
    assert isinstance(posterior, DenoiserPosterior)
    old, denoiser = posterior.denoiser, deepcopy(posterior.denoiser)
    before = source.audit(erasing, old)
    checked = old.take_nfe()
    unseen = None
    if chosen.target == "heldout":
        unseen = source.drawn(old, source.target, "target")
    gone = part(source.train, source.rows)
    with result.posterior.sampling.context():
        path = erasing.run(
            denoiser,
            kept,
            lambda k: source.drawn(denoiser, gone, f"erased {k}"),
            unseen,
            batch_size=cfg.em.batch_size,
            seed=cfg.seed,
        )
    spent = denoiser.take_nfe() + old.take_nfe()
    after = source.audit(erasing, denoiser)
    state = EMState(about.round - 1, nfe=spent, optimizer_steps=steps)
    nfe = write_run(new, source, denoiser, kept.x, state)
    record = {
        "erased": [row_hash(gone, row) for row in range(len(source.rows))],
        "held_out": source.held_out,
        "target": chosen.target,
        "steps": steps, "eta": chosen.eta, "lr": chosen.lr,
        "evaluations": {
            "erasing": spent, "redrawing": nfe - spent, "of_the_run": source.nfe,
            "share": nfe / source.nfe,
            "audit": checked + denoiser.take_nfe(),
        },
        "lambda": path,
        "audit": {"before": before, "after": after},
        "not_a_certificate": NO_CERTIFICATE,
        "delete": str(source.path.absolute()),
    }  # fmt: skip
    write_text(folder / ERASED, to_json(record, indent=1) + "\n")
    return record


def row_hash(measurements: MeasurementSet, row: int) -> str:
    """Returns the sha256 of a measurement: of y, of its operator and of its noise."""
    digest = hashlib.sha256()
    for field in measurements.select(slice(row, row + 1)):
        digest.update(field.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def report(record: Mapping[str, Any], chosen: Namespace) -> None:
    """Prints what the audit found, what erasing cost, and what the user has to do next."""
    console, audit, spent = plain_console(), record["audit"], record["evaluations"]
    if record["held_out"]:
        console.print(
            f"held-out measurements among the withdrawn ones: {record['held_out']}; nothing was "
            f"learned from them, and {chosen.out} is not evaluated on them",
            soft_wrap=True,
        )
    for when in ("before", "after"):
        found = audit[when]
        side = "" if not found["leaks"] else (
            ": the network still knows them" if found["auc"] > 0.5
            else ": their loss is above that of unseen ones, which tells that they were erased"
        )  # fmt: skip
        console.print(
            f"audit {when}: AUC {found['auc']:.3f} ± {found['auc_error']:.3f} of the loss of "
            f"withdrawn against held-out measurements, 0.5 tells nothing{side}",
            soft_wrap=True,
        )
    console.print(
        f"network evaluations: {spent['erasing'] + spent['redrawing']:,}, "
        f"{spent['share']:.1%} of what {chosen.run} took",
        soft_wrap=True,
    )
    console.print(NO_CERTIFICATE, soft_wrap=True)
    console.print(
        f"delete {chosen.run}, and every copy, export and comparison of it: it still holds the "
        "rows",
        soft_wrap=True,
    )
    console.print(f"wrote {chosen.out}: {ERASED} says what was erased", soft_wrap=True)
