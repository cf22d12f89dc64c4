"""Progress: a live bar for each stage of a run on a terminal, one line a stage elsewhere."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from diffem.runtime.rank import global_rank
from diffem.runtime.signals import silence

ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\a\x1b]*(\a|\x1b\\)?)")  # ECMA-48


class LastingConsole(Console):
    """A console that falls silent where nobody reads any more, as behind `| head`."""

    def on_broken_pipe(self) -> None:
        """Prints no more (rich's own ends the process, and with it a run of hours)."""
        self.quiet = True
        silence(self.file)


def plain_console(*, stderr: bool = False) -> Console:
    """Returns a console that prints texts as they are: brackets are no markup, :x: is no emoji."""
    environment = dict(os.environ)
    if not environment.get("COLUMNS", "").strip("0"):  # of a line without columns nothing is seen
        environment.pop("COLUMNS", None)
    return LastingConsole(
        stderr=stderr, highlight=not stderr, markup=False, emoji=False, _environ=environment
    )


console = plain_console(stderr=True)


def printable(text: str) -> str:
    """Returns a text without what would steer a terminal: escape sequences, control characters."""
    return "".join(c for c in ESCAPE_SEQUENCE.sub("", text) if c.isprintable())


def say(text: str) -> None:
    """Prints a line to stderr, which is not wrapped."""
    console.print(text, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning to stderr, on a run's first process only."""
    if not global_rank():
        say(f"warning: {text}")


Advance = Callable[..., None]
"""`advance(note="")` counts one unit of a stage's work and shows a note behind the bar."""


class RateColumn(ProgressColumn):
    """How many units of work are done in a second, of late; empty until two are."""

    def render(self, task: Task) -> Text:
        """Returns the rate, with three digits."""
        return Text("" if task.speed is None else f"{task.speed:.3g}/s")


def bar(console: Console, *, shown: bool = True) -> Progress:
    """Returns a bar: work done, time so far, rate, time left and a note.

    Its tasks have the fields `unit` and `note`.

    Arguments:
        console: Where it is drawn.
        shown: Whether it is.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        disable=not shown,
    )


@contextmanager
def progress_bar(name: str, total: int, unit: str, *, shown: bool = True) -> Iterator[Advance]:
    """Shows the progress of a stage; silent on every process but the first.

    The bar is replaced by one line with the time that the stage took; a stage that an exception
    stopped has none. (Lightning's RichProgressBar
    counts epochs, knows no E-step, and leaves no line in a log file.)

    Arguments:
        name: The stage, as in "round 3  E-step".
        total: The number of units of work.
        unit: The name of a unit, as in "chunks".
        shown: Whether there is anything to show: a stage may be too short for a bar.

    Yields:
        A function that counts one unit; see `Advance`.
    """
    if global_rank() or not shown:
        yield lambda note="": None
        return
    start, last = time.perf_counter(), ""
    with bar(console, shown=console.is_terminal) as progress:
        task = progress.add_task(f"{name:<24}", total=total, unit=unit, note="")

        def advance(note: str = "") -> None:
            nonlocal last
            last = note
            progress.update(task, advance=1, note=note)

        yield advance
    seconds = time.perf_counter() - start
    console.print(f"{name:<24} {total} {unit} in {seconds:.1f} s  {last}".rstrip())
