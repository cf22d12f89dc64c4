"""The W&B workspace of a project of runs: its sections and panels, each with its own axis."""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "diffem"  # of the view
SCORES = (  # over rounds and over NFE; of a run that does not have one, the panel is empty
    ("measurement energy distance", "final/measurement_energy_distance"),
    ("residual χ²", "round/residual_chi2"),
    ("hidden entries", "round/hidden_entries"),
    ("PSNR", "round/psnr"),
    ("PSNR of the mean of samples", "round/psnr_mean"),
    ("SSIM", "round/ssim"),
    ("posterior std", "round/posterior_std"),
    ("diversity", "round/diversity"),
    ("effective rank", "round/effective_rank"),
)


def make_workspace(entity: str, project: str) -> "Workspace":
    """Returns the workspace of a project, which is not saved.

    Arguments:
        entity: The W&B user or team.
        project: The W&B project.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about the package
        from wandb_workspaces.reports.v2 import (
            LinePlot,
            MediaBrowser,
            RunComparer,
            ScalarChart,
            WeavePanelSummaryTable,
        )
        from wandb_workspaces.workspaces import Section, Workspace

    def over(axis: str, label: str) -> list[Any]:
        return [
            LinePlot(title=title, x=axis, y=[name], title_x=label)
            for title, name in SCORES
            if name.startswith("round/")
        ]

    def loss(stage: str) -> LinePlot:
        return LinePlot(title="loss", x="step", y=[f"{stage}/loss"], title_x="optimiser steps")

    final: list[Any] = [
        ScalarChart(title=title, metric=f"final/{name.partition('/')[2]}")
        for title, name in SCORES
    ]
    return Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            Section(
                name="Reconstructions",
                panels=[
                    MediaBrowser(media_keys=["round/panel"], num_columns=1),
                    MediaBrowser(media_keys=["final/heldout_panel"], num_columns=1),
                    WeavePanelSummaryTable(table_name="samples"),
                ],
                is_open=True,
            ),
            Section(name="Scores over rounds", panels=over("round", "round"), is_open=True),
            Section(name="Scores over NFE", panels=over("round/nfe", "NFE")),
            Section(name="M-step", panels=[loss("m_step")], is_open=True),
            Section(
                name="Prior",
                panels=[loss("prior"), MediaBrowser(media_keys=["final/prior_panel"])],
            ),
            Section(
                name="Held-out scores",
                panels=[*final, WeavePanelSummaryTable(table_name="rounds"), RunComparer()],
            ),
        ],
    )
