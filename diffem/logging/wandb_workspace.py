"""The W&B workspace of a project of runs: its sections and panels, each with its own axis."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffem.logging.calibration import COLUMNS

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "diffem"  # of the view
CALIBRATION = (  # titles and names of numbers of a calibration
    ("p of all", "calibration/p/all"),
    ("p of ranks", "calibration/p/ranks"),
    ("p of TARP", "calibration/p/tarp"),
    ("pixels in central 50 %", "calibration/coverage/50/value"),
    ("pixels in central 90 %", "calibration/coverage/90/value"),
    ("recalibration factor", "calibration/factor/value"),
    ("p of the prior's measurements", "calibration/measurement_test/p"),
)
LINES = "wandb/lineseries/v0"  # W&B's own preset of a chart of lines


def make_workspace(entity: str, project: str, scores: Sequence[tuple[str, str]]) -> "Workspace":
    """Returns the workspace of a project, which is not saved.

    Arguments:
        entity: The W&B user or team.
        project: The W&B project.
        scores: The title and the name of each score, as in ("PSNR", "psnr"). Of a run that does
            not have one the panel is empty.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about the package
        from wandb_workspaces.reports.v2 import (
            CustomChart,
            LinePlot,
            MediaBrowser,
            RunComparer,
            ScalarChart,
            WeavePanelSummaryTable,
        )
        from wandb_workspaces.workspaces import Section, Workspace

    def over(axis: str, label: str) -> list[Any]:
        return [
            LinePlot(title=title, x=axis, y=[f"round/{name}"], title_x=label)
            for title, name in scores
        ]

    def loss(stage: str) -> LinePlot:
        return LinePlot(title="loss", x="step", y=[f"{stage}/loss"], title_x="optimiser steps")

    def chart(table: str) -> CustomChart:
        line, x, y = COLUMNS[table]
        return CustomChart(
            query={"summaryTable": {"tableKey": table}},
            chart_name=LINES,
            chart_fields={"step": x, "lineKey": line, "lineVal": y},
            chart_strings={"title": f"{y} ({table.replace('_', ' ')})", "xname": x},
        )

    final: list[Any] = [ScalarChart(title=title, metric=f"final/{name}") for title, name in scores]
    calibration: list[Any] = [ScalarChart(title=title, metric=name) for title, name in CALIBRATION]
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
            Section(
                name="Calibration",
                panels=[
                    *(chart(table) for table in COLUMNS),
                    *calibration,
                    MediaBrowser(media_keys=["calibration/figure"], num_columns=1),
                ],
            ),
        ],
    )
