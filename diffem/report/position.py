"""Where a run is within its round, how fast it is, and how much time is left.

All of it is read from the run directory, by any process: the steps from metrics.jsonl, the chunks
of an E-step from the round's folder, the times from the rows of the rounds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffem.report.record import RunRecord, last_logged, round_seconds
from diffem.storage.run_dir import RECONSTRUCTIONS

LAST = 3  # rounds whose mean time is taken for that of the next ones

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a run is.

    Attributes:
        stage: What it is doing, as in "round 3 of 6, M-step".
        unit: What the stage's work is counted in: "steps", "chunks", or "" where it is not.
        done: How many of them are done.
        total: How many there are; None where that is not known.
        rate: How many were done in a second in the last round; None where that is not known.
        left: The seconds until the last round is committed, as the last rounds took, without
            their evaluation; None where that is not known.
        loss: The last loss that was logged in the stage; None if there is none.
    """

    stage: str
    unit: str
    done: int
    total: int | None = None
    rate: float | None = None
    left: float | None = None
    loss: float | None = None


def read_position(record: RunRecord) -> Position:
    """Returns where a run is.

    Arguments:
        record: What its directory holds.
    """
    rows = record.rounds
    k = int(rows[-1]["round"]) if rows else -1
    last = last_logged(record.run_dir / "metrics.jsonl")
    prior = last if last is not None and last.stage == "prior" else None
    if prior is not None or k == record.planned:
        total = _number(record.config.get("prior"), "steps")
        if prior is None and total is None:
            return Position("evaluation", "", 0)
        done, loss = (0, None) if prior is None else (prior.step, prior.loss)
        return Position("prior", "steps", done, total, loss=loss)
    of = "" if record.planned is None else f" of {record.planned}"
    seconds = {key: _mean(rows, key) for key in ("m_step_seconds", "e_step_seconds")}
    round_seconds = sum(seconds.values()) if any(seconds.values()) else None
    if (drawn := _chunks(record.run_dir, k + 1)) is not None:
        total = _chunks(record.run_dir, k) if rows else None
        rate = _rate(total, rows[-1]["e_step_seconds"] if rows else 0.0)
        spent = seconds["m_step_seconds"] + seconds["e_step_seconds"] * _fraction(drawn, total)
        left = _left(record, round_seconds, spent)
        return Position(f"round {k + 1}{of}, E-step", "chunks", drawn, total, rate, left)
    if not rows:
        return Position(f"round 0{of}, init", "chunks", 0)
    before = int(rows[-1].get("optimizer_steps") or 0)
    logged = last is not None and last.step > before
    done, loss = (last.step - before, last.loss) if last is not None and logged else (0, None)
    steps = _steps(rows)
    total = _planned_steps(record, k) or steps
    spent = seconds["m_step_seconds"] * _fraction(done, total)
    left = _left(record, round_seconds, spent)
    rate = _rate(steps, rows[-1]["m_step_seconds"])
    return Position(f"round {k + 1}{of}, M-step", "steps", done, total, rate, left, loss)


def _number(settings: object, key: str) -> int | None:
    value = settings.get(key) if isinstance(settings, Mapping) else None
    return value if type(value) is int else None


def _planned_steps(record: RunRecord, k: int) -> int | None:
    """Returns the optimiser steps of the M-step over D_k, where the settings name them."""
    em = record.config.get("em")
    first = _number(em, "first_steps") if k == 0 else None
    return _number(em, "steps_per_round") if first is None else first


def _steps(rows: Sequence[Row]) -> int | None:
    """Returns the optimiser steps of the last M-step; None if there is none."""
    if len(rows) < 2:
        return None
    counts = [row.get("optimizer_steps") for row in rows[-2:]]
    numbers = [int(count) for count in counts if isinstance(count, int | float)]
    return numbers[1] - numbers[0] if len(numbers) == 2 else None


def _chunks(run_dir: Path, k: int) -> int | None:
    """Returns how many chunks of a round are drawn; None before its E-step."""
    folder = run_dir / RECONSTRUCTIONS / f"round_{k:03d}"
    return len(list(folder.glob("chunk_*.npy"))) if folder.is_dir() else None


def _mean(rows: Sequence[Row], key: str) -> float:
    """Returns the mean time of the last rounds after the init; 0 if there are none."""
    found = [float(row[key]) for row in rows[1:]][-LAST:]
    return sum(found) / len(found) if found else 0.0


def _rate(count: int | None, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def _fraction(done: int, total: int | None) -> float:
    return min(1.0, done / total) if total else 0.0


def _left(record: RunRecord, seconds: float | None, spent: float) -> float | None:
    """Returns the seconds until the last round is committed.

    Arguments:
        record: What the run's directory holds.
        seconds: What a round takes; None if that is not known.
        spent: What of it the round under way has taken.
    """
    if seconds is None or not (rounds := _rounds_left(record)):
        return None
    return max(0.0, rounds * seconds - spent)


def _rounds_left(record: RunRecord) -> int | None:
    """Returns how many rounds are left with the one under way, by the number and the budgets.

    A budget ends the loop where one more round, as long as the last, would miss it further, as
    `diffem.em.EMSettings.exhausted` has it.
    """
    rows, em = record.rounds, record.config.get("em")
    if record.planned is None or not isinstance(em, Mapping) or len(rows) < 2:
        return None
    counts = [record.planned - int(rows[-1]["round"])]
    times = [round_seconds(row) for row in rows]
    evaluations = [row.get("nfe") for row in rows]
    spent: dict[str, tuple[float, float]] = {"seconds": (sum(times), times[-1])}
    last, before = evaluations[-1], evaluations[-2]
    if isinstance(last, int | float) and isinstance(before, int | float):
        spent["nfe"] = (last, last - before)
    for key, (so_far, of_last) in spent.items():
        limit = em.get(key)
        if isinstance(limit, int | float) and of_last > 0:
            counts.append(max(1, math.ceil((limit - so_far) / of_last - 0.5)))
    return min(counts)
