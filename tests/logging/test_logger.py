"""metrics.jsonl holds each step and each round once, also after kills and resumes."""

import json
from pathlib import Path

import pytest

from diffem.logging.jsonl import JSONLLogger


def log(path: Path, *calls: tuple[str, int]) -> list[list[object]]:
    """Logs as one process does, and returns the file's lines as [stage, counter, value]."""
    logger = JSONLLogger(str(path))
    for i, (stage, counter) in enumerate(calls):
        if stage == "round":
            logger.log_metrics({"round": float(counter), "round/psnr": i, "epoch": 0}, step=99)
        else:
            logger.log_metrics({f"{stage}/loss": i, "epoch": 0}, step=counter)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all("epoch" not in line for line in lines)
    return [[name.split("/")[0], counter, v] for (_, counter), (name, v) in map(dict.items, lines)]


M, P, R = "m_step", "prior", "round"


def test_steps_and_rounds_that_are_logged_again_stand_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, (R, 0), (M, 1), (M, 3), (R, 1), (M, 5), (M, 7), (R, 2), (M, 9))
    lines = log(path, (M, 7), (R, 2), (M, 9))  # the checkpoint was of step 6
    assert lines == [
        [R, 0, 0], [M, 1, 1], [M, 3, 2], [R, 1, 3], [M, 5, 4], [M, 7, 0], [R, 2, 1], [M, 9, 2]
    ]  # fmt: skip


def test_a_line_that_a_kill_has_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, (M, 1), (M, 3))
    content = path.read_bytes()
    for cut in (content[:-1], content[:-9], content[: len(content) // 2 + 1]):
        path.write_bytes(cut)
        assert log(path, (M, 3), (M, 5)) == [[M, 1, 0], [M, 3, 0], [M, 5, 1]]


@pytest.mark.parametrize(
    "damage",
    [b"[1]\n", b"3\n", b"null\n", b"{}\n", b'{"step": "x", "m_step/loss": 1}\n', b"\xff}\n",
     b"}\n", b'{"m_step/loss": 1}\n', b"[" * 9999 + b"}\n", b'{"step": 1'],
)  # fmt: skip
def test_a_line_that_was_edited_is_dropped(damage: bytes, tmp_path: Path) -> None:
    """Issue 11, B10: a traceback."""
    path = tmp_path / "metrics.jsonl"
    log(path, (M, 1), (M, 3))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + (b"" if damage.endswith(b"\n") else b"\n") + second)
    assert log(path, (M, 5)) == [[M, 1, 0], [M, 3, 1], [M, 5, 0]]


def test_a_prior_of_more_rounds_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log(path, (M, 1), (R, 1), (P, 1), (P, 3))
    log(path, (M, 3), (R, 2))
    assert log(path, (P, 1)) == [[M, 1, 0], [R, 1, 1], [M, 3, 0], [R, 2, 1], [P, 1, 0]]
    assert log(path, (P, 3)) == [[M, 1, 0], [R, 1, 1], [M, 3, 0], [R, 2, 1], [P, 1, 0], [P, 3, 0]]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JSONLLogger(str(path)).log_metrics({"m_step/loss": float("nan")}, step=1)
    assert json.loads(path.read_text()) == {"step": 1, "m_step/loss": None}
    assert "NaN" not in path.read_text()
