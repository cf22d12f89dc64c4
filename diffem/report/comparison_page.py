"""The page of a comparison, `report.html`: the table, curves, and pictures side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffem.report.chart import COLOURS, DASHES, scatter
from diffem.report.curves import comparison_charts
from diffem.report.page import shown_statements, status_text, write_page
from diffem.report.pictures import beside, coloured, data_uri, grid, load_pictures, strip
from diffem.report.record import RunRecord
from diffem.report.verdict import RELAXED, Judgement, relaxed_line, verdict
from diffem.storage.npz import Arrays
from diffem.storage.run_dir import as_given, flatten

Records = Mapping[str, Mapping[int, RunRecord]]
"""What the runs of each row hold, by their seeds."""

OWN = ("run_dir", "resume", "seed", "logger")  # settings that differ between any two runs
CLEAN = "†"  # marks rows that learn from clean images; they are not compared with the others
SHOWN = 4  # held-out measurements of a row
PRIOR = 24  # samples of a row's prior
PICTURES = {
    "heldout": (
        "Held-out measurements",
        "In a row: the measurement, one sample, the mean of samples, their std (the same scale "
        "for all) and, where it is known, the clean image.",
    ),
    "prior": ("Samples of the prior", "The first samples, not chosen."),
}


def write_comparison_page(
    path: Path,
    records: Records,
    *,
    title: str,
    table: Sequence[Sequence[str]],
) -> None:
    """Writes the page.

    Arguments:
        path: The file.
        records: What the runs hold, finished or not.
        title: The title of the page.
        table: The table of scores, its header first.
    """
    best = {row: _best_known(list(seeds.values())) for row, seeds in records.items()}
    shown = {row: found for row, found in best.items() if found}
    charts, axes = comparison_charts(shown)
    pictures = _pictures({row: found[0].run_dir / "figures" for row, found in shown.items()})
    verdicts = {row: _attention(found[0]) for row, found in shown.items() if found[0].final}
    differing = _differing({row: found[0] for row, found in shown.items()})
    parts = {
        "table": "Scores",
        **({"verdict": "What stands out"} if verdicts else {}),
        **({"curves": "Scores over the rounds"} if charts else {}),
        **({"settings": "Settings that differ"} if len(differing) > 1 else {}),
        **{anchor: PICTURES[anchor][0] for anchor in pictures},
    }
    context = {
        "title": title,
        "parts": parts,
        "table": table,
        "clean": clean_mark(table),
        "unfinished": _unfinished(path, records),
        "verdicts": verdicts,
        "legend": _legend(shown),
        "axes": axes,
        "charts": charts,
        "relaxed": _relaxed(shown),
        "differing": differing,
        "pictures": pictures,
    }
    write_page(path, "comparison.html", context)


def clean_mark(rows: Sequence[Sequence[str]]) -> str:
    """Returns the mark of rows that learn from clean images; nothing if a table has none."""
    return CLEAN if any(row[0].endswith(CLEAN) for row in rows) else ""


def _best_known(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Returns the finished runs of a row; where there are none, the first with a round."""
    finished = [record for record in records if record.final]
    return finished or [record for record in records if record.rounds][:1]


def _unfinished(path: Path, records: Records) -> list[dict[str, str]]:
    """Returns a line for each run that has not finished, and where its log is."""
    lines = []
    for row, seeds in records.items():
        for seed, record in seeds.items():
            if record.final:
                continue
            log = record.run_dir.with_name(f"{record.run_dir.name}.log")
            near = log.is_file() and log.is_relative_to(path.parent)
            lines.append(
                {
                    "text": f"{row}, seed {seed}: {status_text(record)}",
                    "log": log.relative_to(path.parent).as_posix() if near else "",
                }
            )
    return lines


def _attention(record: RunRecord) -> list[dict[str, str]]:
    """Returns the statements on a run that ask for attention."""
    statements = verdict(record.summary, record.calibration)
    return shown_statements([s for s in statements if s.judgement is Judgement.ATTENTION])


def _relaxed(shown: Mapping[str, Sequence[RunRecord]]) -> str:
    """Returns which rows have over-relaxed rounds, and what of them does not compare."""
    found = [
        row
        for row, records in shown.items()
        if any(relaxed_line(record.rounds) for record in records)
    ]
    if not found:
        return ""
    return f"Some rounds are over-relaxed (em.relax) of {', '.join(found)}; {RELAXED}."


def _legend(shown: Mapping[str, Sequence[RunRecord]]) -> list[dict[str, Any]]:
    return [
        {"name": row, "colour": i % COLOURS, "dash": DASHES[i // COLOURS % len(DASHES)]}
        for i, row in enumerate(shown)
    ]


# Settings and pictures.


def _differing(records: Mapping[str, RunRecord]) -> list[list[str]]:
    """Returns the table of the settings that are not the same in all rows."""
    settings = {row: flatten(dict(record.config)) for row, record in records.items()}
    keys = dict.fromkeys(key for held in settings.values() for key in held)
    rows = [["setting", *settings]]
    for key in keys:
        values = [as_given(held[key]) if key in held else "–" for held in settings.values()]
        if key and key.split(".")[0] not in OWN and len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _pictures(figures: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Returns the pictures of each row's first run, by the anchor of their part."""
    found = {}
    for name, (_, text) in PICTURES.items():
        held = {row: load_pictures(path / f"{name}.npz") for row, path in figures.items()}
        largest = max((float(np.nanmax(a["std"])) for a in held.values() if "std" in a), default=1)
        images = [
            {"caption": row, "alt": f"{name} of {row}", **picture}
            for row, arrays in held.items()
            if (picture := _picture(arrays, largest, name))
        ]
        if images:
            found[name] = {"text": text, "images": images}
    return found


def _picture(held: Arrays, largest: float, name: str) -> dict[str, str]:
    """Returns one row's picture: an image or, of vectors, a drawing."""
    if "points" in held:
        half = float(np.nanmax(np.abs(held["points"]), initial=1e-6))
        return {"image": "", "drawing": scatter(held["points"], None, name, half)}
    if name == "prior":
        if "samples" not in held:
            return {}
        return {"image": data_uri(grid(held["samples"][:PRIOR])), "drawing": ""}
    if "measurement" not in held:
        return {}
    lines = [held["measurement"], held["samples"][0], held["mean"], coloured(held["std"], largest)]
    lines += [held["truth"]] if "truth" in held else []
    columns = [strip(list(images[:SHOWN])) for images in lines]
    return {"image": data_uri(beside(columns)), "drawing": ""}
