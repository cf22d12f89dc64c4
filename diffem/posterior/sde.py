"""A stochastic second-order multistep sampler: few steps, and samples of the posterior's law.

In λ = log(α / σ) the reverse SDE is linear but for the denoiser d. With h = λ_s - λ_t its step
from t to s is exact for a d that is linear in λ (SDE-DPM-Solver++(2M), Lu et al. 2022, arXiv
2211.01095):

    x_s = α_s/α_t e^{-2h} x_t + α_s (1 - e^{-2h}) d̄ + σ_s √(1 - e^{-2h}) ε
    d̄   = d_t + h / (2 h') (d_t - d_t'),   t' the time before t, h' the step from it

With d̄ = d_t it is DDPM. At the last time, of noise σ_min, the denoiser's mean alone would leave
out what x may still be. On the scale of σ_min the prior is taken for flat, so that given x_t and y
each coefficient has the variance of their fusion, (α²/σ² + s²/σ_y²)⁻¹.
"""

from typing import Any

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.sample import Sampler
from torch import Tensor

from diffem.denoiser import Denoiser
from diffem.runtime.ranges import check

BISECTIONS = 50


class SDESampler(Sampler):
    """The multistep sampler of the reverse SDE.

    Arguments:
        denoiser: The denoiser.
        steps: The number of evaluations of the denoiser, >= 2.
        silent: Whether no progress bar is shown.

    Raises:
        UserError: If there are fewer than two steps.
    """

    def __init__(
        self,
        denoiser: AzulaDenoiser,
        *,
        steps: int = 14,
        silent: bool = False,
    ) -> None:
        super().__init__(steps=steps, silent=silent)
        check("sampler.steps@sde", self.steps)
        self.denoiser = denoiser

    @property
    def timesteps(self) -> Tensor:
        """The times of the evaluations, (steps,), at even distances in λ, found by bisection."""
        ends = torch.tensor([self.start, self.stop], dtype=torch.float64)
        first, last = self._level(ends).unbind()
        wanted = first + (last - first) * torch.linspace(0, 1, self.steps, dtype=torch.float64)
        low, high = ends.min().expand(self.steps), ends.max().expand(self.steps)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            noisier = self._level(middle) < wanted
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        times = (low + high) / 2
        times[0], times[-1] = ends
        return times.float()

    def _level(self, t: Tensor) -> Tensor:
        """Returns λ = log(α / σ) at times."""
        alpha, sigma = self.denoiser.schedule(t)
        return (alpha / sigma).log()

    @torch.no_grad()
    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401 - the denoiser's
        """Returns samples, (B, *), from noise x of the first time."""
        times = self.timesteps.to(x.device)
        alpha, sigma = self.denoiser.schedule(times)
        step = self._level(times).diff()
        before = d = x
        for i, t in enumerate(self.progress_bar(times[:-1])):
            d = self.denoiser(x, t, **kwargs).mean
            slope = (d - before) / (2 * step[i - 1]) if i else torch.zeros_like(d)
            kept = torch.exp(-2 * step[i])
            x = (
                alpha[i + 1] / alpha[i] * kept * x
                + alpha[i + 1] * (1 - kept) * (d + step[i] * slope)
                + sigma[i + 1] * (1 - kept).sqrt() * torch.randn_like(x)
            )
            before = d
        mean = self.denoiser(x, times[-1], **kwargs).mean
        noise = torch.randn_like(mean)
        if isinstance(self.denoiser, Denoiser):
            return mean + self.denoiser.fused_noise(noise, times[-1], **kwargs)
        return mean + sigma[-1] / alpha[-1] * noise
