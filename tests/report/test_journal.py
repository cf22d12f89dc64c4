"""rounds.json, what the rounds scored, is read again by each process of a run (issue 11, B10)."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from diffem.cli.watch import shown
from diffem.report import RunReport
from diffem.report.journal import Journal
from diffem.report.record import is_sound, read_record
from diffem.runtime.errors import UserError

RUN = {"config_sha256": "a", "data_sha256": "b"}
ROWS = [{"round": k, "e_step_seconds": 1.0, "m_step_seconds": 2.0, "psnr": 10.0} for k in (0, 1)]
WHOLE = json.dumps({"rounds": ROWS, "wall_seconds": 5.0, "run": RUN}).encode()


def opened(run_dir: Path) -> Journal:
    """Returns the journal of a run that is resumed."""
    return Journal(run_dir, RUN)


def written(run_dir: Path, journal: bytes, log: str) -> None:
    (run_dir / "rounds.json").write_bytes(journal)
    (run_dir / "metrics.jsonl").write_text(log)


LOG = "".join(
    json.dumps({"round": row["round"]} | {f"round/{k}": v for k, v in row.items() if k != "round"})
    + "\n"
    for row in ROWS
)


def test_intact_it_is_read_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, WHOLE, "")
    journal = opened(tmp_path)
    assert journal.rounds == ROWS and journal.wall_seconds >= 5.0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"{", WHOLE[:-9], b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 9999),
        *(b'{"rounds": 3}', b'{"rounds": [1]}', b'{"rounds": [{}], "wall_seconds": 1}'),
        *(WHOLE.replace(b"5.0", b'"x"'), WHOLE.replace(b'"round": 1', b'"round": null')),
    ],
)
def test_damaged_it_is_taken_from_the_log(
    damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, damage, LOG + "cut {")
    assert opened(tmp_path).rounds == ROWS
    told = "".join(capsys.readouterr().err.split())
    assert told.startswith("warning:")
    assert "aretakenfrommetrics.jsonl,whichhas2" in told
    assert (tmp_path / "rounds.damaged.json").read_bytes() == damage
    assert opened(tmp_path).rounds == ROWS  # after a kill before the next round is scored
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["draws", "redrawn", "psnr", "posterior_std", "hidden_entries"])
@pytest.mark.parametrize("value", ["x", [2], {}])
def test_what_is_no_number_in_the_log_is_left_out(
    name: str, value: object, tmp_path: Path
) -> None:
    """Pages and `diffem watch` calculate with what they read in a row."""
    damaged = LOG + json.dumps(
        {"round": 2, "round/draws": 2}
        | {f"round/{key}": v for key, v in (ROWS[1] | {name: value}).items() if key != "round"}
    )
    written(tmp_path, b"{", damaged)
    record = read_record(tmp_path)
    assert len(record.rounds) == 3 and name not in record.rounds[2]
    shown(record)


def test_where_the_log_is_damaged_too_it_is_said(tmp_path: Path) -> None:
    written(tmp_path, b"{", "{")
    report = RunReport(tmp_path, {"run": RUN}, Mock(), Mock(), Mock(), store=Mock())
    with pytest.raises(UserError, match="are damaged: what the rounds scored and cost is lost"):
        report.finish(Mock(), Mock(), None, torch.device("cpu"))


@pytest.mark.parametrize("name", ["draws", "redrawn", "hidden_entries"])
def test_a_summary_whose_rows_hold_no_numbers_is_damaged(name: str) -> None:
    assert is_sound({"rounds": [{"round": 0, name: 1}]})
    assert is_sound({"rounds": [{"round": 0, name: None}]})
    assert not is_sound({"rounds": [{"round": 0, name: "2"}]})


@pytest.mark.parametrize("part", ["best", "samples"])
def test_a_summary_whose_parts_are_of_other_types_is_damaged(part: str) -> None:
    assert is_sound({part: None})
    assert not is_sound({part: [2]}) and not is_sound({part: "2"})


@pytest.mark.parametrize("part", ["estimate", "collapse"])
def test_a_summary_whose_rows_name_no_numbers_is_damaged(part: str) -> None:
    assert is_sound({"rounds": [{"round": 0, part: {"a": 1.5}}]})
    for value in ({"a": "1"}, {"a": None}, [1], "x"):
        assert not is_sound({"rounds": [{"round": 0, part: value}]})
