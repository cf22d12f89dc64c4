"""The report of a comparison: one table in three formats, two plots, a page of pictures."""

import csv
import html
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[dict[str, Any] | None]]
"""The summaries of each method's seeds; None for a run that failed."""

COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "PSNR of mean (dB)": lambda s: s["final"]["psnr_mean"],
    "PSNR (dB)": lambda s: s["final"]["psnr"],
    "SSIM": lambda s: s["final"].get("ssim"),
    "Sinkhorn": lambda s: s["final"].get("sinkhorn"),
    "residual χ²": lambda s: s["final"]["residual_chi2"],
    "prior FD (pixels)": lambda s: (s["final"]["prior"] or {}).get("frechet_pixels"),
    "rounds": lambda s: s["rounds"][-1]["round"],
    "time (s)": lambda s: s["wall_seconds"],
}


def spread(values: Sequence[float]) -> str:
    """Returns "mean ± standard deviation", or the mean alone of a single value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def table(runs: Runs) -> list[list[str]]:
    """Returns the header and a row for each method, as text."""
    finished = [s for row in runs.values() for s in row if s is not None]
    columns = {  # a column that no run has is left out: SSIM of vectors, Sinkhorn of images
        name: value
        for name, value in COLUMNS.items()
        if not finished or any(value(s) is not None for s in finished)
    }
    rows = [["method", *columns, "seeds"]]
    for method, summaries in runs.items():
        done = [s for s in summaries if s is not None]
        row = [method]
        for value in columns.values():
            known = [v for v in map(value, done) if v is not None]
            row.append(spread(known) if known else "–")
        failed = len(summaries) - len(done)
        row.append(f"{len(done)}" + (f" ({failed} failed)" if failed else ""))
        rows.append(row)
    floors = {s["seed"]: s["final"]["gaussian_psnr_mean"] for s in finished}
    if known := [floor for floor in floors.values() if floor is not None]:
        blank = ["–"] * (len(columns) - 1)
        rows.append(["Gaussian posterior mean", spread(known), *blank, f"{len(known)}"])
    return rows


def write_comparison(out: Path, runs: Runs, overrides: str) -> list[Path]:
    """Writes table.md, table.csv, table.tex, two plots and index.html; returns the files.

    Arguments:
        out: The folder, which holds the runs as METHOD/seed_SEED.
        runs: The runs' summaries.
        overrides: What all runs were given, for the page's title.
    """
    rows = table(runs)
    head, body = rows[0], rows[1:]
    markdown = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]
    (out / "table.md").write_text("\n".join(markdown) + "\n")
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    latex = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows]
    columns = "l" + "r" * (len(head) - 1)
    (out / "table.tex").write_text(
        "\n".join([rf"\begin{{tabular}}{{{columns}}}", *latex, r"\end{tabular}"]) + "\n"
    )
    _plot(out / "rounds.png", runs, "round", lambda rounds: [row["round"] for row in rounds])
    _plot(out / "compute.png", runs, "seconds of E- and M-steps", _seconds)
    (out / "index.html").write_text(_page(out, rows, runs, overrides))
    names = ("table.md", "table.csv", "table.tex", "rounds.png", "compute.png", "index.html")
    return [out / name for name in names]


def _seconds(rounds: Sequence[dict[str, Any]]) -> list[float]:
    total, seconds = 0.0, []
    for row in rounds:
        total += row["e_step_seconds"] + row["m_step_seconds"]
        seconds.append(total)
    return seconds


def _plot(
    path: Path, runs: Runs, label: str, axis: Callable[[Sequence[dict[str, Any]]], list[float]]
) -> None:
    """Plots PSNR of the mean on training observations, a line a method, averaged over seeds."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    plot = figure.subplots()
    for method, summaries in runs.items():
        done = [s["rounds"] for s in summaries if s is not None]
        if done:
            length = min(map(len, done))
            x = [statistics.mean(v) for v in zip(*(axis(r[:length]) for r in done), strict=True)]
            y = [statistics.mean(r[i]["psnr_mean"] for r in done) for i in range(length)]
            plot.plot(x, y, marker="o", markersize=3, label=method)
    plot.set(xlabel=label, ylabel="PSNR of mean (dB), training")
    if plot.lines:
        plot.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _latex(cell: str) -> str:
    for old, new in (("_", r"\_"), ("±", r"$\pm$"), ("χ²", r"$\chi^2$"), ("–", "--")):
        cell = cell.replace(old, new)
    return cell


def _page(out: Path, rows: Sequence[Sequence[str]], runs: Runs, overrides: str) -> str:
    """Returns the page: the table, the plots, and each method's held-out panel side by side."""
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    panels = []
    for method in runs:
        for panel in sorted(out.glob(f"{method}/seed_*/figures/heldout.png"))[:1]:
            source = html.escape(os.path.relpath(panel, out))
            panels.append(
                f'<figure><figcaption>{html.escape(method)}</figcaption><img src="{source}" '
                f'alt="held-out panel of {html.escape(method)}" width="320"></figure>'
            )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title>'
        "<style>body{font-family:sans-serif;margin:2em}td{padding:.2em .8em;text-align:right}"
        "td:first-child{text-align:left}tr:first-child{font-weight:bold}"
        "div{display:flex;flex-wrap:wrap}</style>"
        f"<h1>{html.escape(overrides) or 'default run'}</h1>"
        f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
        '<div><img src="rounds.png" width="500" alt="PSNR of the mean over rounds">'
        '<img src="compute.png" width="500" alt="PSNR of the mean over time"></div>'
        f"<div>{''.join(panels)}</div></html>\n"
    )
