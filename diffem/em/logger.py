"""Loggers: a file of JSON lines that is always written, and W&B that never stops a run."""

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image


class JSONLLogger(Logger):
    """Appends one JSON object for each call, on the first process.

    Arguments:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The kind of logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """The file."""
        return str(self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends the metrics as a line."""
        line = {k: v for k, v in metrics.items() if k != "epoch"}
        if "round" not in line:
            line = {"step": step, **line}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *_: object, **__: object
    ) -> None:
        """Does nothing: the configuration is in the run's .hydra folder."""


class RoundWandbLogger(WandbLogger):
    """W&B with the rounds' metrics against `round` and the steps' against `step`.

    Without an account (no API key, no WANDB_MODE) the run is kept offline in `save_dir`, from
    where `wandb sync` uploads it.

    Arguments:
        project: The W&B project.
        save_dir: The folder of W&B's own files.
        name: The run's name.
    """

    def __init__(self, project: str, save_dir: str, name: str) -> None:
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False):
            mode = "offline"
        super().__init__(project=project, save_dir=save_dir, name=name, mode=mode)
        self._define()

    @rank_zero_only
    def _define(self) -> None:
        for counter, pattern in (("round", "round/*"), ("step", "m_step/*"), ("step", "prior/*")):
            self.experiment.define_metric(counter)
            self.experiment.define_metric(pattern, step_metric=counter)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics with the optimiser step as `step`."""
        super().log_metrics({**metrics, **({} if step is None else {"step": step})}, step)


def log_round(trainer: Trainer, k: int, metrics: dict[str, float | None], panel: Path) -> None:
    """Logs a round's metrics and its panel of images to every logger.

    Arguments:
        trainer: The trainer, whose loggers are used.
        k: The round.
        metrics: The round's metrics; None is left out.
        panel: The image file.
    """
    values = {f"round/{name}": value for name, value in metrics.items() if value is not None}
    for logger in trainer.loggers:
        if isinstance(logger, RoundWandbLogger):
            image = wandb.Image(str(panel))
            logger.experiment.log({"round": k, **values, "round/panel": image})
            continue
        logger.log_metrics({"round": float(k), **values}, step=trainer.global_step)
        if isinstance(logger, TensorBoardLogger):
            image = np.asarray(Image.open(panel).convert("RGB"))
            logger.experiment.add_image("round/panel", image, k, dataformats="HWC")
