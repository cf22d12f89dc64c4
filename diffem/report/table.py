"""The table of a comparison: a row for each set of overrides, mean ± deviation over seeds."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Summary = dict[str, Any]
"""What a run's summary.json holds."""

Runs = Mapping[str, Mapping[int, Summary | None]]
"""Of each row, the summaries of its seeds; None for a run that failed."""

CLEAN = "†"  # marks rows that learn from clean images: no contest


class Column(NamedTuple):
    """A column of the table."""

    title: str
    value: Callable[[Summary], float | None]
    digits: int
    better: Callable[[Iterable[float]], float] | None = None
    """max or min, if the best value is to be marked."""


def final(key: str) -> Callable[[Summary], float | None]:
    """Returns what reads a score of the held-out measurements."""
    return lambda summary: summary["final"].get(key)


def prior(key: str) -> Callable[[Summary], float | None]:
    """Returns what reads a score of the prior."""
    return lambda summary: (summary["final"].get("prior") or {}).get(key)


def estimate(key: str) -> Callable[[Summary], float | None]:
    """Returns what reads an operator parameter as the last round estimated it."""
    return lambda summary: (summary["rounds"][-1].get("estimate") or {}).get(key)


def optimizer_steps(summary: Summary) -> float | None:
    """Returns the optimiser steps of all M-steps, where they are counted."""
    return summary["rounds"][-1].get("optimizer_steps")


def million_nfe(summary: Summary) -> float | None:
    """Returns the millions of images that went through the network, where they are counted."""
    count = summary["rounds"][-1].get("nfe")
    return None if count is None else count / 1e6


def em_seconds(summary: Summary) -> float:
    """Returns the seconds of all E- and M-steps."""
    return sum(row["e_step_seconds"] + row["m_step_seconds"] for row in summary["rounds"])


SCORES = (
    Column("PSNR of mean (dB)", final("psnr_mean"), 2, max),
    Column("PSNR (dB)", final("psnr"), 2, max),
    Column("SSIM", final("ssim"), 3),
    Column("LPIPS", final("lpips"), 3),
    Column("FD classifier", final("fd_classifier"), 3, min),
    Column("FID", final("fid"), 3, min),
    Column("Sinkhorn", final("sinkhorn"), 3),
    Column("residual χ²", final("residual_chi2"), 3),
    Column("diversity", final("diversity"), 3),
    Column("spread", final("spread"), 3),
    Column("prior FD (pixels)", prior("frechet_pixels"), 3, min),
    Column("prior FD classifier", prior("fd_classifier"), 3, min),
    Column("prior FID", prior("fid"), 3, min),
    Column("prior Sinkhorn", prior("sinkhorn"), 3),
)
COSTS = (
    Column("rounds", lambda summary: summary["rounds"][-1]["round"], 1),
    Column("optimiser steps", optimizer_steps, 0),
    Column("NFE (M)", million_nfe, 2),
    Column("E+M time (s)", em_seconds, 1),
    Column("time (s)", lambda summary: summary["wall_seconds"], 1),
)
FLOOR = Column("Gaussian posterior mean (dB)", final("gaussian_psnr_mean"), 2)


def sees_clean_images(summary: Summary) -> bool:
    """Returns whether a run learned from clean images: its method's supervision, or its init."""
    return summary.get("clean_images", False)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Returns "mean ± standard deviation", or the mean alone of a single value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(runs: Runs, *, bold: bool = False) -> list[list[str]]:
    """Returns the header and the rows, as text.

    Arguments:
        runs: The runs' summaries.
        bold: Marks the best value of PSNRs and Fréchet distances as Markdown does. Rows that
            learn from clean images, marked †, do not compete, and no row competes alone.
    """
    finished = [s for row in runs.values() for s in row.values() if s is not None]
    floor = _common_floor(finished)
    columns = _columns(finished, () if floor else (FLOOR,))
    done = {row: [s for s in seeds.values() if s is not None] for row, seeds in runs.items()}
    rows = [["row", *(column.title for column in columns), "seeds"]]
    for row, seeds in runs.items():
        failed = len(seeds) - len(done[row])
        count = f"{len(done[row])}" + (f" ({failed} failed)" if failed else "")
        rows.append([row, *(_text(column, done[row]) for column in columns), count])
    competing = {row: d for row, d in done.items() if not any(map(sees_clean_images, d))}
    if bold:
        for i, column in enumerate(columns, start=1):
            for row in _best(column, competing):
                line = next(line for line in rows if line[0] == row)
                line[i] = f"**{line[i]}**"
    for line in rows:
        line[0] += f" {CLEAN}" if line[0] in done.keys() - competing.keys() else ""
    if floor:
        blank = ["–"] * (len(columns) - 1)
        text = mean_and_deviation(floor, FLOOR.digits)
        rows.append(["Gaussian posterior mean", text, *blank, f"{len(floor)}"])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in ruled)
    marked = any(row[0].endswith(CLEAN) for row in rows)
    return lines + (f"\n{CLEAN} learns from clean images.\n" if marked else "")


def latex(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in LaTeX."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    head = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    return "\n".join([head, *lines, r"\end{tabular}"]) + "\n"


def _columns(finished: Sequence[Summary], extra: Sequence[Column]) -> list[Column]:
    """Returns the columns that some run has: SSIM is of images, Sinkhorn of vectors."""
    names = dict.fromkeys(k for s in finished for k in s["rounds"][-1].get("estimate") or {})
    estimated = [Column(f"estimated {name}", estimate(name), 3) for name in names]
    columns = (*SCORES, *extra, *estimated, *COSTS)
    return [c for c in columns if not finished or any(c.value(s) is not None for s in finished)]


def _known(column: Column, done: Sequence[Summary]) -> list[float]:
    return [value for value in map(column.value, done) if value is not None]


def _text(column: Column, done: Sequence[Summary]) -> str:
    known = _known(column, done)
    return mean_and_deviation(known, column.digits) if known else "–"


def _best(column: Column, done: Mapping[str, Sequence[Summary]]) -> list[str]:
    """Returns the rows whose mean is the best to the digits shown."""
    if column.better is None:
        return []
    known = {row: _known(column, summaries) for row, summaries in done.items()}
    means = {row: round(statistics.mean(v), column.digits) for row, v in known.items() if v}
    best = column.better(means.values()) if len(means) > 1 else None
    return [row for row, mean in means.items() if mean == best]


def _common_floor(finished: Sequence[Summary]) -> list[float]:
    """Returns each seed's Gaussian posterior mean, or nothing if the rows' measurements differ."""
    floors: dict[int, set[float]] = {}
    for summary in finished:
        if (floor := FLOOR.value(summary)) is not None:
            floors.setdefault(summary["seed"], set()).add(round(floor, FLOOR.digits))
    if any(len(values) > 1 for values in floors.values()):
        return []
    return [value for values in floors.values() for value in values]


def _latex(cell: str) -> str:
    for old, new in (
        ("_", r"\_"),
        (CLEAN, r"$\dagger$"),
        ("±", r"$\pm$"),
        ("χ²", r"$\chi^2$"),
        ("–", "--"),
    ):
        cell = cell.replace(old, new)
    return cell
