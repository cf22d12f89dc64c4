"""Rows of rounds, as summary.json and rounds.json have them, and how reconstructions were drawn.

An E-step draws `redrawn` of a round's reconstructions, and leaves the others as the round before
has them (`em.refresh`, or the guard of E-steps). Each is made of `draws` draws: of several where
they are over-relaxed (`em.relax`). A row that lacks a number, or has null, is of one draw of all.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffem.storage.atomic import read_json

FEW_RELAXED = 0.05  # of a round's reconstructions

Row = Mapping[str, Any]


def read_rows(run_dir: Path) -> list[Row]:
    """Returns the rows of the rounds so far; none if there are none, or rounds.json is damaged."""
    rows = (read_json(run_dir / "rounds.json") or {}).get("rounds")
    if not isinstance(rows, list):
        return []
    sound = all(isinstance(r, dict) and isinstance(r.get("round"), int) for r in rows)
    return rows if sound else []


def redrawn(row: Row) -> float:
    """Returns the share of a round's reconstructions that its E-step drew, in [0, 1]."""
    share = row.get("redrawn")
    return 1.0 if share is None else share


def draws(row: Row) -> int:
    """Returns of how many draws each reconstruction is made that a round's E-step drew."""
    return row.get("draws") or 1


def are_samples(row: Row) -> bool:
    """Returns whether a round's reconstructions are each one sample of one posterior."""
    return redrawn(row) == 1 and draws(row) == 1


def last_draws(rounds: Sequence[Row]) -> set[int]:
    """Returns of how many draws reconstructions of the last of some rounds are made.

    Arguments:
        rounds: The rows of the rounds, of which none before the last is left out.
    """
    found = set[int]()
    for row in reversed(rounds):
        if redrawn(row) > 0:
            found.add(draws(row))
        if redrawn(row) == 1:
            break
    return found


def relaxed_rounds(rounds: Sequence[Row]) -> Iterator[bool]:
    """Yields of each round whether it has reconstructions that are made of several draws.

    Those that a round does not draw anew are as the round before has them: each as likely as any
    other. A share below 1/20 of them is passed over.

    Arguments:
        rounds: The rows of the rounds, of which none is left out.
    """
    share = 0.0
    for row in rounds:
        share = redrawn(row) * (draws(row) > 1) + (1 - redrawn(row)) * share
        yield share >= FEW_RELAXED


def is_relaxed(rounds: Sequence[Row]) -> bool:
    """Returns whether the last of some rounds is one of `relaxed_rounds`.

    Arguments:
        rounds: The rows of the rounds, of which none before the last is left out.
    """
    *_, last = relaxed_rounds(rounds)
    return last
