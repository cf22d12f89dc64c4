"""Runs cells, several at a time, and leaves no process behind when it is interrupted."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from diffem.cli.cell import Cell
from diffem.runtime.errors import check_count
from diffem.runtime.process import end_runs, send
from diffem.runtime.progress import console, progress_bar

POLL_SECONDS = 0.1


class Running(NamedTuple):
    """A cell that runs."""

    cell: Cell
    process: subprocess.Popen[bytes]
    start: float


def run_cells(cells: Sequence[Cell], jobs: int) -> None:
    """Runs cells in their order, some at a time; a cell that fails does not stop the others.

    Arguments:
        cells: The cells.
        jobs: How many run at a time.

    Raises:
        UserError: If jobs is not a whole number of at least 1.
        KeyboardInterrupt: On Ctrl-C, once no cell runs any more; on SIGTERM and SIGHUP this
            process then ends.
    """
    environments = slot_environments(check_count("--jobs", jobs))
    waiting, running = deque(cells), dict[int, Running]()
    with signals_noted() as noted, progress_bar("comparison", len(cells), "runs") as advance:
        try:
            while (waiting or running) and not noted:
                for slot, environment in enumerate(environments):
                    if slot in running and running[slot].process.poll() is not None:
                        advance(_told(running.pop(slot)))
                    if slot not in running and waiting:
                        cell = waiting.popleft()
                        running[slot] = Running(cell, cell.start(environment), time.monotonic())
                time.sleep(POLL_SECONDS)
        finally:
            end_runs([run.process for run in running.values()])
        if noted:
            raise KeyboardInterrupt


def slot_environments(jobs: int) -> list[dict[str, str]]:
    """Returns what is set in the environment of the cells of each of a number of slots.

    Several cells share the cores. They share the GPUs if there are enough for one each: slot s of
    n gets GPUs s, s + n, s + 2n, …
    """
    if jobs == 1:
        return [{}]
    gpus = _gpus()
    threads = {"OMP_NUM_THREADS": str(max(1, _cores() // jobs))}
    if len(gpus) < jobs:
        return [threads] * jobs
    return [{**threads, "CUDA_VISIBLE_DEVICES": ",".join(gpus[s::jobs])} for s in range(jobs)]


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Opens a scope in which an interrupt is noted, and acted upon only when the scope is left.

    Acting at once could fall between a process's start and its being known.

    Yields:
        The interrupts so far.
    """
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: noted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # a container may hold fewer than the machine
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]


def _told(run: Running) -> str:
    """Says how a run ended, and returns what was said."""
    send(run.process, signal.SIGKILL)  # ranks that a crashed first rank left behind
    how = "failed" if run.cell.summary() is None else "finished"
    seconds = time.monotonic() - run.start
    line = f"{run.cell.row}, seed {run.cell.seed}: {how} in {seconds:.0f} s"
    console.print(line, soft_wrap=True, markup=False)
    return f"{run.cell.row}, seed {run.cell.seed}"
