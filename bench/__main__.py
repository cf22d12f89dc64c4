"""`python -m bench`: measures diffem by ratios, and names what is worse than the baseline.

make bench              compares with bench/baseline.json; exit code 1 if a figure is worse
make bench BASELINE=1   writes bench/baseline.json and the tables of docs/performance.md
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench.cost import Prediction, plan_table
from bench.em import CIFAR, DIGITS, em_figures, growth_in_n
from bench.evaluation import evaluation_share
from bench.figure import Figure, LeftOut
from bench.processes import ROOT, help_time, peak_memory, two_over_one
from bench.report import (
    make_record,
    prediction_table,
    ratio_table,
    read_baseline,
    regressions,
    with_tables,
)
from bench.storage import store_reads
from diffem.cli.launch import quiet
from diffem.runtime.progress import say

BASELINE = ROOT / "bench" / "baseline.json"
LATEST = ROOT / "runs" / "bench.json"
PAGE = ROOT / "docs" / "performance.md"
TABLES: tuple[str, ...] = ("ratios", "predictions", "plans")  # of that page

Found = Figure | LeftOut | Prediction
GROUPS: dict[str, Callable[[Path], Iterator[Found]]] = {}


def group(name: str) -> Callable[[Callable[[Path], Iterator[Found]]], None]:
    """Returns what adds a group of figures under a name."""

    def add(measure: Callable[[Path], Iterator[Found]]) -> None:
        GROUPS[name] = measure

    return add


@group("digits")
def _digits(folder: Path) -> Iterator[Found]:
    for part in em_figures(DIGITS, folder, rivals=True):
        yield from part


@group("cifar")
def _cifar(folder: Path) -> Iterator[Found]:
    for part in em_figures(CIFAR, folder, rivals=False):
        yield from part


@group("growth")
def _growth(folder: Path) -> Iterator[Found]:
    yield growth_in_n(folder)


@group("store")
def _store(folder: Path) -> Iterator[Found]:
    for size in (10_000, 30_000):
        (folder / str(size)).mkdir()
        yield store_reads(folder / str(size), size=size)


@group("help")
def _help(folder: Path) -> Iterator[Found]:
    yield help_time()


@group("evaluation")
def _evaluation(folder: Path) -> Iterator[Found]:
    yield evaluation_share(folder)


@group("processes")
def _processes(folder: Path) -> Iterator[Found]:
    yield from two_over_one(folder)


@group("memory")
def _memory(folder: Path) -> Iterator[Found]:
    yield from peak_memory(folder)


def measure(names: Sequence[str]) -> tuple[list[Figure], list[LeftOut], list[Prediction]]:
    """Measures groups of figures, each in a temporary folder."""
    found: list[Found] = []
    for name in names:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet():
            found += GROUPS[name](Path(folder))
        say(f"bench: {name} took {time.perf_counter() - start:.0f} s")
    return (
        [each for each in found if isinstance(each, Figure)],
        [each for each in found if isinstance(each, LeftOut)],
        [each for each in found if isinstance(each, Prediction)],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes and compares; returns the exit code.

    Arguments:
        arguments: The command's arguments; None for this process's.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--baseline", action="store_true", help="write the baseline and the docs")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), help="measure these alone")
    chosen = parser.parse_args(arguments)
    if chosen.baseline and chosen.only:
        parser.error("--baseline takes all figures; leave out --only")
    try:  # before minutes are spent
        baseline = None if chosen.baseline else read_baseline(BASELINE)
        if chosen.baseline:
            with_tables(PAGE.read_text(), dict.fromkeys(TABLES, ""))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # figures by threads that share cores are no figures
    start = time.perf_counter()
    found = measure(chosen.only or list(GROUPS))
    record = make_record(*found, seconds=time.perf_counter() - start)
    print(f"{ratio_table(record)}\n\n{prediction_table(record)}")
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps(record, indent=1) + "\n")
    say(f"wrote {LATEST}")
    if chosen.baseline:
        contents = (ratio_table(record), prediction_table(record), plan_table())
        tables = dict(zip(TABLES, contents, strict=True))
        PAGE.write_text(with_tables(PAGE.read_text(), tables))
        BASELINE.write_text(json.dumps(record, indent=1) + "\n")
        say(f"wrote {BASELINE} and {PAGE}")
        return 0
    if baseline is None:
        say(f"there is no {BASELINE} to compare with: make bench BASELINE=1 writes it")
        return 0
    if record["machine"] != baseline["machine"]:
        say(
            f"the baseline is of another machine: {baseline['machine']},"
            f" this is {record['machine']}"
        )
    worse = regressions(record, baseline)
    for sentence in worse:
        say(f"error: {sentence}")
    if not worse:
        say("no figure is worse than the baseline by more than a tenth")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
