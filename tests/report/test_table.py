"""Printed tables on terminals of any width: no number is broken, nothing lost in silence."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffem.metric import Score
from diffem.report.table import TIMES, Column, fitting_table, score_table, shown_scores

WIDTHS = [*range(8, 100, 4), 200]
SCORES = [Score(name, name, heading=name, digits=3) for name in ("PSNR", "SSIM", "of mean", "χ²")]
ROWS = [
    (name, {"PSNR": 17.5 + k, "SSIM": 0.75 + k, "of mean": 100.5 + k, "χ²": 0.25 + k})
    for k, name in enumerate(("the run", "evaluation_001"))
]


def printed(table: Table | Text, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table, soft_wrap=isinstance(table, Text))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert isinstance(table, Text) or all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_of_scores_holds_what_it_does_not_say_that_it_leaves_out(width: int) -> None:
    """At 20 characters a table of two columns was cut at the right, at 60 its last border was."""
    table = score_table("digits", SCORES, ROWS, first="evaluation", width=width)
    shown = printed(table, width)
    left_out = table.caption if isinstance(table, Table) and table.caption else ""
    for score in SCORES:
        numbers = [score.text(row[score.name]) for _, row in ROWS]
        assert all(number in shown for number in numbers) or score.heading in str(left_out)
    assert all(name in shown for name, _ in ROWS)
    rows = [line for line in shown.splitlines() if line[0] in "┏┃┡│└"]
    assert all(line[-1] in "┓┃┩│┘" for line in rows) and "…" not in shown


def test_scores_that_no_row_has_are_no_columns() -> None:
    """Of measurements without clean images under a channel that is not linear these are most."""
    spread = Score("spread", "posterior std", digits=3)
    detail = Score("p", "p-value", detail=True)
    scores = (*SCORES, spread, detail, *TIMES)
    row = {"spread": 0.25, "p": 0.5, "e_step_seconds": 1.5, "PSNR": None}
    for rows in ([row], [{}, row]):
        assert shown_scores(scores, rows) == [spread, TIMES[0]]
        assert shown_scores(scores, [*rows, {"χ²": 1.0}]) == [SCORES[3], TIMES[0]]
    table = score_table("digits", scores, [("0", row)], width=60)
    shown = printed(table, 60)
    assert "posterior std" in shown and "0.250" in shown and "–" not in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_texts_are_folded_and_numbers_are_whole(width: int) -> None:
    text = "corruption.noise.std=0.123456789\nseed=1"
    columns = [
        Column("job", ["0", "11"]),
        Column("overrides", [text, text], folds=True),
        Column("of mean", ["17.123 ± 0.002", "–"]),
    ]
    shown = printed(fitting_table("2 jobs", columns, width=width), width)
    assert "17.123 ± 0.002" in shown
    if "│" not in shown:
        assert "job 11: overrides corruption.noise.std=0.123456789 seed=1, of mean –" in shown
        return
    folded = [line.split("│")[2].strip() for line in shown.splitlines() if line[0] == "│"]
    assert "".join(folded) == 2 * text.replace("\n", "")
