"""How well figures without ground truth agree with the truth, over the rounds of finished runs.

    diffem compare --study trust --out runs/trust --jobs 16
    python -m bench.trust runs/trust

Reads the runs of a comparison's folder, and prints tables in Markdown: a row for each figure, a
column for each channel.

    rank correlations   Spearman's, of a figure with the PSNR of the mean of a few samples, with
                        that of the posterior's mean, which their spread does not lower, and with
                        the Fréchet distance of the reconstructions; 1 if the figure orders as the
                        truth does, whichever values of it are better
      over rounds       within a run: the mean over runs, and the lowest in brackets
      over methods      of the last rounds of the runs of one seed
      over both         of all rounds of the runs of one seed
    picked rounds       the PSNR of the mean in the best round less that in the round which the
                        figure picks: the mean over runs, and the largest in brackets

Round 0, which no network drew, is left out. The Fréchet distance is in the run's first feature
space, or of pixels, between all reconstructions of a round and the clean training images; a round
that keeps chunks, or is over-relaxed, has none. Of a run that `em.stop` ended, the best round is
looked for in the run without `em.stop` too, where the comparison has it: with `em.restart=true`
both have the same rounds.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from diffem.cli.comparison import RECORD, read_comparison
from diffem.cli.errors import report_user_errors
from diffem.cli.evaluate import build_finished_data, compose_finished
from diffem.cli.launch import quiet
from diffem.config.build import build
from diffem.metric import Evaluation, Score, distribution_scores, frechet_pixels
from diffem.metric.diversity import POSTERIOR_STD
from diffem.metric.energy import MEASUREMENT_P
from diffem.metric.residual_law import RESIDUAL_FREQUENCY, RESIDUAL_PIXEL
from diffem.report.comparison import markdown
from diffem.report.record import read_record
from diffem.result import read_weights
from diffem.result.result import POSTERIOR, weights_folder
from diffem.runtime.errors import UserError
from diffem.runtime.progress import progress_bar
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.rows import are_samples
from diffem.storage.run_dir import RECONSTRUCTIONS

PSNR, POSTERIOR_MEAN, FD = "psnr_mean", "psnr_posterior_mean", "fd"
DIRECTIONS = {RESIDUAL_PIXEL.name: -1, RESIDUAL_FREQUENCY.name: -1, MEASUREMENT_P.name: 1}
"""1 if larger values of a figure are better, -1 if smaller ones: where its `Score` has none."""
FEWEST = 3  # points of a rank correlation
STOP = ("em/stop=", "em.stop")  # settings of the stopping rule


@dataclass(frozen=True)
class Point:
    """A round of a run.

    Attributes:
        number: The round.
        figures: Its figures without ground truth, larger is better.
        truth: What the truth says of it, larger is better: `psnr_mean`, and `psnr_posterior_mean`
            and `fd` if they are known.
    """

    number: int
    figures: Mapping[str, float]
    truth: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A finished run: its rounds but round 0.

    Attributes:
        row: The row of the comparison.
        seed: Its seed.
        overrides: What it was started with.
        points: The rounds.
    """

    row: str
    seed: int
    overrides: Sequence[str]
    points: Sequence[Point]

    @property
    def channel(self) -> str:
        """The settings of its data and its channel."""
        chosen = [o for o in self.overrides if o.startswith(("corruption", "dataset"))]
        return " ".join(chosen) or "default"

    @property
    def stopped(self) -> bool:
        """Whether it is under a stopping rule."""
        return any(o.startswith(STOP) for o in self.overrides)

    @property
    def em(self) -> tuple[str, ...]:
        """What it shares with the run without a stopping rule: its seed and other settings."""
        return tuple(o for o in self.overrides if not o.startswith((*STOP, "run_dir=")))

    @property
    def best(self) -> float:
        """The PSNR of the mean in its best round, in dB."""
        return max(point.truth[PSNR] for point in self.points)


def read_runs(out: Path) -> list[Run]:
    """Returns the finished runs of a comparison's folder.

    Arguments:
        out: The folder.

    Raises:
        UserError: If the folder holds no comparison or no finished run with rounds of a network,
            or the clean images of a run are not known.
    """
    if not (out / RECORD).is_file():
        raise UserError(f"{out} holds no comparison; give the --out of a diffem compare")
    _, rows = read_comparison(out)
    places = [(row, seed, path) for row, seeds in rows.items() for seed, path in seeds.items()]
    runs = []
    with progress_bar("runs", len(places), "runs") as advance:
        for row, seed, path in places:
            if read_record(path).final:
                runs.append(read_run(path, row, seed))
            advance()
    runs = [run for run in runs if run.points]
    if not runs:
        raise UserError(f"{out} holds no finished run with rounds of a network; run it first")
    return runs


def read_run(run_dir: Path, row: str, seed: int) -> Run:
    """Returns a finished run.

    Arguments:
        run_dir: The run directory.
        row: The row of the comparison.
        seed: Its seed.

    Raises:
        UserError: If its clean images are not known, or its data or weights cannot be read.
    """
    record = read_record(run_dir)
    rounds = [row for row in record.rounds if row["round"] > 0]
    if any(round.get(PSNR) is None for round in rounds):
        raise UserError(
            f"{run_dir} has no {PSNR} of its rounds: without clean images there is nothing to "
            "compare figures with"
        )
    weights = read_weights(weights_folder(run_dir) / POSTERIOR)
    cfg = compose_finished(run_dir, weights)
    evaluation: Evaluation = build(cfg.metric, "metric")
    train, _ = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
    store = ReconstructionStore(
        run_dir / RECONSTRUCTIONS, size=len(train), chunk_size=cfg.em.chunk_size
    )
    drawn = [round["round"] for round in rounds if are_samples(round)]
    distances = frechet_distances(store, drawn, train.known_truth("bench.trust"), evaluation)
    figures = evaluation.truth_free
    points = []
    for round in rounds:
        values = {score.name: _oriented(score, round.get(score.name)) for score in figures}
        truth = {PSNR: float(round[PSNR]), **distances.get(round["round"], {})}
        if POSTERIOR_STD.name in round:
            spread, n = round[POSTERIOR_STD.name], record.summary["samples"]
            truth |= posterior_mean(truth[PSNR], spread, n)
        known = {name: value for name, value in values.items() if value is not None}
        points.append(Point(round["round"], known, truth))
    return Run(row, seed, record.overrides, points)


def posterior_mean(psnr_mean: float, std: float, samples: int) -> dict[str, float]:
    """Returns `psnr_posterior_mean`, which the mean of infinitely many samples would have, in dB.

    The mean of n samples errs by the posterior mean's squared error and 1/n of their variance.

    Arguments:
        psnr_mean: The PSNR of the mean of some samples, in dB, of images in [-1, 1].
        std: The samples' standard deviation.
        samples: Their number n.

    Returns:
        It; nothing where the variance alone is above the error.
    """
    error = 4 * 10 ** (-psnr_mean / 10) - std**2 / samples
    return {POSTERIOR_MEAN: 10 * math.log10(4 / error)} if error > 0 else {}


def _oriented(score: Score, value: object) -> float | None:
    """Returns a figure such that larger is better; one of which neither is better as it is."""
    if not isinstance(value, int | float):
        return None
    if score.expected is not None:
        return -abs(value - score.expected)
    direction = DIRECTIONS.get(score.name, -1 if score.better == "lower" else 1)
    return direction * float(value)


def frechet_distances(
    store: ReconstructionStore, rounds: Sequence[int], true: Tensor, evaluation: Evaluation
) -> dict[int, dict[str, float]]:
    """Returns `fd` of rounds: less the Fréchet distance of their reconstructions from true images.

    Arguments:
        store: The reconstructions.
        rounds: The rounds; one whose reconstructions are gone is left out.
        true: The clean training images, (N, *shape).
        evaluation: What the run evaluates; its first feature space is taken, or that of pixels.
    """
    kept = [k for k in rounds if store.is_intact(k)]
    sets = {str(k): store.open(k).__getitems__(range(len(true))).x for k in kept}
    if not evaluation.features:
        return {k: {FD: -frechet_pixels(sets[str(k)], true)} for k in kept}
    space = evaluation.features[0]
    found = distribution_scores([space], sets, true)
    return {k: {FD: -found[str(k)][space.scores[0].name]} for k in kept}


def correlation(points: Iterable[Point], figure: str, truth: str) -> float | None:
    """Returns Spearman's rank correlation of a figure with the truth.

    Arguments:
        points: Rounds; those without one of both are left out.
        figure: The figure.
        truth: A key of `Point.truth`.

    Returns:
        It; None of fewer than three points, or where all values are equal.
    """
    pairs = [
        (point.figures[figure], point.truth[truth])
        for point in points
        if figure in point.figures and truth in point.truth
    ]
    if len(pairs) < FEWEST or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return float(np.corrcoef(rankdata(pairs, axis=0), rowvar=False)[0, 1])


def over_rounds(runs: Sequence[Run], figure: str, truth: str) -> list[float]:
    """Returns the correlation within each run, of those that have one."""
    return _known(correlation(run.points, figure, truth) for run in runs)


def over_methods(runs: Sequence[Run], figure: str, truth: str) -> list[float]:
    """Returns the correlation of the last rounds of each seed's runs."""
    return _known(
        correlation([run.points[-1] for run in of_seed], figure, truth)
        for of_seed in _by_seed(runs)
    )


def over_both(runs: Sequence[Run], figure: str, truth: str) -> list[float]:
    """Returns the correlation of all rounds of each seed's runs."""
    return _known(
        correlation([point for run in of_seed for point in run.points], figure, truth)
        for of_seed in _by_seed(runs)
    )


SCOPES = {over_rounds: "over rounds", over_methods: "over methods", over_both: "over both"}


def losses(runs: Sequence[Run], figure: str, every: Sequence[Run]) -> list[float]:
    """Returns what picking a round by a figure costs in each run, in dB of PSNR of the mean.

    Arguments:
        runs: The runs.
        figure: The figure, of which the first of the best rounds is picked.
        every: All runs of the comparison, in which the best round may be.
    """
    found = []
    for run in runs:
        scored = [point for point in run.points if figure in point.figures]
        if len(scored) < len(run.points):
            continue
        best = max(other.best for other in every if other.em == run.em)
        picked = max(scored, key=lambda point: point.figures[figure])
        found.append(best - picked.truth[PSNR])
    return found


def _by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    seeds = dict.fromkeys(run.seed for run in runs)
    return [[run for run in runs if run.seed == seed] for seed in seeds]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def table(
    runs: Sequence[Run],
    values: Callable[[Sequence[Run], str], list[float]],
    *,
    worst: Callable[[Sequence[float]], float] = min,
) -> str:
    """Returns a table in Markdown: a row for each figure, a column for each channel.

    Arguments:
        runs: The runs.
        values: Returns the values of the runs of a channel for a figure.
        worst: What of them stands in brackets behind their mean.
    """
    channels = list(dict.fromkeys(run.channel for run in runs))
    lines = [["figure", *channels]]
    for name in dict.fromkeys(name for run in runs for p in run.points for name in p.figures):
        cells = []
        for channel in channels:
            found = values([run for run in runs if run.channel == channel], name)
            cells.append(f"{mean(found):.2f} ({worst(found):.2f})" if found else "–")
        if any(cell != "–" for cell in cells):
            lines.append([f"`{name}`", *cells])
    return markdown(lines)


def report(runs: Sequence[Run]) -> str:
    """Returns all tables."""
    compared = [run for run in runs if not run.stopped]
    stopped = [run for run in runs if run.stopped]
    parts = []
    truths = {PSNR: "PSNR of mean", POSTERIOR_MEAN: "PSNR of the posterior's mean"}
    for truth, label in {**truths, FD: "Fréchet distance"}.items():
        for scope, where in SCOPES.items():
            body = table(compared, lambda some, name, s=scope, t=truth: s(some, name, t))
            parts.append(f"Rank correlation with the {label}, {where}\n\n{body}")
    for some, title in ((compared, "Picked round"), (stopped, "Picked round under em.stop")):
        if some:
            body = table(some, lambda part, name: losses(part, name, runs), worst=max)
            parts.append(f"{title}: dB of PSNR of mean below the best round\n\n{body}")
    rows = ", ".join(dict.fromkeys(run.row for run in runs))
    return f"{len(runs)} runs: {rows}\n\n" + "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables of a comparison's folder.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench.trust",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="the folder of a comparison (diffem compare)")
    chosen = parser.parse_args(arguments)
    with report_user_errors(), quiet():
        print(report(read_runs(chosen.out)))


if __name__ == "__main__":
    main()
