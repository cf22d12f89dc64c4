"""A file of JSON lines, which every run writes."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from diffem.storage.atomic import write_file


class JSONLLogger(Logger):
    """Appends one JSON object for each call, on the first process.

    A run that goes on from an earlier point logs steps and rounds again: the first line takes the
    place of what its phase had logged from there on.

    Arguments:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._at: dict[str, float] = {}  # the phases' counters, in this process

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
        """Appends the metrics as a line; what is not finite is null, as JSON has it."""
        line = {k: v if math.isfinite(v) else None for k, v in metrics.items() if k != "epoch"}
        if "round" not in line:
            line = {"step": step, **line}
        phase, counter = _phase(line), metrics.get("round", step or 0)
        if counter <= self._at.get(phase, counter):
            _make_room(self.path, line)
        self._at[phase] = counter
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *_: object, **__: object
    ) -> None:
        """Does nothing: the configuration is in the run's .hydra folder."""


def _make_room(path: Path, first: Mapping[str, Any]) -> None:
    """Removes a phase's lines from a counter on, and a last line that a kill has cut.

    Arguments:
        path: The file of lines.
        first: The line to come; its first key is the counter, "step" or "round".
    """
    text = path.read_text() if path.is_file() else ""
    counter, kept = next(iter(first)), []
    for held in text.splitlines(keepends=True):
        if not held.endswith("}\n"):
            continue
        line = json.loads(held)
        if _phase(line) != _phase(first) or line[counter] < first[counter]:
            kept.append(held)
    if (whole := "".join(kept)) != text:
        write_file(path, lambda file: file.write(whole.encode()))


def _phase(line: Mapping[str, Any]) -> str:
    """Returns what a line tells of: a round, or the phase that is trained."""
    return list(line)[-1].partition("/")[0]
