"""What is measured of whole processes: starting, two against one, peak memory."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.figure import Figure, LeftOut, alternate, seconds
from bench.loop import ALWAYS

ROOT = Path(__file__).parents[1]
SHORT = (  # no evaluation to speak of
    *ALWAYS,
    *("metric.heldout=64", "metric.samples=2", "metric.subset=16", "trainer.accelerator=cpu"),
)


def run(*arguments: str) -> str:
    """Runs Python with arguments in the checkout, and returns what it printed.

    Raises:
        RuntimeError: If it fails; with the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return done.stdout


def help_time(*, times: int = 5) -> Figure:
    """Returns the time of `python train.py --help` over that of importing torch."""
    run("-c", "import torch")  # its files are in the page cache from here on

    def above() -> float:
        return seconds(lambda: run("train.py", "--help"))

    def below() -> float:
        return seconds(lambda: run("-c", "import torch"))

    title = "`python train.py --help` over `python -c 'import torch'`"
    return Figure("help_over_torch", title, alternate(above, below, times), limit=2.0)


def two_over_one(folder: Path, *, times: int = 2) -> list[Figure | LeftOut]:
    """Returns how many times as fast E-step and M-step are by two processes, of a thread each.

    Arguments:
        folder: An empty folder.
        times: The number of alternations, each of two rounds.
    """
    names = ("e_step_two_processes", "m_step_two_processes")
    if (os.cpu_count() or 1) < 2:
        return [LeftOut(name, "one core alone") for name in names]
    os.environ["OMP_NUM_THREADS"] = "1"
    found: list[list[tuple[float, float]]] = []
    for i in range(times):
        pair = alternate_runs(folder / str(i), first=1 + i % 2)
        found += pair
    e_steps, m_steps = ([pair[j] for pair in found] for j in range(2))
    return [
        Figure(
            names[0], "E-step by one process over two", e_steps, limit=1.9, more_is_better=True
        ),
        Figure(
            names[1], "M-step by one process over two", m_steps, limit=1.7, more_is_better=True
        ),
    ]


def alternate_runs(folder: Path, *, first: int) -> list[list[tuple[float, float]]]:
    """Returns of each round the seconds of E-step and M-step by one process and by two.

    Arguments:
        folder: An empty folder.
        first: The number of processes of the run that comes first.
    """
    costs = {}
    for processes in (first, 3 - first):
        run_dir = folder / f"processes_{processes}"
        overrides = [
            *("dataset.train=1024", "init=measurement", "em.rounds=3", "em.first_steps=4"),
            *("em.steps_per_round=30", *SHORT, f"trainer.devices={processes}"),
        ]
        run("train.py", *overrides, f"run_dir={run_dir}")
        rounds = json.loads((run_dir / "rounds.json").read_text())["rounds"]
        # The first two make the network warm.
        costs[processes] = [(r["e_step_seconds"], r["m_step_seconds"]) for r in rounds[2:]]
    return [
        [(one[j], two[j]) for j in range(2)] for one, two in zip(costs[1], costs[2], strict=True)
    ]


def peak_bytes(run_dir: Path, *overrides: str) -> float:
    """Returns the peak memory of a run in a process of its own."""
    printed = run("-m", "bench.peak", *overrides, f"run_dir={run_dir}")
    return float(printed.split("peak ")[-1])


def peak_memory(folder: Path, *, size: int = 5000, times: int = 2) -> list[Figure | LeftOut]:
    """Returns the growth of peak memory in the number of measurements, and in rounds.

    Measurements of 4,096 numbers in a file, which are read as they are needed, and a tiny network.
    A round of N is 82 MB, and is kept in memory while it is trained on; one of 4 N is 328 MB, more
    than is kept. A copy of it in memory would be seen. The rounds are of N / 10.

    Arguments:
        folder: An empty folder.
        size: The number N of measurements.
        times: The number of alternations in rounds; in N there is one, which takes longer.
    """
    names = ("peak_memory_growth_in_N", "peak_memory_growth_in_rounds")
    if not Path("/proc/self/status").exists():
        return [LeftOut(name, "the peak is read from Linux's /proc") for name in names]
    values = np.random.default_rng(0).standard_normal((4 * size, 4096), dtype=np.float32)
    for n in (size // 10, size, 4 * size):
        np.save(folder / f"{n}.npy", values[:n].clip(-3, 3))

    def peak(n: int, rounds: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            return peak_bytes(
                Path(run_dir) / "run",
                *("dataset=measurements", f"dataset.path={folder / f'{n}.npy'}"),
                *("dataset.range=[-3,3]", "corruption=denoising", "corruption.noise.std=0.1"),
                *("network=mlp", "network.width=16", "network.depth=1", "init=measurement"),
                *("sampler.steps=2", f"em.rounds={rounds}", "em.steps_per_round=4", *SHORT),
                "em.keep_rounds=2",
            )

    in_n = alternate(lambda: peak(4 * size, 1), lambda: peak(size, 1), 1)
    in_rounds = alternate(lambda: peak(size // 10, 12), lambda: peak(size // 10, 2), times)
    growth = f"peak memory at N = {4 * size:,} over N = {size:,} (328 MB a round over 82)"
    flat = "peak memory of 12 rounds over 2"
    return [
        Figure(names[0], growth, in_n, unit="bytes", limit=1.05),
        Figure(names[1], flat, in_rounds, unit="bytes", limit=1.02),
    ]
