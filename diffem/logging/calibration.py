"""A calibration as loggers show it: numbers, and the lines of two charts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from diffem.logging.rounds import numbers
from diffem.storage.atomic import read_json
from diffem.storage.numbered import newest
from diffem.storage.rows import read_rows

NUMBERS = ("p", "coverage", "spread", "factor", "crps")
COLUMNS = {  # of the charts: the line, x and y
    "calibration_ranks": ("line", "rank", "density"),
    "calibration_coverage": ("line", "credibility", "coverage"),
}
EXPECTED = "expected"


class CalibrationCharts(NamedTuple):
    """What loggers show of a calibration.

    Attributes:
        name: The name of its file without the suffix, as in calibration_001.
        numbers: Its numbers by full name, as in "calibration/p/all"; those against the truth under
            "calibration/truth/".
        charts: The lines of each chart: the points (x, y) of each line, by its name.
    """

    name: str
    numbers: dict[str, float]
    charts: dict[str, dict[str, list[tuple[float, float]]]]

    def rows(self, chart: str) -> list[list[Any]]:
        """Returns a chart as rows of the columns `COLUMNS`."""
        return [[line, x, y] for line, points in self.charts[chart].items() for x, y in points]


def read_charts(run_dir: Path) -> CalibrationCharts | None:
    """Returns the charts of a run's newest calibration; None if it has none, or it is damaged.

    None also if it is of the result that the run had before it was given more rounds.

    Arguments:
        run_dir: The run directory.
    """
    file = newest(run_dir, "calibration")
    held = (read_json(file) if file else None) or {}
    if file is None or not isinstance(held.get("simulated"), dict):
        return None
    rows = read_rows(run_dir)
    if rows and rows[-1]["round"] != held.get("round"):
        return None
    sets = {"": held["simulated"]}
    if isinstance(held.get("truth"), dict):
        sets["truth: "] = held["truth"]
    try:
        ranks, coverage = {}, {}
        for name, each in sets.items():
            ranks |= {f"{name}{line}": points for line, points in _histograms(each)}
            tarp = each["tarp"]
            coverage[f"{name}TARP"] = list(zip(tarp["levels"], tarp["coverage"], strict=True))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None
    ranks[EXPECTED], coverage[EXPECTED] = [(0.0, 1.0), (1.0, 1.0)], [(0.0, 0.0), (1.0, 1.0)]
    found = numbers(_chosen(sets[""]), "calibration")
    if "truth: " in sets:
        found |= numbers(_chosen(sets["truth: "]), "calibration/truth")
    if isinstance(test := held.get("measurement_test"), dict):
        found |= numbers(test, "calibration/measurement_test")
    return CalibrationCharts(file.stem, found, dict(zip(COLUMNS, (ranks, coverage), strict=True)))


def log_calibration(loggers: Sequence[Logger], run_dir: Path) -> None:
    """Logs the newest calibration of a finished run to TensorBoard: its numbers, charts, figure.

    Each calibration has tags of its own, as in "calibration_001/ranks/pixels"; the steps of a
    chart are its x in percent. W&B's logger reads the calibration itself, when it is closed.

    Arguments:
        loggers: The loggers.
        run_dir: The run directory; nothing is logged if it holds no calibration.
    """
    if (calibration := read_charts(run_dir)) is None:
        return
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        own = {
            f"{calibration.name}/{key.partition('/')[2]}": value
            for key, value in calibration.numbers.items()
        }
        logger.log_metrics(own, step=0)
        for chart, lines in calibration.charts.items():
            for line, points in lines.items():
                tag = f"{calibration.name}/{chart.partition('_')[2]}/{line}"
                for x, y in points:
                    logger.log_metrics({tag: y}, step=round(100 * x))
        if (file := run_dir / "figures" / f"{calibration.name}.png").is_file():
            image = np.asarray(Image.open(file).convert("RGB"))
            logger.experiment.add_image(calibration.name, image, 0, dataformats="HWC")


def _chosen(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers of a calibration, without those of its charts."""
    return {name: calibration[name] for name in NUMBERS if name in calibration}


def _histograms(
    calibration: Mapping[str, Any],
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yields the density of the ranks of each quantity, at the middles of the bins."""
    for line, counts in calibration["histograms"].items():
        total, bins = sum(counts), len(counts)
        yield line, [((i + 0.5) / bins, count * bins / total) for i, count in enumerate(counts)]
