"""Does `diffem score` find measurements of a class that the run never saw?

    python -m bench.unseen run 3 --seed 0 --out runs/unseen
    python -m bench.unseen summary runs/unseen

`run` leaves one of the ten digits out of the training images, masks half of the pixels of the
others, trains by `diffem train` on these measurements alone, and scores measurements of the
held-out images of all classes by `diffem score`. It prints a line of JSON, the areas under the
receiver operating characteristic (AUROC) of the class that was left out against the others:

    evidence   -log p(y) over the number of measured entries, `surprise per entry`
    map        the mean of the map of surprise, `mean surprise of pixels`
    gaussian   as evidence, of a Gaussian that is fitted to the same measurements: the baseline

It is a process of one class and seed; one that is finished prints its line again. `summary` joins
the lines into a table in Markdown.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.distributions import MultivariateNormal

from bench.processes import run
from diffem.cli.score import SURPRISES
from diffem.corruption import GaussianNoise, LinearChannel, Mask, Measurement, make_channel
from diffem.data import Digits
from diffem.posterior.gaussian import fit_gaussian
from diffem.runtime.rng import generator, seeded
from diffem.storage.atomic import read_json, write_text

CLASSES = 10
SHAPE, TRAIN, RHO, NOISE = (1, 8, 8), 1500, 0.5, 0.05
SETTINGS = (
    "dataset=measurements",
    "dataset.range=[-1,1]",
    "corruption=mask",
    f"corruption.noise.std={NOISE}",
    "em.relax=null",
    "prior.steps=1000",
    "metric.heldout=64",
)
SCORES = ("evidence", "map", "gaussian")
RESULT = "result.json"


def channel() -> LinearChannel:
    """Returns the channel: half of the pixels, and white noise."""
    return make_channel(Mask(SHAPE, rho=RHO), GaussianNoise(NOISE))


def measure_digits(digit: int, seed: int) -> tuple[Measurement, Measurement, Tensor]:
    """Returns measurements of digits; those of one seed differ in what is left out alone.

    Arguments:
        digit: The class that is left out of the training.
        seed: The seed of masks and noise.

    Returns:
        The training's measurements; the held-out ones; and 1 for those of the class, (N,).
    """
    images, labels = (Digits(SHAPE, train=TRAIN).load(), Digits(SHAPE, train=TRAIN).labels())
    train = channel().draw(images.train, generator(seed, "unseen", "train"))
    heldout = channel().draw(images.heldout, generator(seed, "unseen", "heldout"))
    return train.select(labels.train != digit), heldout, (labels.heldout == digit).int()


def save(path: Path, measurement: Measurement) -> None:
    """Saves measurements as a file that dataset.path takes."""
    np.savez(path, y=measurement.y.numpy(), operator=measurement.operator.numpy())


def gaussian_surprise(train: Measurement, heldout: Measurement, seed: int) -> list[float]:
    """Returns -log p(y) per measured entry under a Gaussian that is fitted to measurements.

    Arguments:
        train: The measurements to fit it to.
        heldout: Those to score, (N, …).
        seed: The seed of the fit.
    """
    size = int(np.prod(SHAPE))
    with seeded(seed, "unseen", "gaussian"):
        fitted = fit_gaussian(channel(), train, rank=size, iterations=16)
    loc, cov = fitted.prior_mean, torch.diag(fitted.cov.D) + fitted.cov.V @ fitted.cov.V.mT
    found = []
    for y, mask in zip(heldout.y.flatten(1), heldout.operator, strict=True):
        seen = mask.expand(SHAPE).flatten() > 0
        own = cov[seen][:, seen] + NOISE**2 * torch.eye(int(seen.sum()), dtype=cov.dtype)
        law = MultivariateNormal(loc[seen], own)
        found.append(-float(law.log_prob(y[seen].double())) / max(int(seen.sum()), 1))
    return found


def measure(digit: int, seed: int, out: Path, settings: Sequence[str], n: int) -> dict[str, Any]:
    """Trains without a class, scores held-out measurements, and returns the AUROC of each score.

    Arguments:
        digit: The class that is left out.
        seed: The seed of the measurements and of the run.
        out: The folder of all classes and seeds.
        settings: Settings of the run, besides those of the measurement.
        n: The number of estimates of the evidence.

    Raises:
        RuntimeError: If the run or the scoring fails.
    """
    folder = out / f"digit_{digit}" / f"seed_{seed}"
    file = folder / RESULT
    asked = {"digit": digit, "seed": seed, "n": n, "settings": list(settings)}
    held = read_json(file)
    if held is not None:
        if {name: held.get(name) for name in asked} != asked:
            raise RuntimeError(f"{file} is of other settings; choose another --out")
        return held
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout, unseen = measure_digits(digit, seed)
    save(folder / "train.npz", train)
    save(folder / "heldout.npz", heldout)
    paths = (f"dataset.path={folder / 'train.npz'}", f"run_dir={folder / 'run'}")
    run("-m", "diffem", "train", *SETTINGS, *paths, f"seed={seed}", "resume=auto", *settings)
    scores = folder / "scores"
    if not scores.exists():
        given = ("--input", str(folder / "heldout.npz"), "--out", str(scores), "--n", str(n))
        run("-m", "diffem", "score", str(folder / "run"), *given)
    with (scores / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    evidence, surprise = ([float(row[name]) for row in rows] for name in SURPRISES)
    every = (evidence, surprise, gaussian_surprise(train, heldout, seed))
    auroc = {
        name: float(roc_auc_score(unseen.numpy(), values))
        for name, values in zip(SCORES, every, strict=True)
    }
    found = {**asked, "measurements": len(evidence), "unseen": int(unseen.sum()), **auroc}
    write_text(file, json.dumps(found) + "\n")
    return found


def summary(out: Path) -> str:
    """Returns a table in Markdown: the AUROC of each class, and their mean, over seeds.

    Arguments:
        out: The folder of all classes and seeds.

    Raises:
        RuntimeError: If it holds no results, or a seed lacks a class.
    """
    found = [json.loads(file.read_text()) for file in sorted(out.glob(f"digit_*/seed_*/{RESULT}"))]
    seeds = sorted({each["seed"] for each in found})
    if not seeds:
        raise RuntimeError(f"{out} holds no results; python -m bench.unseen run DIGIT makes them")
    digits = sorted({each["digit"] for each in found})
    table = {(each["digit"], each["seed"]): each for each in found}
    if missing := [(d, s) for d in range(CLASSES) for s in seeds if (d, s) not in table]:
        raise RuntimeError(
            "missing: " + ", ".join(f"digit {digit} of seed {seed}" for digit, seed in missing)
        )
    lines = [f"| class left out | {' | '.join(SCORES)} |", "| --- |" + " --- |" * len(SCORES)]
    for digit in digits:
        values = [[table[digit, seed][name] for seed in seeds] for name in SCORES]
        lines.append(f"| {digit} | " + " | ".join(map(_text, values)) + " |")
    means = [
        [mean(table[digit, seed][name] for digit in digits) for seed in seeds] for name in SCORES
    ]
    lines.append("| mean | " + " | ".join(map(_text, means)) + " |")
    return "\n".join(lines) + f"\n\n{len(seeds)} seeds; AUROC, mean ± deviation over seeds\n"


def _text(values: Sequence[float]) -> str:
    """Returns the mean of seeds, and their deviation if there are several."""
    more = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{more}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures one class and seed, or joins what was measured.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With a sentence if something is missing or fails.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench.unseen",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="measures one class and seed")
    one.add_argument("digit", type=int, choices=range(CLASSES), help="the class left out")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--n", type=int, default=16, help="estimates of the evidence")
    one.add_argument("--out", type=Path, required=True, help="the folder of classes and seeds")
    one.add_argument(
        "--settings", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the run"
    )
    both = commands.add_parser("summary", help="joins what was measured")
    both.add_argument("out", type=Path, help="the folder of classes and seeds")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "summary":
            print(summary(chosen.out))
            return
        out = chosen.out.resolve()
        found = measure(chosen.digit, chosen.seed, out, chosen.settings, chosen.n)
        print(json.dumps(found))
    except RuntimeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
