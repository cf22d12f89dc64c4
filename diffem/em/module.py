"""The M-step: a denoiser trained on re-corrupted reconstructions.

minimise  E  w(t) ‖ d_θ(x_t, t, ỹ) - x̂ ‖²
over      x̂ ~ D_k,  ỹ ~ q(· | x̂),  t ~ p(t),  x_t = x̂ + σ_t z
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from diffem.denoiser import BetaMixture, Denoiser
from diffem.em.ema import EMA
from diffem.em.objective import Objective
from diffem.em.reconstructions import Batch
from diffem.error import check_fraction
from diffem.file import write_file
from diffem.random import seeded


@dataclass(frozen=True)
class MStep:
    """How the M-step optimises."""

    times: BetaMixture
    """The distribution p(t) of training times."""
    optimizer: Callable[..., Optimizer]
    """The optimiser, called with the parameters."""
    schedule: Callable[[float], float]
    """The factor of its learning rate at a progress through the round in [0, 1]."""
    steps: int
    """The number of optimiser steps of one round."""
    ema_decay: float
    """The decay of the weights' moving average, in [0, 1)."""
    augment: Callable[[Tensor], Tensor] | None = None
    """What is done to the reconstructions before they are corrupted afresh."""

    def __post_init__(self) -> None:
        check_fraction("m_step.ema_decay", self.ema_decay)


class DenoiserModule(LightningModule):
    """Trains a denoiser of p(x | x_t, y), or of p(x | x_t), as the objective has it.

    Arguments:
        denoiser: The denoiser d_θ.
        objective: What to minimise.
        m_step: How to optimise.
        phase: What is trained, "m_step" or "prior"; it names the loss and keys the draws.
        seed: The run's seed; every step's draws depend on (seed, step, rank) alone.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        m_step: MStep,
        *,
        phase: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.m_step = m_step
        self.seed = seed
        self.phase = phase
        self.ema = EMA(denoiser, m_step.ema_decay)

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the loss of one batch of reconstructions."""
        current = self.trainer.datamodule.round  # type: ignore[attr-defined]
        if batch.round != current:
            raise RuntimeError(f"a batch of round {batch.round} reached round {current}")
        key = (self.seed, self.phase, self.trainer.global_step, self.trainer.global_rank)
        with seeded(*key, device=self.device):
            if self.m_step.augment is not None:
                batch = batch._replace(x=self.m_step.augment(batch.x))
            t = self.m_step.times.sample(len(batch.x), self.device)
            loss = self.objective.loss(self.denoiser, batch, t, key)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at optimiser step {self.trainer.global_step} "
                f"(round {current + 1}); checkpoints/last.ckpt is from before it: lower "
                "m_step.optimizer.lr, or set trainer.precision=32-true, in a new run_dir with "
                "init=checkpoint"
            )
        self.log(f"{self.phase}/loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Averages the weights after each optimiser step."""
        self.ema.update(self.denoiser)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union
        """Returns the optimiser and its schedule over one round; called anew each round."""
        optimizer = self.m_step.optimizer(self.denoiser.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.m_step.schedule(step / self.m_step.steps)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @contextmanager
    def averaged(self) -> Iterator[Denoiser]:
        """Opens a scope for sampling with the EMA weights, in the trainer's precision."""
        with self.ema.scope() as denoiser, self.trainer.precision_plugin.forward_context():
            yield denoiser

    def restart(self) -> None:
        """Starts a round: weights from the EMA, a fresh optimiser and schedule."""
        self.ema.restore(self.denoiser)
        self.trainer.strategy.setup_optimizers(self.trainer)

    @property
    def evaluations(self) -> int:
        """The images that went through the network on this process, forward or backward."""
        return self.denoiser.evaluations + self.ema.denoiser.evaluations

    def export(self, path: Path) -> None:
        """Writes the averaged weights as safetensors, for others to load."""
        state = {k: v.cpu().contiguous() for k, v in self.ema.denoiser.state_dict().items()}
        write_file(path, lambda file: file.write(safetensors.torch.save(state)))

    def weights_hash(self) -> str:
        """Returns the sha256 of the EMA weights."""
        digest = hashlib.sha256()
        for name, value in self.ema.denoiser.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
