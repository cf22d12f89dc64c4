"""A sampler of one evaluation: a denoiser that was trained to turn noise and y into a sample.

    x = d_φ(x_t, t, y),   x_t = α_t V (√(1 + σ² s² / σ_y²) σ ε),   σ = σ_t / α_t

x_t is such that the fusion of x_t with y (`diffem.denoiser.Denoiser`) is what y alone says of each
coefficient, plus noise of the fused variance (1/σ² + s²/σ_y²)⁻¹. Pure noise σ ε in place of x_t
(Luo et al. 2023, Diff-Instruct, arXiv 2305.18455) would be fused away where y measures precisely,
and samples would then repeat y there, with its noise.
"""

from typing import Any

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.noise import Schedule
from azula.sample import Sampler
from torch import Tensor

from diffem.denoiser import Denoiser, TiledDenoiser
from diffem.denoiser.levels import times_at
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class OneStepSampler(Sampler):
    """Draws samples by one evaluation of a denoiser that was trained for it.

    Arguments:
        denoiser: The denoiser d_φ.
        sigma: The noise level σ that it starts from.
        silent: Whether no progress bar is shown; there is none.

    Raises:
        UserError: If the noise schedule does not reach the level.
    """

    def __init__(self, denoiser: AzulaDenoiser, *, sigma: float, silent: bool = True) -> None:
        super().__init__(steps=1, silent=silent)
        self.denoiser = denoiser
        self.t = start_time(denoiser.schedule, sigma)

    @torch.no_grad()
    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401 - the denoiser's
        """Returns samples, (B, *); of x, noise of the first time, the shape is used alone."""
        t, noise = self.t.to(x.device), torch.randn_like(x)
        if isinstance(self.denoiser, Denoiser | TiledDenoiser):
            noise = self.denoiser.fused_start(noise, t, **kwargs)
        return self.denoiser(noise, t, **kwargs).mean


def start_time(schedule: Schedule, sigma: float) -> Tensor:
    """Returns the time at which a schedule has a noise level σ = σ_t / α_t, ().

    Raises:
        UserError: If it does not reach the level.
    """
    check("student.sigma", sigma)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, std = schedule(ends)
    low, high = (std / alpha).tolist()
    if not low <= sigma <= high:
        raise UserError(
            f"student.sigma must be a level of the noise schedule, in [{low:.3g}, {high:.3g}], "
            f"got {sigma}"
        )
    level = -torch.tensor([sigma], dtype=torch.float64).log()
    return times_at(schedule, level, ends)[0].float()
