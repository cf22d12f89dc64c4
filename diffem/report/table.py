"""What commands print of scores: a table that fits the terminal, and a few lines."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from diffem.metric import Score
from diffem.report.verdict import kept_line, relaxed_line
from diffem.runtime.progress import plain_console

TIMES = (
    Score("e_step_seconds", "E-step time", heading="E-step s", digits=1),
    Score("m_step_seconds", "M-step time", heading="M-step s", digits=1),
)
BORDER = 3  # characters of a column besides its cells
FOLDED = 16  # characters of a column of texts at least, where the terminal is narrow
HELDOUT = "held-out"  # the row of the final scores


class Column(NamedTuple):
    """A column of a printed table."""

    heading: str
    """Its heading, which is broken between words alone."""
    cells: Sequence[str]
    """Its cells."""
    folds: bool = False
    """Whether they are texts, which may be broken, and no numbers."""

    @property
    def least(self) -> int:
        """The fewest characters that it needs."""
        cells = max(map(cell_len, self._lines()), default=0)
        cells = min(FOLDED, cells) if self.folds else cells
        return max([cells, *map(cell_len, self.heading.split())])

    @property
    def most(self) -> int:
        """The most characters that it needs."""
        return max(map(cell_len, [self.heading, *self._lines()]))

    def _lines(self) -> list[str]:
        return [line for cell in self.cells for line in cell.splitlines()]


def fitting_table(title: str, columns: Sequence[Column], *, width: int) -> Table | Text:
    """Returns a table in which no number is broken; lines where the terminal is too narrow for it.

    Arguments:
        title: What stands above it.
        columns: Its columns, the first of which names the rows.
        width: The characters that a line of the terminal has.
    """
    spare = width - 1 - sum(column.least + BORDER for column in columns)
    if spare < 0:
        return Text("\n".join([title, *_lines(columns)]))
    table = Table(title=title)
    for column in columns:
        more = min(spare, column.most - column.least)
        justify = "left" if column.folds else "right"
        table.add_column(
            column.heading, justify=justify, width=column.least + more, overflow="fold"
        )
        spare -= more
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def print_fitting(table: Table | Text) -> None:
    """Prints what `fitting_table` returned; lines are left to the terminal to wrap."""
    plain_console().print(table, soft_wrap=isinstance(table, Text))


def _lines(columns: Sequence[Column]) -> list[str]:
    """Returns a line for each row of a table: its name, and each heading with its cell."""
    first, *others = columns
    return [
        f"{first.heading} {name}: ".lstrip()
        + ", ".join(" ".join(f"{c.heading} {c.cells[i]}".split()) for c in others)
        for i, name in enumerate(first.cells)
    ]


def print_table(
    about: Mapping[str, Any],
    scores: Sequence[Score],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    first: str = "round",
) -> None:
    """Prints a table of scores.

    Arguments:
        about: The head of the summary.
        scores: The scores; the table has those of `shown_scores`.
        rows: The name and the scores of each row.
        first: The heading of the names.
    """
    title = "{dataset} · {corruption} · {method} · seed {seed}".format_map(about)
    width = plain_console().width
    print_fitting(score_table(title, scores, rows, first=first, width=width))


def score_table(
    title: str,
    scores: Sequence[Score],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    first: str = "round",
    width: int,
) -> Table | Text:
    """Returns a table of scores, or lines, as `fitting_table` does.

    Arguments:
        title: What stands above it.
        scores: The scores; the table has those of `shown_scores`. Where it is too narrow for all,
            the last ones are left out, which a line below it says.
        rows: The name and the scores of each row.
        first: The heading of the names.
        width: The characters that a line has.
    """
    columns = [Column(first, [name for name, _ in rows])]
    for score in shown_scores(scores, [row for _, row in rows]):
        cells = [score.text(row.get(score.name)) for _, row in rows]
        columns.append(Column(score.heading or score.label, cells))
    ends = accumulate(column.least + BORDER for column in columns)
    count = sum(end < width for end in ends)
    if count < 2:  # lines, which hold all
        return fitting_table(title, columns, width=width)
    table = fitting_table(title, columns[:count], width=width)
    if left_out := [column.heading for column in columns[count:]]:
        assert isinstance(table, Table)
        table.caption = f"too narrow for {', '.join(left_out)}"
    return table


def shown_scores(scores: Sequence[Score], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Returns the scores that a table has columns for.

    Those with a heading that some row has. If there is none, as of measurements without clean
    images under a channel that is not linear, those that some row has and that are no detail.

    Arguments:
        scores: The scores of a run, and perhaps `TIMES`.
        rows: The scores of each row.
    """
    known = [s for s in scores if any(row.get(s.name) is not None for row in rows)]
    headed = [score for score in known if score.heading]
    if any(score not in TIMES for score in headed):
        return headed
    return [*(s for s in known if not s.heading and not s.detail), *headed]


def print_left_out(scores: Sequence[Score], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Prints how many reconstructions the means of the last row and the last round leave out.

    Arguments:
        scores: The scores.
        rows: The name and the scores of each row.
    """
    labels = {score.name: score.label for score in scores}
    for row, found in rows[-2:]:
        for name, count in found.get("left_out", {}).items():
            where = row if row == HELDOUT else f"round {row}"
            plain_console().print(
                f"{where}: {labels[name]} is not defined for {count} reconstructions, and leaves "
                "them out"
            )


def print_closing(rounds: Sequence[Mapping[str, Any]], final: Mapping[str, Any]) -> None:
    """Prints what is known of the channel and the prior.

    Arguments:
        rounds: The rows of the rounds.
        final: The held-out scores.
    """
    console = plain_console()
    for line in (kept_line(rounds), relaxed_line(rounds)):
        if line is not None:
            console.print(line, soft_wrap=True)
    if (floor := final.get("init_psnr_mean")) is not None:
        console.print(f"posterior mean of the init, held-out: {floor:.2f} dB")
    if (worst := final.get("worst_group_psnr_mean")) is not None:
        others = final["other_groups_psnr_mean"]
        groups = f"worst group {worst:.2f} dB, others {others:.2f} dB"
        console.print(f"PSNR of mean, held-out: {groups}")
    if (now := final.get("old_psnr_mean")) is not None:
        console.print(
            f"PSNR of mean, held-out measurements of earlier runs: {now:.2f} dB, before this run "
            f"{final['old_psnr_mean_before']:.2f} dB",
            soft_wrap=True,
        )
    if estimate := rounds[-1].get("estimate"):
        learned = ", ".join(f"{name} {level:.4g}" for name, level in estimate.items())
        console.print(f"channel, learned: {learned}")
    if final["prior"] is not None and "frechet_pixels" in final["prior"]:
        console.print(
            "prior: Fréchet distance of pixels {frechet_pixels:.3f} (as many true images: "
            "{frechet_pixels_truth:.3f})".format_map(final["prior"])
        )


def print_student(student: Mapping[str, Any]) -> None:
    """Prints what a student costs, and from when on it saves evaluations.

    Arguments:
        student: Its scores and costs.
    """
    spent, after = student["distillation"], student["break_even"]
    saves = "its teacher takes one evaluation too, and it saves none"
    if after is not None:
        saves = f"it saves evaluations from {after:,} new measurements on, one sample of each"
    plain_console().print(
        f"student: one evaluation a sample, distilled with {spent:,}: {saves}", soft_wrap=True
    )


def print_features(features: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the scores in feature spaces, a line for each set and score.

    Arguments:
        features: What `feature_scores` returned.
    """
    for name, scores in features.items():
        for key in (key for key in scores if f"{key}_truth" in scores):
            value, true = scores[key], scores[f"{key}_truth"]
            plain_console().print(f"{name}: {key} {value:.3f} (true images: {true:.3f})")
