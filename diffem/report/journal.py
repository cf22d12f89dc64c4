"""The journal of a run: rounds.json, the scores of the rounds so far and the time they took."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffem.report.record import are_rows, logged_rounds
from diffem.runtime.progress import warn
from diffem.runtime.rank import global_rank
from diffem.storage.atomic import read_json, write_text
from diffem.storage.strict_json import to_json


class Journal:
    """The rounds of a run so far, over all processes that have worked on it.

    One that is damaged, or of another run, is put aside, and its rounds are taken from
    metrics.jsonl.

    Arguments:
        run_dir: The run directory.
        run: The hashes that the run is bound to; None to read whatever journal is there.

    Attributes:
        file: The journal's file.
        rounds: A row of scores and costs for each round, in order.
    """

    def __init__(self, run_dir: Path, run: Mapping[str, str] | None) -> None:
        self.file = run_dir / "rounds.json"
        self._start = time.perf_counter()
        held = read_json(self.file) or {}
        rounds, seconds = held.get("rounds"), held.get("wall_seconds")
        own = run is None or held.get("run") == run
        if own and are_rows(rounds) and isinstance(seconds, int | float):
            self.rounds, self._start = rounds, self._start - seconds
            return
        # A new run has no log; without its journal is also a run that was killed after the lines
        # below and before the next round.
        self.rounds = logged_rounds(run_dir / "metrics.jsonl")
        if self.file.is_file():
            warn(
                f"{self.file} is damaged or of another run; the scores of its rounds are taken "
                f"from metrics.jsonl, which has {len(self.rounds)}"
            )
            if global_rank() == 0:
                self.file.replace(run_dir / "rounds.damaged.json")

    @property
    def wall_seconds(self) -> float:
        """The wall time of the run, over all its processes."""
        return round(time.perf_counter() - self._start, 1)

    def best_round(self, figure: str) -> int | None:
        """Returns the round whose network has the lowest figure; None if no network has one."""
        rows = [row for row in self.rounds if row["round"] > 0 and row.get(figure) is not None]
        return min(rows, key=lambda row: row[figure])["round"] if rows else None

    def add(self, row: dict[str, Any], head: Mapping[str, Any]) -> None:
        """Adds a round and writes the file.

        Arguments:
            row: The round's row; it replaces one that a killed process may have left, and those
                of later rounds.
            head: What the file says besides the rounds.
        """
        self.rounds = [*(r for r in self.rounds if r["round"] < row["round"]), row]
        write_text(self.file, to_json({**head, "rounds": self.rounds}, indent=1))
