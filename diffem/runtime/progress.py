"""Progress: bars that name round, step and phase on a terminal, one line a phase elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffem.runtime.signals import global_rank

console = Console(stderr=True, highlight=False)


def warn(text: str) -> None:
    """Prints a warning; the first process alone does."""
    if not global_rank():
        console.print(f"warning: {text}", soft_wrap=True, markup=False)


Advance = Callable[..., None]
"""Counts one unit of a phase's work; takes a note to show."""


@contextmanager
def progress_bar(name: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows a phase of work; silent on every process but the first.

    Arguments:
        name: What is done, as in "round 3/8  E-step".
        total: The number of units of work.
        unit: The name of a unit.

    Yields:
        advance(note=""): counts one unit and shows a note.
    """
    if global_rank():
        yield lambda note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start, last = time.perf_counter(), ""
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(f"{name:<24}", total=total, note="")

        def advance(note: str = "") -> None:
            nonlocal last
            last = note
            progress.update(task, advance=1, note=note)

        yield advance
    seconds = time.perf_counter() - start
    console.print(f"{name:<24} {total} {unit} in {seconds:.1f} s  {last}".rstrip())
