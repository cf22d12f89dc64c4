"""The EM loop.

round 0   x̂_i ~ p_0(x | y_i)                             the init
M-step    d_θ learns from D_k, corrupted afresh          Lightning's training epochs
E-step    x̂_i ~ p_θ(x | y_i), θ the EMA weights → D_k+1  at a round's last epoch
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from diffem.denoiser import Posterior, PosteriorFactory, reconstruct
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.init import Init
from diffem.em.module import DenoiserModule
from diffem.em.progress import phase
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


class EMRounds(Callback):
    """Runs an E-step after the init and after each round's M-step.

    Arguments:
        init: The init.
        posterior: Makes the E-step's posterior from the denoiser and the channel.
        seconds: The time of E- and M-steps after which no further round begins; None for no limit.
        on_round: Called on the first process with each committed round.
    """

    def __init__(
        self,
        init: Init,
        posterior: PosteriorFactory,
        *,
        seconds: float | None,
        on_round: Callable[[DenoiserModule, Round], None],
    ) -> None:
        self.init = init
        self.posterior = posterior
        self.seconds = seconds
        self.on_round = on_round
        self._m_step_start = self._spent = 0.0
        self._losses: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes round 0."""
        module, data = _parts(trainer)
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
            self.e_step(trainer, self.posterior(denoiser, data.observed.corruption))
        data.epoch = 0
        module.restart()
        if self.seconds is not None:  # one decision for all processes
            over = self._spent >= self.seconds
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(over, all=False)

    def e_step(self, trainer: Trainer, draw: Posterior) -> None:
        """Reconstructs every observation once; processes share the chunks and poll the store."""
        module, data = _parts(trainer)
        store, k, start = data.store, data.round + 1, time.perf_counter()
        rank, world_size = trainer.global_rank, trainer.world_size
        chunks = [c for c in store.missing(k) if c % world_size == rank]
        with phase(f"round {k}  E-step", len(chunks), "chunks") as advance:
            for chunk in chunks:
                observation = data.observed.observation.select(store.rows(chunk))
                key = (module.seed, "e-step", k, chunk)
                x = reconstruct(
                    draw, observation, size=store.chunk_size, key=key, device=module.device
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
            self.on_round(module, Round(k, draw, e_step, m_step, loss))
        self._losses = []
        self._m_step_start = time.perf_counter()


def _parts(trainer: Trainer) -> tuple[DenoiserModule, ReconstructionDataModule]:
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, DenoiserModule)
    assert isinstance(data, ReconstructionDataModule)
    return module, data
