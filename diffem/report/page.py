"""The page of a run, `report.html`: one file that shows all that a run directory holds.

It has its pictures, its style and its script in itself, and a policy by which a browser refuses
every request.
"""

import base64
import functools
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from diffem import __version__
from diffem.report.chart import scatter
from diffem.report.curves import run_charts, shown_scores
from diffem.report.pictures import (
    beside,
    data_uri,
    grid,
    load_pictures,
    round_strips,
    strip,
)
from diffem.report.record import RunRecord, read_record, round_seconds
from diffem.report.verdict import (
    Judgement,
    Statement,
    is_current,
    next_steps,
    relaxed_line,
    verdict,
)
from diffem.storage.atomic import write_file
from diffem.storage.npz import Arrays
from diffem.storage.run_dir import PAGE
from diffem.storage.status import RunStatus, State

TEMPLATES = Path(__file__).parent / "templates"
ROUNDS = 16  # on the slider, at most
PAIRS = 6  # samples of the prior beside one another, each above what is nearest
GENERATOR = '<meta name="generator" content="diffem'
"""What the head of each page of diffem has."""
SIGNS = {Judgement.GOOD: "✓", Judgement.ATTENTION: "!", Judgement.UNKNOWN: "?"}
PATIENCE = 3  # times a round's seconds: a page that is older may be of a run that has ended
SLACK = 120.0  # seconds on top
WIDE_STD = 1e-3  # the least standard deviation that the brightest colour stands for

Row = Mapping[str, Any]


def write_run_page(
    run_dir: Path, status: RunStatus | None = None, *, out: Path | None = None
) -> Path:
    """Writes the page of a run.

    Arguments:
        run_dir: The run directory, of a run at any point.
        status: Where the run is, if its own process asks.
        out: The file; None for `report.html` in the run directory.

    Returns:
        The file.
    """
    path = run_dir / PAGE if out is None else out
    write_page(path, "run.html", run_context(read_record(run_dir, status)))
    return path


def _code(text: str) -> Markup:
    """Returns a text in which what is between backticks is set as code."""
    parts = (escape(part) for part in text.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts)
    )


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Writes a page of a template, atomically.

    Arguments:
        path: The file.
        template: The name of the template.
        context: What it shows.
    """
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    html = (
        _environment()
        .get_template(template)
        .render(
            **context,
            version=__version__,
            written=written,
            style=(TEMPLATES / "page.css").read_text(),
            script=(TEMPLATES / "page.js").read_text(),
        )
    )
    content = html.encode(errors="replace")  # a path may hold bytes that are no text
    write_file(path, lambda file: file.write(content))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment


def run_context(record: RunRecord) -> dict[str, Any]:
    """Returns what the page of a run shows.

    Arguments:
        record: What its directory holds.
    """
    statements = verdict(record.summary, record.calibration)
    charts, axes = run_charts(record)
    figures = record.run_dir / "figures"
    rounds = _rounds(figures, [row["round"] for row in record.rounds])
    samples = _samples(figures, record)
    calibration = _calibration(record)
    # Of a finished run that was given more rounds, those are of the result before.
    prior = _prior(load_pictures(figures / "prior.npz")) if record.final else {}
    parts = {
        "verdict": "Verdict",
        **({"curves": "Scores over the rounds"} if charts else {}),
        **({"rounds": "The same measurements, round by round"} if rounds else {}),
        **({"samples": "Several samples of one measurement"} if samples else {}),
        **({"calibration": "Calibration"} if calibration else {}),
        **({"prior": "Samples of the prior"} if prior else {}),
        "cost": "Cost",
        "settings": "Settings",
    }
    running = record.status.state is State.RUNNING
    seconds = sum(round_seconds(row) for row in record.rounds[-1:])
    return {
        "title": run_title(record),
        "where": str(record.run_dir.absolute()),
        "state": record.status.state.value,
        "status": status_text(record),
        "running": running,
        "seconds": f"{time.time():.0f}",
        "patience": f"{PATIENCE * seconds + SLACK:.0f}",
        "again": shlex.join(["diffem", "report", str(record.run_dir)]),
        "parts": parts,
        "statements": shown_statements(statements),
        "steps": [
            step.replace("RUN", shlex.quote(str(record.run_dir)))
            for step in next_steps(statements)
        ],
        "charts": charts,
        "axes": axes,
        "values": _values(record),
        "relaxed": relaxed_line(record.rounds),
        "rounds": rounds,
        "samples": samples,
        "calibration": calibration,
        "prior": prior,
        "cost": _cost(record),
        "command": shlex.join(["diffem", "train", *record.overrides]),
        "versions": [["package", "version"], *map(list, _versions(record).items())],
        "config": yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True),
    }


def run_title(record: RunRecord) -> str:
    """Returns a run's choices and seed; the folder's name where they are not known."""
    keys = ("dataset", "corruption", "method")
    if not all(key in record.summary for key in keys):
        return record.run_dir.name
    choices = " · ".join(str(record.summary[key]) for key in keys)
    return f"{choices} · seed {record.summary.get('seed')}"


def shown_statements(statements: Sequence[Statement]) -> list[dict[str, str]]:
    """Returns statements as the templates show them."""
    return [
        {
            "topic": s.topic,
            "text": s.text,
            "judgement": s.judgement.value,
            "sign": SIGNS[s.judgement],
            "css": s.judgement.name.lower(),
        }
        for s in statements
    ]


def status_text(record: RunRecord) -> str:
    """Returns where a run is and what happened, in a sentence or two."""
    status, last = record.status, record.rounds[-1:] or [{}]
    of = "" if record.planned is None else f" of {record.planned}"
    at = f"round {last[0]['round']}{of}" if record.rounds else "no round yet"
    wall = duration(float(record.summary.get("wall_seconds") or 0.0))
    step = f", then {record.last_step}" if record.last_step else ""
    if status.state is State.RUNNING:
        return f"Running when this page was written: {at} is done{step}, after {wall}."
    again = shlex.join(["diffem", "train", f"resume={record.run_dir}"])
    if record.damaged:  # which a run has once it is finished
        finished = f"Finished: {at}" if record.rounds else "Finished"
        return (
            f"{finished}. {record.run_dir / 'summary.json'} is damaged, and what it holds is "
            f"not shown: move it away, and {again} writes it again."
        )
    if status.state is State.FINISHED:
        return f"Finished: {at}, in {wall}."
    where = f"after {at}{step}" if record.rounds else "before the first round was done"
    resume = f"It can be resumed: {again}"
    if status.state is State.LOST:
        return (
            f"Ended without a message {where}: its process was killed, or its machine went down. "
            f"{resume}"
        )
    stopped = status.state is State.STOPPED
    reason = status.reason.partition(";")[0] if stopped else status.reason.rstrip(".")
    return f"{'Stopped' if stopped else 'Failed'} {where} ({reason}). {resume}"


def duration(seconds: float) -> str:
    """Returns a time as text: seconds, minutes or hours."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6 * 3600 else f"{seconds / 3600:.1f} h"


def _values(record: RunRecord) -> list[list[str]]:
    """Returns the table of all scores of the rounds and of the held-out measurements."""
    rows = [(str(row["round"]), row) for row in record.rounds]
    rows += [("held-out", record.final)] if record.final else []
    scores = [
        s for s in shown_scores(record) if any(row.get(s.name) is not None for _, row in rows)
    ]
    return [
        ["round", *(score.title for score in scores)],
        *([name, *(s.text(row.get(s.name)) for s in scores)] for name, row in rows),
    ]


# Pictures.


def _rounds(figures: Path, numbers: Sequence[int]) -> dict[str, Any]:
    """Returns the columns of the slider over rounds; nothing where no round has pictures."""
    held = {k: load_pictures(figures / f"round_{k:03d}.npz") for k in _spread(numbers)}
    held = {k: arrays for k, arrays in held.items() if arrays}
    if not held:
        return {}
    dropped = ""
    if len(numbers) > ROUNDS:
        dropped = f"{ROUNDS} of the {len(numbers)} rounds are shown, at even distances."
    common = {"numbers": list(held), "dropped": dropped}
    if all("points" in arrays for arrays in held.values()):
        return common | _scatters(held)
    held = {k: arrays for k, arrays in held.items() if "measurement" in arrays}
    if not held:
        return {}
    last = held[max(held)]
    largest = max(WIDE_STD, *(float(np.nanmax(a["std"])) for a in held.values()))
    strips = {k: round_strips(figures / f"round_{k:03d}.npz", largest=largest) for k in held}
    count = len(last["measurement"])
    columns = [_column("measure\u00adment", f"{count} measurements", fixed=last["measurement"])]
    for name, label in (
        ("reconstruction", "one sample"),
        ("mean", "mean of samples"),
        ("std", "std of each pixel"),
    ):
        column = _column(label, f"{label} of {count} measurements")
        column["images"] = {k: found[name] for k, found in strips.items() if name in found}
        columns.append(column)
    if "truth" in last:
        columns.append(_column("truth", f"{count} clean images", fixed=last["truth"]))
    return common | {"numbers": list(held), "columns": columns, "largest": f"{largest:.2f}"}


def _column(name: str, alt: str, *, fixed: np.ndarray | None = None) -> dict[str, Any]:
    """Returns a column of the slider; `fixed` are images that are the same in all rounds."""
    shown = "" if fixed is None else data_uri(strip(list(fixed)))
    return {"name": name, "alt": alt, "fixed": shown, "images": {}, "drawings": {}}


def _scatters(held: Mapping[int, Arrays]) -> dict[str, Any]:
    """Returns the column of rounds of vectors."""
    truth = next((a["true_points"] for a in held.values() if "true_points" in a), None)
    everything = [a["points"] for a in held.values()] + ([] if truth is None else [truth])
    half = max(float(np.nanmax(np.abs(cloud), initial=1e-6)) for cloud in everything)
    column = _column("samples", "")
    column["drawings"] = {
        k: scatter(a["points"], truth, f"Samples of round {k}", half) for k, a in held.items()
    }
    return {"columns": [column], "largest": "", "truth": truth is not None}


def _spread(numbers: Sequence[int]) -> list[int]:
    """Returns at most `ROUNDS` of the rounds, at even distances, with the first and the last."""
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), ROUNDS)).round().astype(int)
    return [numbers[i] for i in places]


def _samples(figures: Path, record: RunRecord) -> dict[str, Any]:
    """Returns each measurement's samples beside one another; held-out ones once it is finished."""
    name, whose = "heldout", "Held-out measurements"
    held = load_pictures(figures / "heldout.npz") if record.final else {}
    if not held and record.rounds:
        k = record.rounds[-1]["round"]
        name, whose = f"round_{k:03d}", f"Training measurements of round {k}"
        held = load_pictures(figures / f"{name}.npz")
    if "measurement" not in held:
        return {}
    samples, truth = held["samples"], held.get("truth")
    last = " and the clean image" if truth is not None else ""
    images = [
        data_uri(strip([y, *samples[:, i], *(() if truth is None else [truth[i]])], across=True))
        for i, y in enumerate(held["measurement"])
    ]
    what = f"{len(samples)} samples{last}"
    text = (
        f"{whose}: in a row the measurement, {what}. Where samples differ, the measurement does "
        "not say."
    )
    return {"text": text, "what": what, "images": images}


def _calibration(record: RunRecord) -> dict[str, Any]:
    """Returns the figure of the newest calibration, and what it does not see."""
    file = record.calibration_file
    if file is None or not is_current(record.calibration, record.rounds):
        return {}
    path = record.run_dir / "figures" / f"{file.stem}.png"
    if path.is_symlink() or not path.is_file():
        return {}
    content = base64.b64encode(path.read_bytes()).decode()
    blind = record.calibration.get("blind_spots")
    return {
        "name": file.name,
        "image": f"data:image/png;base64,{content}",
        "blind": [str(spot) for spot in blind] if isinstance(blind, list) else [],
    }


def _prior(held: Arrays) -> dict[str, Any]:
    """Returns samples of the prior, and those nearest to a training reconstruction."""
    found: dict[str, Any] = {"pairs": [], "text": "", "grid": "", "count": 0, "drawing": ""}
    if "points" in held:
        half = float(np.nanmax(np.abs(held["points"]), initial=1e-6))
        return found | {"drawing": scatter(held["points"], None, "Samples of the prior", half)}
    if "samples" not in held:
        return {}
    found |= {"count": len(held["samples"]), "grid": data_uri(grid(held["samples"]))}
    if "pair" in held:
        below = [strip(list(pair)) for pair in zip(held["pair"], held["nearest"], strict=True)]
        found["pairs"] = [
            data_uri(beside(below[i : i + PAIRS])) for i in range(0, len(below), PAIRS)
        ]
        distances = held["distance"]
        found["text"] = (
            f"Of {found['count']} samples the {len(below)} closest to a training reconstruction, "
            "each above the one that is nearest to it, from left to right "
            f"{distances[0]:.3f} to {distances[-1]:.3f} apart (root mean square over pixels). "
            "Pairs that look the same are copies; distances of pixels do not see a copy that was "
            "shifted."
        )
    return found


# Cost and settings.


def _cost(record: RunRecord) -> list[list[str]]:
    """Returns what the run cost so far."""
    rounds = record.rounds
    rows = [["of", "cost"], *_spent(rounds)]
    if wall := record.summary.get("wall_seconds"):
        rows.append(["the run so far, with evaluation", duration(wall)])
    if isinstance(devices := record.summary.get("devices"), Mapping):
        known = {"accelerator": "–", "devices": "–", "num_nodes": "–", **devices}
        rows.append(["devices", "{devices} × {accelerator}, nodes: {num_nodes}".format_map(known)])
    return rows


def _spent(rounds: Sequence[Row]) -> Iterator[list[str]]:
    if not rounds:
        return
    yield ["rounds after the init", str(rounds[-1]["round"])]
    for key, label in (("e_step_seconds", "E-steps"), ("m_step_seconds", "M-steps")):
        yield [label, duration(sum(row[key] for row in rounds))]
    for key, label in (("optimizer_steps", "optimiser steps"), ("nfe", "NFE (images)")):
        if isinstance(value := rounds[-1].get(key), int | float):
            yield [label, f"{value:,.0f}"]


def _versions(record: RunRecord) -> dict[str, str]:
    versions = record.summary.get("versions")
    found = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
    return {"diffem": __version__, **found}
