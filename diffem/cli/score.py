"""Says how probable measurements are under what a run learned: `diffem score RUN … --input PATH`.

    diffem score runs/mine --input new --out scores
    diffem score runs/mine --input new --channel corruption.sigma=2 --out scores
    diffem score runs/zeros runs/ones --input new --out scores

Writes scores.csv (log p(y) of each measurement and candidate, with its standard error),
surprise.npy (what the first candidate's prior would not have guessed, of each pixel), and
score.png, the most surprising measurements.
"""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffem.cli.arguments import parse_score
from diffem.cli.errors import report_user_errors
from diffem.cli.input import check_measurements, open_input
from diffem.corruption import LinearChannel
from diffem.data.files import FileRows
from diffem.data.format import new_folder, writing
from diffem.data.held import Held
from diffem.posterior.posterior import chunk_count
from diffem.result import load
from diffem.result.candidate import Candidate
from diffem.result.evidence import EvidenceTable, compare_evidence
from diffem.runtime.errors import UserError
from diffem.runtime.progress import console, progress_bar, warn
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator
from diffem.storage.figure import figures_of

TABLE, MAPS, FIGURE = "scores.csv", "surprise.npy", "score.png"
SURPRISES = ["surprise per entry", "mean surprise of pixels"]
SHOWN = 8  # measurements in the figure
COMPARED = 16  # measurements by which two channels are compared


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores measurements and writes the scores.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_score(arguments)
    with report_user_errors():
        check("--n", chosen.n)
        several = len(chosen.runs) > 1
        channels = [settings(channel) for channel in chosen.channel or [""]]
        results = [load(run, device=chosen.device, trust=chosen.trust) for run in chosen.runs]
        candidates = [
            Candidate.of(result, overrides, name=candidate_name(name, overrides, several))
            for name, result in zip(run_names(chosen.runs), results, strict=True)
            for overrides in channels
        ]
        check_alike(candidates)
        first = results[0]
        held = open_input(chosen, first.format)
        every = torch.arange(len(held.y))
        rows = [FileRows(held, every, c.channel, c.result.scale) for c in candidates]
        for of_candidate in rows:
            check_measurements(of_candidate)
        if len(channels) == 1 and channels[0]:
            own = [FileRows(held, every, r.channel, r.scale) for r in results]
            if all(map(same_law, rows, own)):
                runs = "each run has it" if several else "the run has it"
                warn(
                    f"--channel {' '.join(channels[0])} has no effect: {runs}, or the "
                    "measurements bring their own, as their operators"
                )
        sampling = first.posterior.sampling
        total = len(candidates) * chunk_count(len(every), sampling.chunk_size)
        with new_folder(chosen.out) as folder:
            with progress_bar("evidence", total, "chunks") as advance:
                found = compare_evidence(
                    candidates,
                    rows,
                    n=chosen.n,
                    seed=sampling.chosen(chosen.seed),
                    advance=advance,
                )
            named = held._replace(name=chosen.input.name)  # in place of "--input"
            check_finite(named, found)
            with writing(chosen.out):
                write(folder, named, [c.name for c in candidates], found)
        report(named, [c.name for c in candidates], found)
        with figures_of(chosen.out):
            save_figure(chosen.out / FIGURE, rows[0], found)
        console.print(f"wrote {chosen.out}: {TABLE}, {MAPS}, {FIGURE}", soft_wrap=True)


def settings(channel: str) -> list[str]:
    """Returns the settings that a --channel holds.

    Raises:
        UserError: If a quote is not closed.
    """
    try:
        return shlex.split(channel)
    except ValueError as error:
        raise UserError(
            f"--channel {channel} has a quote that is not closed; close it, or leave it out"
        ) from error


def candidate_name(run: str, overrides: Sequence[str], several: bool) -> str:
    """Returns what the table calls a candidate: its channel, its run, or both."""
    return " ".join([*([run] if several or not overrides else []), *overrides])


def run_names(runs: Sequence[Path]) -> list[str]:
    """Returns what the table calls runs: their directories' names, or paths if two are alike."""
    names = [run.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def check_alike(candidates: Sequence[Candidate]) -> None:
    """Refuses candidates that cannot be compared on the same measurements.

    Raises:
        UserError: If their images have different shapes or units, or two have one name.
    """
    first = candidates[0]
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is given twice; give each run and --channel once")
    for other in candidates[1:]:
        if other.channel.shape != first.channel.shape:
            raise UserError(
                f"{other.result.path} is of images {list(other.channel.shape)}, and "
                f"{first.result.path} of {list(first.channel.shape)}; compare runs of one shape"
            )
        if other.result.scale != first.result.scale:
            raise UserError(
                f"{other.result.path} works in another range of values than "
                f"{first.result.path}; train both with one dataset.range"
            )


def check_finite(held: Held, found: EvidenceTable) -> None:
    """Refuses scores that are not finite, and measurements that all hold nothing.

    Raises:
        UserError: If a measurement has such a score, or nothing was measured in any.
    """
    if not found.entries.any():
        raise UserError(
            f"--input: nothing was measured in any of the {len(found.entries)} measurements of "
            f"{held.name}; give others"
        )
    finite = found.log_evidence.isfinite().all(dim=0) & found.surprise.flatten(1).isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise UserError(
            f"log p(y) of {held.label(row)} is not finite: its values are too far from those that "
            "the run was trained on; mark them by NaN, or leave it out"
        )


def same_law(a: FileRows, b: FileRows) -> bool:
    """Returns whether two channels give the first measurements the same q(y | x) and embedding."""
    x = torch.randn(COMPARED, *a.channel.shape, generator=generator("same law"))
    found = []
    for rows in (a, b):
        channel = rows.channel
        assert isinstance(channel, LinearChannel)
        try:
            measurement = rows.select(slice(COMPARED))
        except UserError:  # one needs what the other has, such as an operator
            return False
        likelihood = channel.log_likelihood(measurement, x[: len(measurement.y)])
        found.append((likelihood, channel.embed(measurement)))
    return all(map(torch.equal, *found))


def write(folder: Path, held: Held, names: Sequence[str], found: EvidenceTable) -> None:
    """Writes the table and the maps of surprise."""
    heads = ["measurement", "entries", *(f"log p(y) {name}" for name in names)]
    heads += [f"error {name}" for name in names]
    several = len(names) > 1
    heads += [f"probability {name}" for name in names] if several else SURPRISES
    pixels = found.surprise.flatten(1).mean(dim=1)
    last = found.probability if several else torch.stack([found.per_entry, pixels])
    with (folder / TABLE).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(heads)
        for row, count in enumerate(found.entries.tolist()):
            numbers = torch.cat([found.log_evidence[:, row], found.error[:, row], last[:, row]])
            cells = [f"{number:.6g}" for number in numbers.tolist()]
            table.writerow([held.label(row), f"{count:.0f}", *cells])
    np.save(folder / MAPS, found.surprise.numpy())


def save_figure(path: Path, rows: FileRows, found: EvidenceTable) -> None:
    """Draws the most surprising measurements, and where they are surprising."""
    from diffem.report.figures import save_surprise  # imports matplotlib

    told = found.entries.nonzero()[:, 0]
    most = told[found.per_entry[told].argsort(descending=True)[:SHOWN]]
    lifted = rows.channel.lift(rows.select(most))
    save_surprise(path, lifted, found.surprise[most], found.per_entry[most].tolist())


def report(held: Held, names: Sequence[str], found: EvidenceTable) -> None:
    """Prints how often each candidate is the most probable one, or what is most surprising."""
    told = found.entries.nonzero()[:, 0]
    if count := len(found.entries) - len(told):
        warn(
            f"nothing was measured in {count} of {len(found.entries)} measurements, and they are "
            "left out of what follows"
        )
    if len(names) > 1:
        log = found.log_evidence[:, told]
        for k, name in enumerate(names):
            if any(map(log[k].equal, log[:k])):
                warn(
                    f"{name} gives the numbers of a candidate before it, which is the one that is "
                    "counted; what measurements bring, as their operators, no setting changes"
                )
        best = log.argmax(dim=0)
        total = log.mean(dim=1)
        for k, name in enumerate(names):
            console.print(
                f"{name}: the most probable one for {int((best == k).sum())} of "
                f"{len(best)} measurements, log p(y) {total[k]:.2f} in the mean",
                soft_wrap=True,
            )
        return
    per_entry = found.per_entry[told]
    console.print(
        f"-log p(y) per measured entry: mean {per_entry.mean():.3f}, from {per_entry.min():.3f} "
        f"to {per_entry.max():.3f} ({held.label(int(told[per_entry.argmax()]))})",
        soft_wrap=True,
    )
