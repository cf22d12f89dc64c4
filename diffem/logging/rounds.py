"""Logs each round to every logger of a run, and closes the loggers at the run's end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image


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


def close(loggers: Sequence[Logger]) -> None:
    """Closes the loggers that stay open over the fits of a run."""
    for logger in loggers:
        if callable(end := getattr(logger, "close", None)):
            end()
