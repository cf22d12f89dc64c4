"""Logs each round to every logger of a run, and closes the loggers at the run's end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from diffem.storage.atomic import read_json


def log_round(
    loggers: Sequence[Logger], metrics: Mapping[str, float | None], panel: Path, *, step: int
) -> None:
    """Logs a round's metrics and its panel of images to every logger.

    Arguments:
        loggers: The loggers.
        metrics: The round's number, as `round`, and its metrics; a None is left out.
        panel: The image file.
        step: The number of optimiser steps so far.
    """
    k = metrics["round"]
    assert k is not None
    values = {f"round/{m}": v for m, v in metrics.items() if v is not None and m != "round"}
    for logger in loggers:
        logger.log_metrics({"round": float(k), **values}, step=step)
        if isinstance(logger, TensorBoardLogger):
            image = np.asarray(Image.open(panel).convert("RGB"))
            logger.experiment.add_image("round/panel", image, int(k), dataformats="HWC")


def log_final(loggers: Sequence[Logger], run_dir: Path) -> None:
    """Logs a finished run's held-out scores and its figures to TensorBoard.

    W&B's logger reads them itself, when it is closed.

    Arguments:
        loggers: The loggers.
        run_dir: The run directory.
    """
    final = (read_json(run_dir / "summary.json") or {}).get("final") or {}
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        logger.log_metrics(numbers(final, "final"), step=0)
        for name in ("heldout", "prior"):
            if (file := run_dir / "figures" / f"{name}.png").is_file():
                image = np.asarray(Image.open(file).convert("RGB"))
                logger.experiment.add_image(f"final/{name}_panel", image, 0, dataformats="HWC")


def numbers(values: Mapping[str, Any], name: str) -> dict[str, float]:
    """Returns {full name: number} of nested scores; what is no number is left out.

    Arguments:
        values: The scores.
        name: What stands before their names, as in "final/psnr".
    """
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{name}/{key}")
        elif isinstance(value, int | float):
            found[f"{name}/{key}"] = value
    return found


def close(loggers: Sequence[Logger]) -> None:
    """Closes the loggers that stay open over the fits of a run."""
    for logger in loggers:
        if callable(end := getattr(logger, "close", None)):
            end()
