"""Split Gibbs sampling: a plug-and-play posterior of an unconditional denoiser.

    z ~ p(z | x, y) ∝ N(y; A z, σ_y²) N(z; x, ρ²)      exact, in the operator's spectrum
    x ~ p(x | z)    ∝ p(x) N(z; x, ρ²)                 denoising from the noise level ρ

alternate while the coupling ρ falls; as ρ → 0, x is drawn from p(x | y) (Vono et al. 2019; with a
diffusion model as the prior step, Wu et al. 2024, arXiv 2405.18782).
"""

import torch
from azula.sample import DDPMSampler
from torch import Tensor

from diffem.corruption import LinearGaussianChannel, Measurement
from diffem.denoiser import Denoiser
from diffem.posterior.bounded import bounded, bounds_of
from diffem.posterior.posterior import (
    DenoiserPosterior,
    SamplerFactory,
    require_spectrum,
    steps_of,
)
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


def time_of(denoiser: Denoiser, rho: Tensor) -> Tensor:
    """Returns the time t at which σ_t / α_t = ρ, by bisection on [0, 1], float64, for each ρ.

    It is found on the device of ρ, without the host.
    """
    low, high = torch.zeros_like(rho).double(), torch.ones_like(rho).double()
    for _ in range(50):
        middle = (low + high) / 2
        alpha, sigma = denoiser.schedule(middle.float())
        below = sigma / alpha < rho
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


class SplitGibbs(DenoiserPosterior):
    """The posterior that annealed split Gibbs sampling draws from.

    Arguments:
        denoiser: An unconditional denoiser.
        channel: The channel, of known spectrum.
        sampler: The DDPM sampler, of which the number of steps is used and shared out over the
            sweeps; the prior step draws p(x | z), which takes a stochastic sampler.
        coupling: The first and the last ρ.
        sweeps: The number of sweeps, >= 2, each one step of z and one of x.

    Raises:
        UserError: If a number is too small, or there are fewer steps than sweeps.
    """

    requires = LinearGaussianChannel
    samplers = (DDPMSampler,)

    def __init__(
        self,
        denoiser: Denoiser,
        channel: LinearGaussianChannel,
        *,
        sampler: SamplerFactory,
        coupling: tuple[float, float],
        sweeps: int,
    ) -> None:
        super().__init__(denoiser, channel)
        require_spectrum(channel, "method.posterior=SplitGibbs")
        check("method.posterior.sweeps", sweeps)
        if len(coupling) != 2:
            raise UserError(f"method.posterior.coupling must be two numbers, got {coupling}")
        first, last = check("method.posterior.coupling", coupling)
        steps = steps_of(sampler)
        self.make = bounded(DDPMSampler, bounds_of(sampler.func))
        if steps < sweeps:
            raise UserError(
                f"sampler.steps must be at least method.posterior.sweeps={sweeps}, got {steps}: "
                "each sweep takes a step"
            )
        rhos = [first * (last / first) ** (i / (sweeps - 1)) for i in range(sweeps)]
        levels = torch.tensor(rhos, dtype=torch.float64)
        times = [float(time_of(denoiser, rho)) for rho in levels]
        # The last sweeps, where the coupling is tightest, take the steps that are left over.
        counts = [(steps + i) // sweeps for i in range(sweeps)]
        self.sweeps = list(zip(rhos, times, counts, strict=True))

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape)."""
        channel, denoiser = self.channel, self.denoiser
        assert isinstance(channel, LinearGaussianChannel)
        spectrum = channel.spectrum(measurement.operator)
        assert spectrum is not None
        At_y = spectrum.analyse(channel.adjoint(measurement.y, measurement.operator))
        var = channel.variance(measurement)
        x = torch.zeros_like(At_y)
        for rho, start, steps in self.sweeps:
            precision = spectrum.square / var + rho**-2
            z = (At_y / var + spectrum.analyse(x) / rho**2) / precision
            z = spectrum.synthesise(z + torch.randn_like(z) / precision.sqrt())
            alpha, _ = denoiser.schedule(torch.full((), start, device=z.device))
            process = self.make(denoiser, start=start, steps=steps, silent=True, device=z.device)
            x = process(alpha * z)
        return x
