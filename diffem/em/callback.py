"""The EM loop.

round 0   x̂_i ~ p_0(x | y_i)                             the init
M-step    d_θ learns from D_k, corrupted afresh          Lightning's training epochs
E-step    x̂_i ~ p_θ(x | y_i), θ the EMA weights → D_k+1  at a round's last epoch

The state of training is saved after each epoch, and before and after each E-step: a process that
was killed anywhere goes on from there, to the same weights.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from diffem.denoiser import Posterior, PosteriorFactory, reconstruct
from diffem.em.blind import Blind, Levels
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.init import Init
from diffem.em.meter import Meter
from diffem.em.module import DenoiserModule
from diffem.em.progress import phase
from diffem.em.round import Round
from diffem.em.settings import EMSettings
from diffem.em.store import Batch

POLL_SECONDS = 0.05


class EMRounds(Callback):
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
        module, data = _parts(trainer)
        corruption, k = data.observed.corruption, data.round
        learned = data.store.channel(k) if corruption.learn and k > 0 else None
        self.blind.take(corruption, learned[-1] if learned else None)
        self.meter.tick()
        if data.due and k < 0:
            with module.averaged():
                draw = self.init.prepare(module, data, self.posterior)
                self.begin(trainer)
                self.e_step(trainer, draw)
        elif data.due:
            self.next_round(trainer)
        self.stop_if_over(trainer)

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
        """Makes the round after the current one with the averaged weights."""
        module, data = _parts(trainer)
        self.begin(trainer)
        with module.averaged() as denoiser:
            draw = self.posterior(denoiser, data.observed.corruption, data.sample())
            self.e_step(trainer, draw, self.learn_channel(trainer, draw))

    def begin(self, trainer: Trainer) -> None:
        """Opens the next round for the current weights, on the first process; the others wait."""
        module, data = _parts(trainer)
        k, weights = data.round + 1, module.weights_hash()
        if trainer.is_global_zero:
            data.store.begin(k, weights)
        wait_until(lambda: data.store.begun(k) == weights)

    def learn_channel(self, trainer: Trainer, draw: Posterior) -> list[Levels]:
        """Learns the channel's unknown levels on the first process; the others read them."""
        module, data = _parts(trainer)
        observed, store, k = data.observed, data.store, data.round + 1
        if not observed.corruption.learn:
            return []
        if trainer.is_global_zero and store.channel(k) is None:
            key, device = (module.seed, "channel", k), module.device
            y, corruption = observed.observation, observed.corruption
            store.write_channel(k, self.blind.fit(draw, y, corruption, key=key, device=device))
        wait_until(lambda: store.channel(k) is not None)
        path = store.channel(k) or []
        self.blind.take(observed.corruption, path[-1])
        return path

    def e_step(self, trainer: Trainer, draw: Posterior, channel: Sequence[Levels] = ()) -> None:
        """Reconstructs every observation once; processes share the chunks and poll the store."""
        module, data = _parts(trainer)
        store, k, observation = data.store, data.round + 1, data.observed.observation
        rank, world_size = trainer.global_rank, trainer.world_size
        chunks = [c for c in store.missing(k) if c % world_size == rank]
        with phase(f"round {k}  E-step", len(chunks), "chunks") as advance:
            for chunk in chunks:
                x = reconstruct(
                    draw,
                    observation.select(store.rows(chunk)),
                    size=store.chunk_size,
                    key=(module.seed, "e-step", k, chunk),
                    device=module.device,
                )
                store.write(k, chunk, x)
                advance()
        # No collective here: one that waits for a slow process times out and ends the run.
        if trainer.is_global_zero:
            wait_until(lambda: not store.missing(k))
            store.commit(k, module.weights_hash())
        wait_until(lambda: store.committed(k))
        data.round, data.due = k, False
        self.meter.count(module.evaluations, world_size)
        e_step = self.meter.tick()
        m_step, loss = self.meter.finish(e_step)
        if trainer.is_global_zero:
            steps, evaluations = k * data.steps, self.meter.evaluations
            cost = (e_step, m_step, loss, steps, evaluations)
            self.on_round(module, Round(k, draw, *cost, list(channel)))
        self.meter.count(module.evaluations, 0)
        self.meter.tick()

    def save(self, trainer: Trainer) -> None:
        """Saves the state of training."""
        module, _ = _parts(trainer)
        self.meter.count(module.evaluations, trainer.world_size)
        trainer.save_checkpoint(self.checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the loop has spent."""
        return self.meter.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what the loop has spent."""
        self.meter.load_state_dict(state_dict)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when a condition holds, which another process may bring about."""
    while not condition():
        time.sleep(POLL_SECONDS)


def _parts(trainer: Trainer) -> tuple[DenoiserModule, ReconstructionDataModule]:
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, DenoiserModule)
    assert isinstance(data, ReconstructionDataModule)
    return module, data
