"""Lightning callbacks of a fit: signal handlers, the M-step's progress bar, checkpoints."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from diffem.em.module import DenoiserModule
from diffem.em.state import EMState
from diffem.runtime.progress import Advance, progress_bar
from diffem.runtime.signals import install_signal_handlers, watch_ranks
from diffem.storage.reconstructions import Batch, ReconstructionStore


class SignalHandlers(Callback):
    """Takes the signals back from Lightning, and ends the run when one of its processes dies.

    Lightning's handler of SIGTERM broadcasts before it calls ours: a collective inside a signal
    handler, which hangs where another collective is under way. Its handler of SIGUSR1 requeues a
    SLURM job by itself. Its observer kills this process too, and no line says why.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers and the watch before an E-step that is due."""
        install_signal_handlers()
        if processes := getattr(trainer.strategy.launcher, "procs", []):
            for thread in threading.enumerate():
                if thread.name == "child-process-observer":  # Lightning's
                    thread._child_processes = []  # type: ignore[attr-defined]
            threading.Thread(target=watch_ranks, args=(processes,), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers once Lightning has installed its own."""
        install_signal_handlers()


class MStepProgress(Callback):
    """The M-step's bar, one for each round."""

    def __init__(self) -> None:
        self._bar: AbstractContextManager[Advance] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar at a round's first epoch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._bar is None:
            assert isinstance(trainer.lightning_module, DenoiserModule)
            stage = trainer.lightning_module.stage
            name = f"round {data.state.round + 1}  M-step" if stage == "m_step" else stage
            self._bar = progress_bar(name, data.steps, "steps")
            self._advance = self._bar.__enter__()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Moves the bar by a step, and shows the loss."""
        assert isinstance(outputs, Mapping)
        self._advance(f"loss {outputs['loss']:.3f}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar at the round's last epoch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.state.epoch + 1 >= data.epochs:  # this epoch is not counted yet
            self.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Closes the bar when training stops early: the line of a finished stage is left out."""
        self.close(exception)

    def close(self, exception: BaseException | None = None) -> None:
        """Closes the bar, if one is open.

        Arguments:
            exception: What stopped the stage; None if it is finished.
        """
        if self._bar is not None:
            kind = None if exception is None else type(exception)
            self._bar.__exit__(kind, exception, None)
            self._bar = None


class StateCheckpoint(Callback):
    """Keeps the loop's state in every checkpoint, and saves one before the first step.

    Arguments:
        state: The state.
        checkpoint: The file that the state of training is saved in.
    """

    def __init__(self, state: EMState, checkpoint: Path) -> None:
        self.state = state
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state before the first step, for a roll-back to return to."""
        if trainer.global_step == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves the state of training."""
        trainer.save_checkpoint(self.checkpoint)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the loop's state, and what binds the checkpoint to its run and its round."""
        checkpoint["em_state"] = asdict(self.state)
        store: ReconstructionStore = trainer.datamodule.store  # type: ignore[attr-defined]
        checkpoint["run"] = store.binding(self.state.round)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the loop's state."""
        self.state.restore(checkpoint["em_state"])


class CheckpointEachEpoch(StateCheckpoint):
    """Counts epochs and evaluations of a fit without E-steps, and saves after each epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the epoch and saves the state of training."""
        assert isinstance(pl_module, DenoiserModule)
        self.state.end_epoch(0.0, [])
        self.state.spend(pl_module.take_nfe() * trainer.world_size)
        self.save(trainer)
