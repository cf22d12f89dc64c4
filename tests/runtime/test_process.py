"""The processes that runs of a comparison or a sweep are in."""

from pathlib import Path

import pytest

from diffem.runtime.process import Job


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("one\ntwo\n", "two"),
        ("error: \x1b[31mred\x1b[0m \x1b[2K\x1b]0;title\x07x\n", "error: red x"),
        ("\x1b]8;;http://a.b\x1b\\a link\x1b]8;;\x1b\\", "a link"),
        ("bell\x07 and back\b space\n", "bell and back space"),
        ("\n \n", "the run printed nothing"),
    ],
)
def test_last_line_steers_no_terminal(tmp_path: Path, printed: str, shown: str):
    job = Job("job", tmp_path / "run")
    job.log.write_text(printed)
    assert job.last_line() == shown


def test_last_line_of_no_log(tmp_path: Path):
    assert Job("job", tmp_path / "run").last_line() == "the run printed nothing"
