"""metrics.jsonl: a file of JSON lines, which every run writes."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from diffem.storage.atomic import write_text
from diffem.storage.strict_json import to_json


class JSONLLogger(Logger):
    """Appends one JSON object for each call, on the first process.

    A resumed run logs some steps and rounds again. The first such line of a stage (m_step, prior
    or round) replaces the stage's earlier lines from its step or round on.

    Arguments:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._counters: dict[str, float] = {}  # each stage's last step or round, in this process

    @property
    def name(self) -> str:
        """The name of this type of logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """The path of the file."""
        return str(self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends the metrics as a line; non-finite values are null, since JSON has no NaN."""
        line = {k: v for k, v in metrics.items() if k != "epoch"}
        if "round" not in line:
            line = {"step": step, **line}
        stage, counter = _line_stage(line), metrics.get("round", step or 0)
        if counter <= self._counters.get(stage, counter):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_repeated(self.path, line)
        self._counters[stage] = counter
        with self.path.open("a") as file:
            file.write(to_json(line) + "\n")

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *_: object, **__: object
    ) -> None:
        """Does nothing: the configuration is in the run's .hydra folder."""


def _remove_repeated(path: Path, first: Mapping[str, Any]) -> None:
    """Removes a stage's lines from a step or round on, and lines that are damaged.

    Arguments:
        path: The file of lines.
        first: The line to come; its first key is "step" or "round".
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    counter, kept = next(iter(first)), []
    for old in text.splitlines(keepends=True):
        line = _read_line(old)
        if line and (_line_stage(line) != _line_stage(first) or line[counter] < first[counter]):
            kept.append(old)
    if (content := "".join(kept)) != text:
        write_text(path, content)


def _read_line(text: str) -> dict[str, Any] | None:
    """Returns a line's object; None if a kill has cut it off, or it is damaged otherwise."""
    try:
        line = json.loads(text) if text.endswith("}\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not line:
        return None
    counter = line.get("round" if _line_stage(line) == "round" else "step")
    return line if isinstance(counter, int | float) else None


def _line_stage(line: Mapping[str, Any]) -> str:
    """Returns the stage that a line belongs to: "m_step", "prior" or "round"."""
    return list(line)[-1].partition("/")[0]
