"""`python -m bench.sequences STUDY ROW SEED`: runs that continue one another (docs/memory.md).

    python -m bench.sequences digits replay 0       one row and seed, one run after the other
    python -m bench.sequences digits --table        the table of what is finished

Runs go to runs/sequences/STUDY/ROW/seed_SEED/RUN (--out names another folder). Finished ones are
kept, so that the same command resumes. The row `joint` learns from the measurements of all runs at
once; what it is evaluated on are those held out by runs of a single step, which stand for the
others.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
JOINT = "joint"
STUB = ("em.rounds=1", "em.steps_per_round=1", "init=measurement")


@dataclass(frozen=True)
class Arrivals:
    """Runs on measurements that arrive one after the other."""

    common: tuple[str, ...]
    """The overrides of all runs."""
    tasks: tuple[tuple[str, ...], ...]
    """Those of each run."""
    joint: tuple[str, ...]
    """Those of a run on all measurements."""
    size: int
    """About the number of measurements of a run."""
    rounds: tuple[int, int] = (4, 4)
    """The rounds of the first run, and of each of the others."""


DIGITS = (
    *("network.blocks=[2,2]", "em.batch_size=64", "em.steps_per_round=250"),
    *("em.relax=null", "metric.samples=4"),
)
LEVELS = (0.05, 0.075, 0.1, 0.15, 0.2)
PAIRS = ("[0,1]", "[2,3]", "[4,5]", "[6,7]", "[8,9]")
FASHION = (
    *("dataset=fashion_mnist", "dataset.train=5000", "corruption=mask"),
    *("network.channels=[16,32]", "network.blocks=[2,2]", "em.batch_size=64"),
    *("em.steps_per_round=150", "sampler.steps=14", "em.relax=null", "metric.samples=4"),
)
STUDIES = {
    "digits": Arrivals(
        DIGITS,
        (("dataset.only=[0,1,2,3,4]",), ("dataset.only=[5,6,7,8,9]",)),
        joint=("dataset.only=null",),
        size=750,
    ),
    "noise": Arrivals(
        DIGITS,
        tuple((f"corruption.noise.std={level}",) for level in LEVELS),
        joint=(f"corruption.noise.std=[{LEVELS[0]},{LEVELS[-1]}]",),
        size=1500,
        rounds=(4, 1),
    ),
    "fashion": Arrivals(
        FASHION,
        tuple((f"dataset.only={pair}",) for pair in PAIRS),
        joint=("dataset.only=null",),
        size=1000,
        rounds=(4, 2),
    ),
}
KEPT = {"replay": 10, "replay_all": 1, "generative": 1}
"""Which part of a run's number of measurements is kept: a tenth of it, or as many."""
ROWS = ("none", *KEPT, JOINT)


def runs(study: Arrivals, row: str, seed: int, out: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields the run directories of a row, in their order, each with its overrides.

    Arguments:
        study: The study.
        row: The row.
        seed: The seed of the first run; the later ones have others, for draws of their own.
        out: The folder of the row and seed.
    """
    (first, later), before = study.rounds, None
    for i, task in enumerate(study.tasks):
        given = [*study.common, *task, f"seed={seed + 100 * i}"]
        if row != "generative":  # which alone needs a prior
            given += ["prior=null"]
        if before is not None:
            given += [f"memory.path={before}"]
        if row == JOINT:
            given += STUB
        elif before is None:
            given += [f"em.rounds={first}"]
        else:  # a training that goes on begins with a lower rate
            given += [
                f"em.rounds={later}",
                "m_step.optimizer.lr=1e-3",
                f"memory={row.partition('_')[0]}",
            ]
            given += ["init=checkpoint", f"init.path={before}"]
            if row in KEPT:
                given += [f"memory.size={study.size // KEPT[row]}"]
        before = out / f"run_{i + 1}"
        yield before, given
    if row == JOINT:  # as many rounds as all runs together
        given = [*study.common, *study.joint, f"seed={seed}", "prior=null"]
        rounds = first + later * (len(study.tasks) - 1)
        yield out / JOINT, [*given, f"em.rounds={rounds}", f"memory.path={before}"]


def run_row(study: Arrivals, row: str, seed: int, out: Path) -> int:
    """Runs what is missing of a row, one run after the other; returns the exit code."""
    for run_dir, overrides in runs(study, row, seed, out):
        if (run_dir / "summary.json").is_file():
            continue
        given = [*overrides, f"run_dir={run_dir}", "resume=auto"]
        code = subprocess.run(
            [sys.executable, "-m", "diffem", "train", *given], cwd=ROOT
        ).returncode
        if code:
            return code
    return 0


def figures(study: Arrivals, row: str, seed: int, out: Path) -> dict[str, float] | None:
    """Returns what a row gave: PSNR of mean on the newest and the earlier measurements, in dB.

    Returns:
        None if it is not finished.
    """
    *_, (last, _) = runs(study, row, seed, out)
    if not (last / "summary.json").is_file():
        return None
    summary = json.loads((last / "summary.json").read_text())
    earlier = [found["after"]["psnr_mean"] for found in summary["earlier"]]
    if row == JOINT:  # it was evaluated on those of all runs, the newest first
        return {"new": earlier[0], "old": statistics.mean(earlier[1:])}
    final = summary["final"]
    forgotten = {"forgetting": final["forgetting_db"]}
    return {"new": final["psnr_mean"], "old": statistics.mean(earlier)} | forgotten


def table(name: str, out: Path, seeds: Sequence[int] = SEEDS) -> str:
    """Returns the table of a study, in Markdown: mean ± deviation over the seeds."""
    lines = ["| row | new | earlier | forgetting | seeds |", "|---|---|---|---|---|"]
    for row in ROWS:
        rows = [figures(STUDIES[name], row, seed, place(out, name, row, seed)) for seed in seeds]
        found = [each for each in rows if each is not None]
        cells = [row]
        for key in ("new", "old", "forgetting"):
            values = [each[key] for each in found if key in each]
            cell = f"{statistics.mean(values):.2f}" if values else "–"
            cells.append(f"{cell} ± {statistics.stdev(values):.2f}" if len(values) > 1 else cell)
        lines.append("| " + " | ".join([*cells, str(len(found))]) + " |")
    return "\n".join(lines)


def place(out: Path, name: str, row: str, seed: int) -> Path:
    """Returns the folder of a row and seed."""
    return out.resolve() / name / row / f"seed_{seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a row, or prints a table; returns the exit code.

    Arguments:
        arguments: The command's arguments; None for this process's.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.sequences", description=__doc__)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("row", choices=ROWS, nargs="?")
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sequences")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print(table(chosen.study, chosen.out))
        return 0
    if chosen.row is None or chosen.seed is None:
        parser.error("give a row and a seed, or --table")
    folder = place(chosen.out, chosen.study, chosen.row, chosen.seed)
    return run_row(STUDIES[chosen.study], chosen.row, chosen.seed, folder)


if __name__ == "__main__":
    sys.exit(main())
