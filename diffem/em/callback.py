"""The EM loop.

round 0   x̂_i ~ p_0(x | y_i)                             the init
M-step    d_θ learns from D_k, corrupted afresh          Lightning's training epochs
E-step    x̂_i ~ p_θ(x | y_i), θ the EMA weights → D_k+1  at a round's last epoch
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from diffem.denoiser import Posterior, PosteriorFactory, reconstruct
from diffem.em.blind import Blind, Levels
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.init import Init
from diffem.em.module import DenoiserModule
from diffem.em.progress import phase
from diffem.em.settings import EMSettings
from diffem.em.store import Batch

POLL_SECONDS = 0.05


class Round(NamedTuple):
    """What is known when a round is committed."""

    number: int
    """The round k; 0 is the init."""
    draw: Posterior
    """The posterior that made it."""
    e_step_seconds: float
    """Wall time of its E-step."""
    m_step_seconds: float
    """Wall time of the M-step before it; 0 for round 0."""
    loss: float | None
    """Mean loss of that M-step; None for round 0."""
    steps: int
    """Optimiser steps up to here."""
    evaluations: int
    """Network evaluations of E- and M-steps up to here, over all processes."""
    channel: list[Levels]
    """The estimates of the channel's levels before its E-step, where they are learned."""

    def costs(self) -> dict[str, float | None]:
        """Returns what the round cost, and its loss, as they stand in the summary."""
        return {
            "e_step_seconds": self.e_step_seconds,
            "m_step_seconds": self.m_step_seconds,
            "loss": self.loss,
            "optimizer_steps": self.steps,
            "network_evaluations": self.evaluations,
        }

    def estimate(self) -> dict[str, Any]:
        """Returns the channel's learned levels and the path to them, if there are any."""
        return (
            {"estimate": self.channel[-1], "estimate_path": self.channel} if self.channel else {}
        )


class EMRounds(Callback):
    """Runs an E-step after the init and after each round's M-step.

    Arguments:
        init: The init.
        posterior: Makes the E-step's posterior from the denoiser and the channel.
        settings: The EM loop's budgets.
        blind: How unknown levels of the channel are learned.
        on_round: Called on the first process with each committed round.
    """

    def __init__(
        self,
        init: Init,
        posterior: PosteriorFactory,
        *,
        settings: EMSettings,
        blind: Blind,
        on_round: Callable[[DenoiserModule, Round], None],
    ) -> None:
        self.init = init
        self.posterior = posterior
        self.settings = settings
        self.blind = blind
        self.on_round = on_round
        self._m_step_start = self._spent = 0.0
        self._evaluated = 0  # by reports, which are not the method's own
        self._losses: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes round 0."""
        module, data = _parts(trainer)
        self.blind.take(data.observed.corruption)
        if data.round < 0:
            with module.averaged():
                self.e_step(trainer, self.init.prepare(module, data, self.posterior))

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
        self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the next round when this one's M-step is over."""
        module, data = _parts(trainer)
        data.epoch += 1
        if data.epoch < data.epochs:
            return
        with module.averaged() as denoiser:
            draw = self.posterior(denoiser, data.observed.corruption, data.sample())
            channel = self.learn_channel(trainer, draw)
            self.e_step(trainer, draw, channel)
        data.epoch = 0
        module.restart()
        # One decision for all processes.
        over = self.settings.over(self._spent, self._evaluations(trainer), data.round)
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(over, all=False)

    def learn_channel(self, trainer: Trainer, draw: Posterior) -> list[Levels]:
        """Learns the channel's unknown levels on the first process; the others read them."""
        module, data = _parts(trainer)
        observed, k = data.observed, data.round + 1
        if not observed.corruption.learn:
            return []
        if trainer.is_global_zero and data.store.channel(k) is None:
            path = self.blind.fit(
                draw,
                observed.observation,
                observed.corruption,
                key=(module.seed, "channel", k),
                device=module.device,
            )
            data.store.write_channel(k, path)
        while (path := data.store.channel(k)) is None:
            time.sleep(POLL_SECONDS)
        self.blind.take(observed.corruption, path[-1])
        return path

    def e_step(self, trainer: Trainer, draw: Posterior, channel: Sequence[Levels] = ()) -> None:
        """Reconstructs every observation once; processes share the chunks and poll the store."""
        module, data = _parts(trainer)
        store, k, start = data.store, data.round + 1, time.perf_counter()
        observation = data.observed.observation
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
        while trainer.is_global_zero and store.missing(k):
            time.sleep(POLL_SECONDS)
        if trainer.is_global_zero:
            store.commit(k, module.weights_hash())
        while not store.committed(k):
            time.sleep(POLL_SECONDS)
        data.round = k
        m_step = start - self._m_step_start if self._losses else 0.0
        e_step = time.perf_counter() - start
        self._spent += e_step + m_step
        if trainer.is_global_zero:
            loss = float(torch.stack(self._losses).mean()) if self._losses else None
            spent = self._evaluations(trainer)
            steps = trainer.global_step
            round = Round(k, draw, e_step, m_step, loss, steps, spent, list(channel))
            self.on_round(module, round)
            self._evaluated += (self._evaluations(trainer) - spent) // trainer.world_size
        self._losses = []
        self._m_step_start = time.perf_counter()

    def _evaluations(self, trainer: Trainer) -> int:
        """Returns the method's network evaluations; processes share them evenly."""
        module, _ = _parts(trainer)
        return (module.evaluations - self._evaluated) * trainer.world_size


def _parts(trainer: Trainer) -> tuple[DenoiserModule, ReconstructionDataModule]:
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, DenoiserModule)
    assert isinstance(data, ReconstructionDataModule)
    return module, data
