"""The EM loop.

round 0   x̂_i ~ p_0(x | y_i)                             the init
M-step    d_θ learns from D_k, corrupted afresh          Lightning's training epochs
E-step    x̂_i ~ p_θ(x | y_i), θ the EMA weights → D_k+1  at a round's last epoch

The state of training is saved after each epoch, and before and after each E-step: a process that
was killed anywhere goes on from there, to the same weights.
"""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from diffem.em.blind import Blind
from diffem.em.budget import EMSettings
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.init import Init
from diffem.em.meter import Meter
from diffem.em.module import DenoiserModule
from diffem.em.round import Round
from diffem.posterior import Posterior, PosteriorFactory, reconstruct
from diffem.runtime.progress import progress_bar
from diffem.storage.checkpoint import before_e_step
from diffem.storage.claim import share
from diffem.storage.reconstructions import Batch


class EMLoop(Callback):
    """Runs an E-step after the init and after each round's M-step.

    Arguments:
        init: The init.
        posterior: Makes the E-step's posterior from the denoiser and the channel.
        settings: The EM loop's budgets.
        blind: How unknown levels of the channel are learned.
        checkpoint: The file that the state of training is saved in.
        on_round: Called on the first process with each committed round.
    """

    def __init__(
        self,
        init: Init,
        posterior: PosteriorFactory,
        *,
        settings: EMSettings,
        blind: Blind,
        checkpoint: Path,
        on_round: Callable[[DenoiserModule, Round], None],
    ) -> None:
        self.init = init
        self.posterior = posterior
        self.settings = settings
        self.blind = blind
        self.checkpoint = checkpoint
        self.on_round = on_round
        self.meter = Meter()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the round that is due: round 0, or the one that a killed process was at."""
        _, data = _parts(trainer)
        self.blind.take_up(data)
        self.meter.tick()
        if data.due:
            self.next_round(trainer)
        self.stop_if_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state before the first step, for a roll-back to go back to."""
        if trainer.global_step == 0:
            self.save(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Keeps the loss for the round's report."""
        assert isinstance(outputs, Mapping)
        self.meter.add_loss(outputs["loss"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the next round when this one's M-step is over."""
        module, data = _parts(trainer)
        data.epoch += 1
        self.meter.m_step += self.meter.tick()
        if data.epoch < data.epochs:
            self.save(trainer)
            return
        module.restart()
        data.epoch, data.due = 0, True
        self.save(trainer)
        self.next_round(trainer)
        self.save(trainer)
        if self.settings.keep_rounds is not None and trainer.is_global_zero:
            data.store.prune(self.settings.keep_rounds)
        self.stop_if_over(trainer)

    def stop_if_over(self, trainer: Trainer) -> None:
        """Begins no further round when a budget is spent; one decision for all processes."""
        k = _parts(trainer)[1].round
        over = k > 0 and self.settings.over(self.meter.seconds, self.meter.evaluations, k)
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(over, all=False)

    def next_round(self, trainer: Trainer) -> None:
        """Makes round 0 by the init, any other with the averaged weights."""
        module, data = _parts(trainer)
        with module.averaged() as denoiser:
            if data.round < 0:
                draw = self.init.prepare(module, data, self.posterior)
            else:
                draw = self.posterior(denoiser, data.observed.corruption, data.sample())
            self.e_step(trainer, draw)

    def e_step(self, trainer: Trainer, draw: Posterior) -> None:
        """Reconstructs every measurement once; processes claim the chunks and poll the store.

        No collective once it is begun: one that waits for a slow process ends the run.
        """
        module, data = _parts(trainer)
        store, k, first = data.store, data.round + 1, trainer.is_global_zero
        attempt = trainer.strategy.broadcast(secrets.token_hex(4))
        store.begin(k, module.weights_hash(), attempt, first=first)
        channel = self.blind.learn(draw, data, module, first=first)
        measurement, rank = data.observed.measurement, (trainer.global_rank, trainer.world_size)
        with progress_bar(f"round {k}  E-step", len(store.missing(k)), "chunks") as advance:
            for chunk in share(store, k, attempt, rank=rank):
                x = reconstruct(
                    draw,
                    measurement.select(store.rows(chunk)),
                    size=store.chunk_size,
                    key=(module.seed, "e-step", k, chunk),
                    device=module.device,
                )
                store.write(k, chunk, x)
                advance()
        data.round, data.due = k, False
        self.meter.count(module.evaluations, trainer.world_size)
        e_step = self.meter.tick()
        m_step, loss = self.meter.finish(e_step)
        if first:
            cost = (e_step, m_step, loss, k * data.steps, self.meter.evaluations)
            self.on_round(module, Round(k, draw, *cost, channel))
        self.meter.count(module.evaluations, 0)
        self.meter.tick()

    def save(self, trainer: Trainer) -> None:
        """Saves the state of training; what makes a round is kept until the next one is made."""
        module, data = _parts(trainer)
        self.meter.count(module.evaluations, trainer.world_size)
        trainer.save_checkpoint(before_e_step(self.checkpoint) if data.due else self.checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the loop has spent."""
        return self.meter.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what the loop has spent."""
        self.meter.load_state_dict(state_dict)


def _parts(trainer: Trainer) -> tuple[DenoiserModule, ReconstructionDataModule]:
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, DenoiserModule)
    assert isinstance(data, ReconstructionDataModule)
    return module, data
