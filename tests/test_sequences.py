"""bench/sequences.py: each run continues the one before it, and the table has what they gave."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from bench import sequences
from diffem.cli.compose import compose_config


@pytest.mark.parametrize("row", sequences.ROWS)
@pytest.mark.parametrize("name", sequences.STUDIES)
def test_each_run_continues_the_one_before(name: str, row: str, tmp_path: Path) -> None:
    study = sequences.STUDIES[name]
    found = list(sequences.runs(study, row, 0, tmp_path))
    assert len(found) == len(study.tasks) + (row == sequences.JOINT)
    for (before, _), (_, overrides) in pairwise(found):
        assert f"memory.path={before}" in overrides
        started = f"init.path={before}" in overrides
        assert started == (row != sequences.JOINT)
    cfg, (first, later) = compose_config(found[-1][1]), study.rounds
    together = first + later * (len(study.tasks) - 1)
    assert cfg.em.rounds == (together if row == sequences.JOINT else later)


def test_the_table_has_what_the_last_run_says(tmp_path: Path) -> None:
    def finish(row: str, seed: int, new: float, *earlier: float) -> None:
        folder = sequences.place(tmp_path, "digits", row, seed)
        *_, (last, _) = sequences.runs(sequences.STUDIES["digits"], row, seed, folder)
        last.mkdir(parents=True)
        scored = [{"after": {"psnr_mean": value}} for value in earlier]
        final = {"psnr_mean": new, "forgetting_db": 20 - earlier[-1]}
        (last / "summary.json").write_text(json.dumps({"earlier": scored, "final": final}))

    finish("none", 0, 18.0, 16.0)
    finish("none", 1, 19.0, 17.0)
    finish(sequences.JOINT, 0, 0.0, 18.5, 19.5)  # on the newest, and the first
    lines = sequences.table("digits", tmp_path).splitlines()
    assert lines[2] == "| none | 18.50 ± 0.71 | 16.50 ± 0.71 | 3.50 ± 0.71 | 2 |"
    assert lines[-1] == "| joint | 18.50 | 19.50 | – | 1 |"
