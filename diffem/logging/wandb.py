"""Logs to Weights & Biases without ever stopping or delaying a run."""

import atexit
import json
import os
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from requests.utils import get_netrc_auth

from diffem.logging.upload import Upload
from diffem.logging.wandb_result import (
    alert_of_collapse,
    alert_of_failure,
    log_artifacts,
    log_result,
)
from diffem.runtime.progress import say

# The x-axes of the metrics: a resumed run repeats steps, which W&B's own counter does not allow.
COUNTERS = (("round", "round/*"), ("step", "m_step/*"), ("step", "prior/*"))

DATA_DIR = "WANDB_DATA_DIR"
PANEL = "measurement, sample, mean, std of the samples, truth where it is known"


class WandbLogger(Logger):
    """Copies the lines of metrics.jsonl to W&B.

    The W&B run is written offline to `save_dir`, so that training waits for no server. With an
    account, `Upload` uploads it at the same time; `wandb sync` uploads later what is missing at
    the end. A resumed run continues its W&B run and logs all lines again, line n as step n: W&B
    drops the steps that it has. An error of W&B ends the logging to W&B, not the run.

    The W&B run is in the group DATASET-CORRUPTION, and its job type is the method, where the
    configuration names them as its `choices`.

    Arguments:
        project: The W&B project.
        save_dir: The run directory, for W&B's own files.
        name: The run's name in W&B.
        metrics: The file that a JSONLLogger writes.
        panels: The folder of the rounds' images.
        artifacts: Whether a finished run's weights, and the reconstructions of its last round,
            are kept as artifacts, which copies them.
    """

    def __init__(
        self,
        project: str,
        save_dir: str,
        name: str,
        metrics: str,
        panels: str,
        artifacts: bool = False,
    ) -> None:
        super().__init__()
        self.artifacts = artifacts
        self.project, self.folder, self.run_name = project, Path(save_dir), name
        self.metrics, self.panels = Path(metrics), Path(panels)
        self.run: wandb.Run | None = None
        self.upload: Upload | None = None
        self._bytes = self._lines = 0  # of the file of metrics, logged so far
        self._repeated = False  # whether an earlier process has logged the lines to come
        self._collapsed = False

    @property
    def name(self) -> str:
        """The W&B project."""
        return self.project

    @property
    def version(self) -> str | None:
        """The identifier of the W&B run; None before it is opened."""
        return None if self.run is None else self.run.id

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *_: object, **__: object
    ) -> None:
        """Opens the W&B run with a configuration."""
        with self._errors_contained():
            self._open(params if isinstance(params, dict) else vars(params))
            atexit.register(self.close)  # also of a run that fails

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the lines of the file that are new."""
        with self._errors_contained():
            self._log_new_lines()

    @rank_zero_only
    def close(self) -> None:
        """Adds what the run has come to, and ends the W&B run and its upload in 10 seconds."""
        run, upload = self.run, self.upload
        if run is None:
            return
        failed = False
        with self._errors_contained(), _data_in(self.folder / "wandb"):
            self._log_new_lines()
            log_result(run, self.folder)
            failed = alert_of_failure(run, self.folder)
            if self.artifacts and (self.folder / "summary.json").is_file():
                log_artifacts(run, self.folder)
        with self._errors_contained():
            run.finish(exit_code=1 if failed else 0)
        self.run = self.upload = None
        uploaded = upload is not None and upload.close()
        if not uploaded and not run.disabled:
            why = "is kept offline" if upload is None else "could not be uploaded completely"
            folder = Path(run.dir).parent
            line = f"W&B: the run {why}; later: wandb sync {shlex.quote(str(folder))}"
            say(line)

    def _open(self, config: dict[str, Any]) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # else it waits for the server, offline too
        given = wandb.setup().settings
        earlier = sorted(self.folder.glob("wandb/offline-run-*"))
        self._repeated = bool(earlier)
        choices = config.get("choices") or {}
        names = [choices[key] for key in ("dataset", "corruption") if key in choices]
        self.run = wandb.init(
            project=self.project,
            group="-".join(names) or None,
            job_type=choices.get("method"),
            dir=self.folder,
            name=self.run_name,
            id=earlier[0].name.rpartition("-")[2] if earlier else None,
            config=config,
            mode="disabled" if given.mode == "disabled" else "offline",
            reinit="create_new",
            # Neither the output nor the code, which may hold secrets.
            settings=wandb.Settings(
                console="off", save_code=False, disable_code=True, silent=True, x_service_wait=8
            ),
        )
        for counter, pattern in COUNTERS:
            self.run.define_metric(counter)
            self.run.define_metric(pattern, step_metric=counter)
        account = given.api_key or given.identity_token_file or get_netrc_auth(given.base_url)
        if account and given.mode in ("online", "run", "shared"):
            self.upload = Upload(Path(self.run.dir).parent)

    def _log_new_lines(self) -> None:
        if self.run is None or not self.metrics.is_file():
            return
        with self.metrics.open("rb") as file:
            if self.metrics.stat().st_size < self._bytes:  # a resumed run has removed lines
                self._bytes = file.read().rstrip(b"\n").rfind(b"\n") + 1
            file.seek(self._bytes)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        for number, line in enumerate(new.splitlines(), start=self._lines):
            with suppress(ValueError, RecursionError):  # cut off by a kill, or damaged
                self.run.log(self._row(json.loads(line)), step=number, commit=True)
        self._lines += new.count(b"\n")
        self._bytes += len(new)
        self._repeated = False

    def _row(self, line: dict[str, Any]) -> dict[str, Any]:
        """Returns a line with its round's panel; the first round that collapsed is an alert."""
        if "round" not in line:
            return line
        k = int(line["round"])
        if self.run is not None and not self._collapsed:
            self._collapsed = alert_of_collapse(self.run, self.folder, k, sent=self._repeated)
        panel = self.panels / f"round_{k:03d}.png"
        if not panel.is_file():
            return line
        return {**line, "round/panel": wandb.Image(str(panel), caption=f"round {k}: {PANEL}")}

    @contextmanager
    def _errors_contained(self) -> Iterator[None]:
        """Opens a scope in which an error ends the logging to W&B, and nothing else."""
        try:
            yield
        except Exception as error:  # whatever W&B raises, training continues
            self.run = None
            text = " ".join(str(error).split())
            say(f"W&B: logging to it has ended ({text}); all metrics are in {self.metrics}")


@contextmanager
def _data_in(folder: Path) -> Iterator[None]:
    """Opens a scope in which W&B keeps the files of tables and artifacts in a folder.

    Otherwise they are in the user's home, for `wandb sync` to find on this machine alone.
    """
    before = os.environ.get(DATA_DIR)
    os.environ[DATA_DIR] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(DATA_DIR)
        if before is not None:
            os.environ[DATA_DIR] = before
