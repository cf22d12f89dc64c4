"""The M-step: a denoiser trained on re-corrupted reconstructions.

minimise  E  w(t) ‖ d_θ(x_t, t, ỹ) - x̂ ‖²
over      x̂ ~ D_k,  ỹ ~ q(· | x̂),  t ~ p(t),  x_t = x̂ + σ_t z
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffem.data.measurements import MeasurementSet
from diffem.denoiser import BetaMixture, Denoiser
from diffem.em.balance import Balance
from diffem.em.clean import CleanShare
from diffem.em.memory import Memory
from diffem.em.objective import Objective
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key, seeded
from diffem.storage.reconstructions import Batch

CLIP_EPSILON = 1e-6  # torch's: gradients are multiplied by min(1, clip / (norm + ε))


@dataclass(frozen=True)
class MStep:
    """How the M-step optimises."""

    times: BetaMixture
    """The distribution p(t) of training times."""
    optimizer: Callable[..., Optimizer]
    """The optimiser, called with the parameters."""
    schedule: Callable[[float], float]
    """The factor of its learning rate at a progress in [0, 1]."""
    ema_decay: float
    """The decay of the weights' moving average, in [0, 1), which it approaches."""
    clean: CleanShare | None = None
    """Clean images in the place of some reconstructions."""
    augment: Callable[[Tensor], Tensor] | None = None
    """What is done to the reconstructions before they are corrupted afresh."""
    rollbacks: int = 0
    """How often numbers may go bad and the rate be halved before the run ends, >= 0."""
    memory: Memory = field(default_factory=Memory)
    """What keeps it from forgetting what an earlier run had learned."""
    balance: Balance = field(default_factory=Balance)
    """How groups of measurements are weighed against one another."""

    def __post_init__(self) -> None:
        check("m_step.ema_decay", self.ema_decay)
        check("m_step.rollbacks", self.rollbacks)
        if self.augment is not None and not callable(self.augment):
            raise UserError(f"m_step.augment must be null or an Augment, got {self.augment!r}")
        if self.clean is not None and not hasattr(self.clean, "load"):
            raise UserError(
                "m_step.clean must be null or a CleanShare, as in {_target_: "
                f"diffem.em.CleanShare, share: 0.2, path: clean}}, got {self.clean!r}"
            )
        try:  # an optimiser checks its numbers when it is built
            built = self.optimizer([nn.Parameter(torch.zeros(1))])
        except Exception as error:  # torch's optimisers raise what they like
            raise UserError(f"m_step.optimizer cannot be built: {error}") from error
        check("m_step.optimizer.lr", built.defaults["lr"])


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a weight is not finite; every rank raises it at the same step."""


class DenoiserModule(LightningModule):
    """Trains a denoiser of p(x | x_t, y), or of p(x | x_t), as the objective has it.

    Arguments:
        denoiser: The denoiser d_θ.
        objective: What to minimise.
        m_step: How to optimise.
        stage: What is trained, "m_step", "prior" or "student"; it names the loss and keys the
            draws.
        seed: The run's seed; every step's draws depend on (seed, step, rank) alone.

    Attributes:
        average: The denoiser with the moving average of the weights (EMA).
        rollbacks: How often the learning rate has been halved.
        rates: The settings that its learning rates are from.
    """

    rates = "m_step.optimizer.lr"

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        m_step: MStep,
        *,
        stage: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.m_step = m_step
        self.seed = seed
        self.stage = stage
        self.average = copy.deepcopy(denoiser).requires_grad_(False)
        self.rollbacks = 0

    def training_step(self, batch: Batch) -> Tensor:
        """Returns the loss of one batch of reconstructions."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if batch.round != data.state.round:
            raise RuntimeError(f"a batch of round {batch.round} reached round {data.state.round}")
        key = (self.seed, self.stage, self.trainer.global_step, self.trainer.global_rank)
        with seeded(*key, device=self.device):
            if self.m_step.clean is not None:
                batch = batch._replace(x=self.m_step.clean(batch.x))
            batch = self.m_step.balance.weighed(self.m_step.memory(batch))
            if self.m_step.augment is not None:
                batch = batch._replace(x=self.m_step.augment(batch.x))
            t = self.m_step.times.sample(len(batch.x), self.device)
            loss = self.loss(batch, t, data.measurements, key)
        self.m_step.balance.learn(loss, batch, self._total)
        # At the steps alone that Lightning passes on: the others would take a millisecond each.
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every == 0:
            self.log(f"{self.stage}/loss", loss)
        # Times 1, or NaN if it is not finite, so that all-reduce spreads it to every rank.
        return loss * (1 + 0 * loss.detach())

    def loss(
        self, batch: Batch, t: Tensor, measurements: MeasurementSet, key: tuple[Key, ...]
    ) -> Tensor:
        """Returns the loss of a batch; its arguments are as for `Objective.loss`."""
        return self.objective.loss(self.denoiser, batch, t, measurements=measurements, key=key)

    def _total(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes."""
        total = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients' norm, and refuses a step along gradients that are not finite.

        Raises:
            NonFiniteError: If they are not, on any process.
        """
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves it to the step of a fused optimiser
        total = get_total_norm([p.grad for p in weights if p.grad is not None])
        norm = float(total)
        # 16-mixed: the scaler skips what overflows, and halves its scale.
        self._check(math.isfinite(norm) if scaler is None else scaler.get_scale() >= 1)
        # At most steps nothing is clipped: all gradients would be multiplied by 1.
        if gradient_clip_val is not None and not norm + CLIP_EPSILON <= gradient_clip_val:
            clip_grads_with_norm_(weights, gradient_clip_val, total)

    def _check(self, finite: bool) -> None:
        if not finite:
            k = self.trainer.datamodule.state.round  # type: ignore[attr-defined]
            where = f"round {k + 1}" if self.stage == "m_step" else f"the {self.stage}"
            raise NonFiniteError(
                f"the loss, its gradient or the weights are not finite at optimiser step "
                f"{self.trainer.global_step} ({where})"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the number of halvings, and the balance; weights that are not finite are refused.

        Raises:
            NonFiniteError: If a weight is not finite.
        """
        self._check(all(bool(weight.isfinite().all()) for weight in self.parameters()))
        checkpoint["rollbacks"] = self.rollbacks
        checkpoint["balance"] = self.m_step.balance.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the balance and the number of halvings, if no roll-back has just raised it."""
        self.m_step.balance.restore(checkpoint.get("balance", ()))
        self.rollbacks = max(self.rollbacks, checkpoint.get("rollbacks", 0))

    def on_train_start(self) -> None:
        """Sets the rate of the next step, which may have been saved before a roll-back."""
        self.set_rate()
        # Listed once: to walk through the modules takes longer than to average their weights.
        both = self.average, self.denoiser
        self._averaged_weights = [tuple(each.parameters()) for each in both]
        self._copied_buffers = [tuple(each.buffers()) for each in both]

    def set_rate(self) -> None:
        """Sets the rate of the next step to that of its progress."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = rate * self._factor(scheduler.last_epoch)

    def _factor(self, step: int) -> float:
        """Returns the factor of the learning rate at a step since the optimiser was made."""
        progress = self.trainer.datamodule.progress(step)  # type: ignore[attr-defined]
        return 0.5**self.rollbacks * self.m_step.schedule(progress)

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Averages the weights after each optimiser step, θ̄ ← d θ̄ + (1 - d) θ.

        d = min(decay, (1 + n) / (10 + n)) at the n-th step.
        """
        n = self.trainer.global_step
        decay = min(self.m_step.ema_decay, (1 + n) / (10 + n))
        averages, weights = self._averaged_weights
        get_ema_multi_avg_fn(decay)(averages, weights, n)
        for average, buffer in zip(*self._copied_buffers, strict=True):
            average.copy_(buffer)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union
        """Returns the optimiser and its schedule; called anew each round that restarts them."""
        optimizer = self.m_step.optimizer(self.denoiser.parameters())
        scheduler = LambdaLR(optimizer, lambda step: self._factor(step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def compile_network(self) -> None:
        """Compiles each network, also the averaged one; each shape of batch is compiled once."""
        for denoiser in self.children():
            if isinstance(denoiser, Denoiser):
                denoiser.backbone.compile(dynamic=False)

    @contextmanager
    def averaged(self) -> Iterator[Denoiser]:
        """Opens a scope for sampling with the EMA weights, in the trainer's precision."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            yield self.average.eval()
        self.average.train()  # Lightning warns of modules that start a fit in eval mode

    def restore_average(self) -> None:
        """Sets the weights in training to the EMA weights."""
        self.denoiser.load_state_dict(self.average.state_dict())

    def restart(self) -> None:
        """Starts a round: weights from the EMA, a fresh optimiser and schedule."""
        self.restore_average()
        self.trainer.strategy.setup_optimizers(self.trainer)

    def take_nfe(self) -> int:
        """Returns this process's network evaluations (NFE) since the last call."""
        return self.denoiser.take_nfe() + self.average.take_nfe()

    def weights_hash(self) -> str:
        """Returns the sha256 of the EMA weights."""
        digest = hashlib.sha256()
        for name, value in self.average.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
