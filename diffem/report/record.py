"""What a run directory holds of a run, finished or not: all that its page is made of."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeGuard

from diffem.metric import Score, read_scores
from diffem.metric.score import is_description
from diffem.runtime.ranges import LARGEST_COUNT
from diffem.storage.atomic import read_json
from diffem.storage.numbered import newest
from diffem.storage.run_dir import read_settings
from diffem.storage.status import RunStatus, read_status
from diffem.storage.strict_json import from_json

TAIL = 4096  # bytes of a log that hold its last line
STAGES = {"m_step": "the M-steps", "prior": "the prior's fit"}


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds of a run.

    Attributes:
        run_dir: The run directory.
        status: Where the run is.
        summary: The content of `summary.json`; while there is none that of `rounds.json`, which
            has no `final`.
        config: The composed configuration, in plain types, without secrets.
        overrides: The overrides that it was started with.
        calibration_file: The file of its newest calibration; None if there is none.
        calibration: The content of that file; empty if there is none.
        last_step: What the last line of its log is of, as in "step 119 of the prior".
        damaged: Whether there is a `summary.json` that cannot be read as one.
    """

    run_dir: Path
    status: RunStatus
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: list[str]
    calibration_file: Path | None
    calibration: Mapping[str, Any]
    last_step: str | None
    damaged: bool

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """The rows of the rounds."""
        return self.summary.get("rounds") or []

    @property
    def final(self) -> Mapping[str, Any]:
        """The held-out scores; empty while there are none."""
        return self.summary.get("final") or {}

    @property
    def finished(self) -> dict[str, Any] | None:
        """The summary; None while there are no held-out scores."""
        return dict(self.summary) if self.final else None

    @property
    def planned(self) -> int | None:
        """The number of rounds that the run was given; a budget may end it before."""
        em = self.config.get("em")
        rounds = em.get("rounds") if isinstance(em, Mapping) else None
        return rounds if isinstance(rounds, int) else None

    @property
    def scores(self) -> list[Score]:
        """The scores that the run describes."""
        return read_scores([self.summary])


def read_record(run_dir: Path, status: RunStatus | None = None) -> RunRecord:
    """Returns what a run directory holds.

    Arguments:
        run_dir: A run directory; what is missing or damaged in it is left out.
        status: Where the run is, if its own process asks.
    """
    file = run_dir / "summary.json"
    summary = read_json(file) or {}
    damaged = file.is_file() and not (is_sound(summary) and is_finished(summary))
    if damaged or not summary:
        summary = read_json(run_dir / "rounds.json") or {}
    if not is_sound(summary):
        summary = {}
    if not are_rows(summary.get("rounds")):
        summary = {**summary, "rounds": logged_rounds(run_dir / "metrics.jsonl")}
    calibration = newest(run_dir, "calibration")
    config, overrides = _settings(run_dir, _modified(run_dir / ".hydra" / "config.yaml"))
    return RunRecord(
        run_dir,
        read_status(run_dir) if status is None else status,
        summary,
        config,
        overrides,
        calibration,
        (read_json(calibration) if calibration else None) or {},
        _last_step(run_dir / "metrics.jsonl"),
        damaged,
    )


@functools.lru_cache(maxsize=8)
def _settings(run_dir: Path, modified: int) -> tuple[dict[str, Any], list[str]]:
    """Returns the settings; a run does not change them, and its page is written after a round."""
    return read_settings(run_dir)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


class LoggedStep(NamedTuple):
    """The last optimiser step in a metrics.jsonl."""

    stage: str
    """`m_step` or `prior`."""
    step: int
    """The number of optimiser steps so far, of all M-steps or of the prior's fit."""
    loss: float | None
    """Its loss."""


def last_logged(log: Path) -> LoggedStep | None:
    """Returns what the last line of metrics.jsonl is of; None if it is of a round, or damaged.

    Arguments:
        log: The file, which may be missing.
    """
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    try:
        line = from_json(lines[-1]) if lines else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(step := line.get("step"), int):
        return None
    stage = next((s for key in line if (s := key.partition("/")[0]) in STAGES), None)
    if stage is None:
        return None
    loss = line.get(f"{stage}/loss")
    return LoggedStep(stage, step + 1, float(loss) if isinstance(loss, int | float) else None)


def _last_step(log: Path) -> str | None:
    """Returns what the last line of metrics.jsonl is of, as text."""
    last = last_logged(log)
    return None if last is None else f"optimiser step {last.step} of {STAGES[last.stage]}"


def logged_rounds(log: Path) -> list[dict[str, Any]]:
    """Returns the rows of the rounds that a metrics.jsonl holds, as rounds.json has them.

    What is no number of a round, and lines that are damaged, are left out.

    Arguments:
        log: The file, which may be missing.
    """
    rows: dict[int, dict[str, Any]] = {}
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    for line in text.splitlines():
        try:
            held = from_json(line)
        except (ValueError, RecursionError):
            continue
        k = held.pop("round", None) if isinstance(held, dict) else None
        if isinstance(k, int | float) and math.isfinite(k):
            scores = {
                name.removeprefix("round/"): value
                for name, value in held.items()
                if isinstance(value, int | float | None)
            }
            rows[int(k)] = {"round": int(k), **scores}
    found = [rows[k] for k in sorted(rows)]
    return found if are_rows(found) else []


def round_seconds(row: Mapping[str, Any]) -> float:
    """Returns the seconds of the E- and the M-step of a round's row."""
    return row["e_step_seconds"] + row["m_step_seconds"]


TYPES: dict[str, type | UnionType] = {
    "dataset": str,
    "corruption": str,
    "method": str,
    "init": str,
    "clean_images": bool,
    "seed": int,
    "truth": dict | None,
    "unmeasured": list | None,
    "wall_seconds": int | float,
    "samples": int | float | None,
    "best": dict | None,
    "metrics": dict,
    "rounds": list,
    "final": dict,
}
"""The types of what pages and tables read in a summary."""
NUMBERS = (
    *("loss", "nfe", "optimizer_steps", "redrawn", "draws"),
    *("hidden_entries", "hidden_mse", "init_psnr_mean", "posterior_std"),
)
"""What rows hold besides scores, each a number or null."""


def is_finished(summary: Mapping[str, Any]) -> bool:
    """Returns whether a summary, of types that fit, has all that a finished run's has."""
    return {"final", "rounds", "seed", "wall_seconds"} <= summary.keys() and bool(
        summary["rounds"] and are_rows(summary["rounds"])
    )


def is_sound(summary: Mapping[str, Any]) -> bool:
    """Returns whether what a summary or a rounds.json holds is of the types that pages take."""
    if not all(isinstance(summary[key], kind) for key, kind in TYPES.items() if key in summary):
        return False
    described = summary.get("metrics", {})
    rows = [*summary.get("rounds", []), summary.get("final", {})]
    parts = [
        row.get(key) or {}
        for row in rows
        if isinstance(row, dict)
        for key in ("prior", "estimate")
    ]
    named = [
        row.get(key) or {}
        for row in rows
        if isinstance(row, dict)
        for key in ("estimate", "collapse")
    ]
    names = (*described, *NUMBERS)
    return (
        all(isinstance(name, str) for name in summary.get("unmeasured") or [])
        and all(is_description(fields) for fields in described.values())
        and all(
            isinstance(row, dict)
            and all(isinstance(row.get(name), int | float | None) for name in names)
            for row in [*rows, *parts]
        )
        and all(
            isinstance(held, dict) and all(isinstance(v, int | float) for v in held.values())
            for held in named
        )
    )


def are_rows(rounds: object) -> TypeGuard[list[dict[str, Any]]]:
    """Returns whether a value is rows of rounds, with the number and the costs of each."""
    keys = ("e_step_seconds", "m_step_seconds")
    return isinstance(rounds, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("round"), int)
        and 0 <= row["round"] <= LARGEST_COUNT
        and all(isinstance(row.get(key), int | float) for key in keys)
        for row in rounds
    )
