"""Balance: groups of measurements of which some are rare, and the worst group's loss.

M-steps minimise the mean loss over all measurements, in which a rare group (an instrument, a site,
a class) has little say. With π_g the share of group g and L_g its loss, the others minimise

    oversample   Σ L_g / G
    dual         Σ (π_g + λ_g) L_g / (1 + Σ λ_g),   λ_g ← [λ_g + η (L_g - Σ L_h / G)]₊

The second is dual ascent for the constraints L_g ≤ Σ L_h / G, "no group's loss is above the mean
of all groups'" (constrained diffusion models: Khalafi, Ding, Ribeiro 2024, arXiv 2408.15094, which
sets bounds by hand).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.storage.reconstructions import Batch


class Balance:
    """No balance: all measurements count alike.

    Attributes:
        order: The rows that batches are permutations of, (n,); None for each row once.
    """

    balances = False
    """Whether groups count otherwise than by their number of measurements."""

    def __init__(self) -> None:
        self.order: Tensor | None = None

    def divide(self, groups: Tensor | None) -> None:
        """Takes the group of each training measurement.

        Arguments:
            groups: Their numbers, (N,), int64; None if there are no groups.
        """

    def weighed(self, batch: Batch) -> Batch:
        """Returns a batch with the weight of each row's loss."""
        return batch

    def learn(self, loss: Tensor, batch: Batch, total: Callable[[Tensor], Tensor]) -> None:
        """Learns from the loss of a batch what weights the next one has.

        Arguments:
            loss: The loss, (), before its gradient is taken.
            batch: The batch, as `weighed` returned it.
            total: Sums a tensor over all processes.
        """

    def state(self) -> list[float]:
        """Returns what a checkpoint keeps."""
        return []

    def restore(self, state: Sequence[float]) -> None:
        """Takes what a checkpoint has kept."""


class Oversample(Balance):
    """Serves the rows of a rare group more often, so that all groups are served equally often."""

    balances = True

    def divide(self, groups: Tensor | None) -> None:
        """Takes the group of each training measurement.

        Raises:
            UserError: If there are not at least two groups.
        """
        number, count = _numbered(groups, "oversample")
        most = int(count.max())
        rows = [(number == g).nonzero().flatten() for g in range(len(count))]
        self.order = torch.cat([own.repeat(-(-most // len(own)))[:most] for own in rows])


class Dual(Balance):
    """Weighs the groups by dual ascent, so that no group's loss stays above the groups' mean.

    Arguments:
        rate: The rate η of the multipliers λ, of a step, > 0.
    """

    balances = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = float(check("balance.rate", rate))
        self.number = torch.empty(0, dtype=torch.int64)
        self.share = self.multipliers = torch.empty(0)

    def divide(self, groups: Tensor | None) -> None:
        """Takes the group of each training measurement.

        Raises:
            UserError: If there are not at least two groups.
        """
        self.number, count = _numbered(groups, "dual")
        self.share = count / count.sum()
        self.multipliers = torch.zeros(len(count))

    def weighed(self, batch: Batch) -> Batch:
        """Returns a batch with the weight of each row's loss, of mean 1 over all rows."""
        device = batch.x.device
        self.share, self.multipliers = self.share.to(device), self.multipliers.to(device)
        weight = (1 + self.multipliers / self.share) / (1 + self.multipliers.sum())
        return batch._replace(weight=weight[self._group(batch)].requires_grad_())

    def learn(self, loss: Tensor, batch: Batch, total: Callable[[Tensor], Tensor]) -> None:
        """Moves the multipliers by the groups' losses in a batch; groups that are not in it stay.

        The loss is linear in the rows' weights w_i, ∂loss/∂w_i = ℓ_i / B: their own losses ℓ_i
        cost no evaluation of the network.
        """
        assert batch.weight is not None
        (slope,) = torch.autograd.grad(loss, batch.weight, retain_graph=True)
        each = torch.stack([slope * len(slope), torch.ones_like(slope)])
        group = self._group(batch)
        sums, count = total(each.new_zeros(2, len(self.share)).index_add(1, group, each))
        there = count > 0
        losses = sums / count.clamp(min=1)
        mean = (losses * there).sum() / there.sum()
        step = torch.where(there, losses - mean, 0.0)
        self.multipliers = (self.multipliers + self.rate * step).clamp(min=0)

    def state(self) -> list[float]:
        """Returns the multipliers."""
        return self.multipliers.tolist()

    def restore(self, state: Sequence[float]) -> None:
        """Takes the multipliers; without any they stay 0."""
        if state:
            self.multipliers = torch.tensor(state)

    def _group(self, batch: Batch) -> Tensor:
        """Returns the number of each row's group, (B,), on the batch's device."""
        return self.number[batch.rows].to(batch.x.device, non_blocking=True)


def _numbered(groups: Tensor | None, choice: str) -> tuple[Tensor, Tensor]:
    """Returns the number of each measurement's group, from 0, and the groups' sizes.

    Raises:
        UserError: If there are not at least two groups.
    """
    if groups is None:
        raise UserError(
            f"balance={choice} needs groups of measurements: give dataset.groups, or leave it out"
        )
    found, number, count = groups.unique(return_inverse=True, return_counts=True)
    if len(found) < 2:
        raise UserError(
            f"balance={choice} needs at least two groups, and dataset.groups has one; leave it out"
        )
    return number, count
