"""Rows of rounds, as rounds.json and summary.json hold them."""

from collections.abc import Mapping, Sequence
from typing import Any


def draws_of_last(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Returns of how many draws reconstructions of the last of some rounds are made.

    There are several numbers where its E-step kept chunks that earlier ones drew.

    Arguments:
        rows: The rows of round 0 to the last one.
    """
    draws = set[int]()
    for row in reversed(rows):
        redrawn = row.get("redrawn", 1.0)
        if redrawn:
            draws.add(int(row.get("draws") or 1))
        if redrawn == 1.0:
            break
    return draws
