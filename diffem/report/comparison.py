"""The report of a comparison: one table in three formats, curves, a page of pictures."""

import csv
import html
from collections.abc import Sequence
from pathlib import Path

from diffem.report.curves import save_comparison_curves
from diffem.report.table import Runs, latex, markdown, table

PICTURES = {"heldout.png": "Held-out measurements", "prior.png": "Samples of the prior"}
STYLE = (
    "body{font-family:sans-serif;margin:2em}td{padding:.2em .8em;text-align:right}"
    "td:first-child{text-align:left}tr:first-child{font-weight:bold}"
    "div{display:flex;flex-wrap:wrap;align-items:flex-start}"
)


def write_comparison(out: Path, runs: Runs, title: str) -> list[Path]:
    """Writes table.md, table.csv, table.tex, the curves and index.html; returns the files.

    Arguments:
        out: The folder, which holds the runs as ROW/seed_SEED.
        runs: The runs' summaries.
        title: The study's name and what all runs were given, for the page.
    """
    rows = table(runs)
    (out / "table.md").write_text(markdown(table(runs, bold=True)))
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (out / "table.tex").write_text(latex(rows))
    curves = save_comparison_curves(out, runs)
    (out / "index.html").write_text(_page(rows, title, _sections(out, runs, curves)))
    tables = [out / name for name in ("table.md", "table.csv", "table.tex")]
    return [*tables, *curves, out / "index.html"]


def _page(rows: Sequence[Sequence[str]], title: str, sections: Sequence[str]) -> str:
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title) or 'default run'}</h1>"
        f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
        f"{''.join(sections)}</html>\n"
    )


def _sections(out: Path, runs: Runs, curves: Sequence[Path]) -> list[str]:
    """Returns what stands below the table: failed runs, curves, pictures side by side."""
    sections = []
    failed = [(row, seed) for row, seeds in runs.items() for seed, s in seeds.items() if s is None]
    if failed:
        logs = (f'<a href="{r}/seed_{s}.log">{html.escape(r)}, seed {s}</a>' for r, s in failed)
        sections.append(f"<p>Failed: {'; '.join(logs)}.</p>")
    images = (f'<img src="{p.name}" width="500" alt="{p.stem}, a line a row">' for p in curves)
    sections.append(f"<div>{''.join(images)}</div>")
    for name, heading in PICTURES.items():
        if panels := [p for row in runs if (p := _panel(out, row, runs, name))]:
            sections.append(f"<h2>{heading}</h2><div>{''.join(panels)}</div>")
    return sections


def _panel(out: Path, row: str, runs: Runs, name: str) -> str:
    """Returns a picture of a row's first finished seed, or nothing if there is none."""
    for seed, summary in runs[row].items():
        source, text = f"{row}/seed_{seed}/figures/{name}", html.escape(row)
        if summary is not None and (out / source).is_file():
            return (
                f"<figure><figcaption>{text}, seed {seed}</figcaption>"
                f'<img src="{source}" alt="{name} of {text}" width="320"></figure>'
            )
    return ""
