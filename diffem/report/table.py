"""What a run, an evaluation and `diffem watch` print of scores: a table and a few lines."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from diffem.metric import Score
from diffem.report.verdict import kept_line
from diffem.runtime.progress import plain_console

TIMES = (
    Score("e_step_seconds", "E-step time", heading="E-step s", digits=1),
    Score("m_step_seconds", "M-step time", heading="M-step s", digits=1),
)
BORDER = 3  # characters of a column besides its cells
HELDOUT = "held-out"  # the row of the final scores


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
        scores: The scores; the table has those with a heading.
        rows: The name and the scores of each row.
        first: The heading of the names.
    """
    title = "{dataset} · {corruption} · {method} · seed {seed}".format_map(about)
    console = plain_console()
    console.print(score_table(title, scores, rows, first=first, width=console.width))


def score_table(
    title: str,
    scores: Sequence[Score],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    first: str = "round",
    width: int,
) -> Table:
    """Returns a table of scores.

    Arguments:
        title: What stands above it.
        scores: The scores; the table has those with a heading. Where it is too narrow for all, the
            last ones are left out, which a line below it says.
        rows: The name and the scores of each row.
        first: The heading of the names.
        width: The characters that a line has.
    """
    shown = [score for score in scores if score.heading]
    columns = [(first, [name for name, _ in rows])]
    columns += [(s.heading, [s.text(row.get(s.name)) for _, row in rows]) for s in shown]
    # No number and no word of a heading is broken.
    least = [max(map(cell_len, (*heading.split(), *cells))) for heading, cells in columns]
    ends = list(accumulate(each + BORDER for each in least))
    count = max(2, sum(end < width for end in ends))
    table = Table(title=title)
    if left_out := [heading for heading, _ in columns[count:]]:
        table.caption = f"too narrow for {', '.join(left_out)}"
    for (heading, _), narrowest in zip(columns[:count], least, strict=False):
        table.add_column(heading, justify="right", min_width=narrowest)
    for cells in zip(*(cells for _, cells in columns[:count]), strict=True):
        table.add_row(*cells)
    return table


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
    if (kept := kept_line(rounds)) is not None:
        console.print(kept, soft_wrap=True)
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
