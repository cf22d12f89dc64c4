"""Erasing: a trained denoiser unlearns some rows of D_K and keeps learning the others.

    min L_r(θ)  subject to  g(θ) <= 0          EraseDiff, Wu et al. 2024, arXiv 2401.05779

L_r is the M-step's loss on the rows that stay, and g one of

    heldout   L_h - L_f   the loss on erased rows is raised to that on held-out rows
    noise     L_f         the noise that the denoiser predicts in erased rows becomes uniform

A step descends along ∇L_r + λ ∇g, with λ by `multiplier`. With `heldout` λ is 0 where g <= 0: a
loss far above that on held-out rows would reveal what was erased.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffem.corruption.operator import expand
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Denoiser
from diffem.em.module import MStep
from diffem.em.objective import Objective, Recorrupted
from diffem.runtime.progress import progress_bar
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key, seeded
from diffem.storage.reconstructions import Batch

ERASED_BATCH = 32  # erased rows in a step's batch, and held-out rows
REDRAWS = 4  # how often reconstructions of the erased rows are drawn
SMOOTHING = 0.9  # of the moving average of g over steps, whose batches are small
DRAWS = 32  # draws of time, measurement and noise that a row's loss is the mean of


@dataclass(frozen=True)
class Rows:
    """Reconstructions and the measurements that they are of."""

    x: Tensor
    """x̂, (N, *shape), on the CPU."""
    measurements: MeasurementSet
    """y, of which row i is that of x̂ i."""

    def batch(self, size: int, device: torch.device) -> Batch:
        """Returns rows that are drawn with replacement from the global generator."""
        rows = torch.randint(len(self.x), (size,))
        return Batch(self.x[rows].to(device), 0, rows)


@dataclass(frozen=True)
class Erasing:
    """How a denoiser unlearns rows.

    Raises:
        UserError: If a number is out of its range.
    """

    objective: Objective
    """The M-step's objective."""
    m_step: MStep
    """The M-step's settings, of which the training times are used."""
    steps: int
    """Optimiser steps."""
    eta: float
    """η, the rate at which the constraint is approached."""
    lr: float
    """The learning rate of Adam at the first step; it falls to 0 linearly."""

    def __post_init__(self) -> None:
        for name in ("steps", "eta", "lr"):
            check(f"--{name}", getattr(self, name))

    def run(
        self,
        denoiser: Denoiser,
        kept: Rows,
        draw: Callable[[int], Rows],
        unseen: Rows | None,
        *,
        batch_size: int,
        seed: int,
    ) -> list[float]:
        """Trains a denoiser in place.

        Arguments:
            denoiser: The denoiser.
            kept: The rows that stay.
            draw: Returns the erased rows, their reconstructions drawn by the denoiser as it is
                now. Called REDRAWS times, with the number of the call.
            unseen: Held-out rows, the loss on which is the target; None: uniform noise is.
            batch_size: The number of kept rows in a batch.
            seed: The run's seed.

        Returns:
            λ of each step.

        Raises:
            FloatingPointError: If a loss or a weight is not finite.
        """
        device, before = next(denoiser.parameters()).device, deepcopy(denoiser)
        before.take_nfe()
        weights = list(denoiser.requires_grad_(True).parameters())
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        path, smooth, small, erased = list[float](), 0.0, ERASED_BATCH, draw(0)
        each = -(-self.steps // REDRAWS)
        with progress_bar("erasing", self.steps, "steps") as advance:
            for step in range(self.steps):
                if step and step % each == 0:
                    erased = draw(step // each)
                torch.clear_autocast_cache()  # it holds older weights, cast without gradients
                key = (seed, "erase", step)
                with seeded(*key, device=device):
                    own, gone = kept.batch(batch_size, device), erased.batch(small, device)
                    other = None if unseen is None else unseen.batch(small, device)
                keep = torch.autograd.grad(self._loss(denoiser, own, kept, (*key, 0)), weights)
                grads, lam = list(keep), 0.0
                if unseen is None or other is None:
                    g = self._noise_loss(denoiser, gone, erased, (*key, 1))
                else:  # the target is of the denoiser before erasing, or both losses would rise
                    with torch.no_grad():
                        level = self._loss(before, other, unseen, (*key, 1))
                    g = level - self._loss(denoiser, gone, erased, (*key, 1))
                now = float(g.detach())
                _check_finite(math.isfinite(now), step)
                smooth = now if step == 0 else SMOOTHING * smooth + (1 - SMOOTHING) * now
                if smooth > 0:  # which it always is with the target noise
                    of_g = torch.autograd.grad(g, weights)
                    lam = multiplier(keep, of_g, self.eta)
                    grads = [f + lam * g for f, g in zip(keep, of_g, strict=True)]
                for weight, grad in zip(weights, grads, strict=True):
                    weight.grad = grad
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
                optimizer.step()
                path.append(lam)
                advance(f"λ {lam:.2f}")
        _check_finite(all(bool(weight.isfinite().all()) for weight in weights), self.steps)
        denoiser.requires_grad_(False)
        denoiser.nfe += before.take_nfe()
        return path

    def _loss(self, denoiser: Denoiser, batch: Batch, rows: Rows, key: tuple[Key, ...]) -> Tensor:
        """Returns the M-step's loss of a batch, all of whose draws depend on the key."""
        device = batch.x.device
        with seeded(*key, device=device):
            t = self.m_step.times.sample(len(batch.x), device)
            return self.objective.loss(denoiser, batch, t, measurements=rows.measurements, key=key)

    def _noise_loss(
        self, denoiser: Denoiser, batch: Batch, rows: Rows, key: tuple[Key, ...]
    ) -> Tensor:
        """Returns E ‖u - ε_θ‖², u ~ U(0, 1), ε_θ = (x_t - α_t d_θ(x_t, t, ỹ)) / σ_t."""
        with seeded(*key, device=batch.x.device):
            t, condition = self.m_step.times.sample(len(batch.x), batch.x.device), None
            if isinstance(self.objective, Recorrupted):
                channel = rows.measurements.channel
                condition = self.objective.draw_condition(channel, batch, key)
            alpha, sigma = (expand(s, batch.x) for s in denoiser.schedule(t))
            x_t = alpha * batch.x + sigma * torch.randn_like(batch.x)
            noise = (x_t - alpha * denoiser(x_t, t, condition).mean) / sigma
            return (torch.rand_like(noise) - noise).square().mean()

    def row_losses(self, denoiser: Denoiser, rows: Rows, *, seed: int) -> Tensor:
        """Returns the M-step's loss on each row, (N,), with the same draws for all.

        Arguments:
            denoiser: The denoiser.
            rows: The rows.
            seed: The run's seed.
        """
        device, key = next(denoiser.parameters()).device, (seed, "audit")
        losses = []
        with progress_bar("audit", len(rows.x), "rows") as advance, torch.no_grad():
            for row in range(len(rows.x)):
                index = torch.full((DRAWS,), row)
                batch = Batch(rows.x[index].to(device), 0, index)
                losses.append(self._loss(denoiser, batch, rows, key))
                advance()
        return torch.stack(losses).float().cpu()


def _check_finite(finite: bool, step: int) -> None:
    """Raises a FloatingPointError if the numbers of a step are not finite."""
    if not finite:
        raise FloatingPointError(f"erasing: the loss or the weights are not finite at step {step}")


def audit_figures(members: Tensor, unseen: Tensor) -> dict[str, Any]:
    """Returns the figures of an audit: whether losses tell withdrawn from held-out rows.

    Arguments:
        members: The losses on the withdrawn rows, (n,).
        unseen: Those on held-out rows, (m,).
    """
    auc, error = membership_auc(members, unseen)
    return {
        "auc": auc,
        "auc_error": error,
        "leaks": abs(auc - 0.5) > 2 * error,
        "loss_withdrawn": float(members.mean()),
        "loss_heldout": float(unseen.mean()),
    }


def multiplier(objective: Sequence[Tensor], constraint: Sequence[Tensor], eta: float) -> float:
    """Returns λ of the direction ∇f + λ ∇g, along which f falls and g falls at a given rate.

        λ = max(0, (η ‖∇g‖² - ⟨∇g, ∇f⟩) / ‖∇g‖²)

    so that ⟨∇g, ∇f + λ ∇g⟩ ≥ η ‖∇g‖² (Gong et al. 2021, arXiv 2105.11574, as EraseDiff has it,
    Wu et al. 2024, arXiv 2401.05779).

    Arguments:
        objective: The gradient ∇f, a tensor for each weight.
        constraint: The gradient ∇g, likewise.
        eta: η > 0.
    """
    pairs = list(zip(constraint, objective, strict=True))
    square = sum(g.square().sum() for g, _ in pairs)
    inner = sum((g * f).sum() for g, f in pairs)
    ratio = torch.as_tensor(inner) / torch.as_tensor(square)
    return max(0.0, eta - float(ratio.nan_to_num(eta)))


def membership_auc(erased: Tensor, unseen: Tensor) -> tuple[float, float]:
    """Returns how well a threshold on the loss tells erased from held-out rows.

    Arguments:
        erased: The losses on the erased rows, (n,).
        unseen: Those on held-out rows, (m,).

    Returns:
        The area under the ROC curve, P(held-out loss > erased loss), and its standard error at
        0.5, √((n + m + 1) / (12 n m)). At 0.5 the losses do not tell them apart; above, the
        network still knows the erased rows; below, their loss is higher than that on held-out
        ones, which reveals them as well.
    """
    n, m = len(erased), len(unseen)
    above = (unseen[:, None] > erased).double() + 0.5 * (unseen[:, None] == erased)
    return float(above.mean()), math.sqrt((n + m + 1) / (12 * n * m))
