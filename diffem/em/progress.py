"""Progress: bars that name round, step and phase on a terminal, one line a phase elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffem.em.reconstructions import Batch

console = Console(stderr=True, highlight=False)


def warn(text: str) -> None:
    """Prints a warning; the first process alone does."""
    if not getattr(rank_zero_only, "rank", 0):
        console.print(f"warning: {text}", soft_wrap=True, markup=False)


Advance = Callable[..., None]
"""Counts one unit of a phase's work; takes a note to show."""


@contextmanager
def phase(name: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows a phase of work; silent on every process but the first.

    Arguments:
        name: What is done, as in "round 3/8  E-step".
        total: The number of units of work.
        unit: The name of a unit.

    Yields:
        advance(note=""): counts one unit and shows a note.
    """
    if getattr(rank_zero_only, "rank", 0):
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


class MStepProgress(Callback):
    """The M-step's bar, one for each round."""

    def __init__(self) -> None:
        self._phase: AbstractContextManager[Advance] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar at a round's first epoch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._phase is None:
            prior = trainer.lightning_module.phase == "prior"
            name = "prior" if prior else f"round {data.round + 1}  M-step"
            self._phase = phase(name, data.steps, "steps")
            self._advance = self._phase.__enter__()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Moves the bar by a step."""
        metrics = trainer.progress_bar_metrics
        self._advance("  ".join(f"{k.split('/')[-1]} {v:.3f}" for k, v in metrics.items()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar at the round's last epoch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.global_step % data.steps == 0:
            self.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Closes the bar when training stops early."""
        self.close()

    def close(self) -> None:
        """Closes the bar, if one is open."""
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None
