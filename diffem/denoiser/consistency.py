"""Data consistency: a measurement of an operator without a spectrum, in a denoiser's output.

Where AᵀA has no basis at hand, x_t cannot be fused with y before the network. What y measures is
brought into the network's estimate D of x after it, by a linear system (MoDL: Aggarwal, Mani &
Jacob 2019, arXiv 1712.02862):

    d = argmin_x  p ‖x - D‖² + (y - A x)ᵀ W (y - A x),   W = diag(1 / σ_y²)

p = 1 + α_t²/σ_t² is the precision that EDM's preconditioning takes D to have. The solution is
linear in D and invertible, so that nothing is lost: it preconditions the network's output, which
learns with the iterations that come near it.
Of y that is more precise than float32 can solve for, W is smaller, by one factor for each sample.
"""

from typing import NamedTuple

import torch
from azula.linalg.solve import cg
from torch import Tensor

from diffem.corruption import LinearChannel, Measurement
from diffem.corruption.operator import expand

ITERATIONS = 10  # of conjugate gradients: the same number always, since the network learns with it
STIFFEST = 1e6  # the largest value of AᵀW A over p: beside more, float32 loses p


class Consistency(NamedTuple):
    """What measurements say of x, as normal equations AᵀW A x = AᵀW y."""

    channel: LinearChannel
    """The channel."""
    operator: Tensor
    """The operator's parameters φ, (B, *P)."""
    weight: Tensor
    """1 / σ_y² of what is measured, 0 of what is not, (B, *M)."""
    information: Tensor
    """AᵀW y, (B, *shape)."""
    stiffness: Tensor
    """About the largest eigenvalue of AᵀW A, from below, (B,)."""

    @classmethod
    def of(cls, channel: LinearChannel, measurement: Measurement, var: Tensor) -> "Consistency":
        """Returns what measurements say of x.

        Arguments:
            channel: The channel.
            measurement: The measurements.
            var: The noise's variance σ_y², which broadcasts against y.
        """
        y, operator, _ = measurement
        weight = channel.measured_mask(y, operator) / var
        information = channel.adjoint(weight * y, operator)
        # A step of power iteration. Of the weights as they are the norms might overflow.
        largest, v = _largest(weight), information / expand(_largest(information), information)
        relative = weight / expand(largest, weight)
        image = channel.adjoint(relative * channel.apply(v, operator), operator)
        ratio = image.flatten(1).norm(dim=1) / _positive(v.flatten(1).norm(dim=1))
        return cls(channel, operator, weight, information, largest * ratio)

    def masked(self, keep: Tensor) -> "Consistency":
        """Returns that of the samples where keep, (B,), is 1, and nothing where it is 0."""
        weight, information = (expand(keep, v) * v for v in (self.weight, self.information))
        return self._replace(weight=weight, information=information)

    def correct(self, x: Tensor, precision: Tensor) -> Tensor:
        """Returns d, (B, *shape), of estimates D = x.

        Arguments:
            x: Estimates, (B, *shape).
            precision: p, which broadcasts against them.
        """
        scale = precision.sqrt()  # the unknown is √p (d - D), whose system has no value below 1
        share = STIFFEST * precision / expand(_positive(self.stiffness), x)
        share = share.clamp(max=1)  # of W

        def information(v: Tensor) -> Tensor:  # AᵀW A v
            v = self.channel.apply(v, self.operator)
            return share * self.channel.adjoint(self.weight * v, self.operator)

        def system(v: Tensor) -> Tensor:
            image = v.unflatten(1, x.shape[1:])
            return v + (information(image / scale) / scale).flatten(1)

        with torch.autocast(x.device.type, enabled=False):
            residual = (share * self.information - information(x)) / scale
            v = cg(system, residual.flatten(1), iterations=ITERATIONS, dtype=x.dtype)
            return x + v.unflatten(1, x.shape[1:]) / scale


def _largest(value: Tensor) -> Tensor:
    """Returns the largest magnitude of each sample, (B,), or a tiny one where all are 0."""
    return _positive(value.flatten(1).abs().amax(dim=1))


def _positive(value: Tensor) -> Tensor:
    """Returns values that may be divided by."""
    return value.clamp(min=torch.finfo(value.dtype).tiny)
