"""Split Gibbs sampling: a plug-and-play posterior of an unconditional denoiser.

    z ~ p(z | x, y) ∝ N(y; A z, σ_y²) N(z; x, ρ²)      exact, in the operator's spectrum
    x ~ p(x | z)    ∝ p(x) N(z; x, ρ²)                 denoising from the noise level ρ

alternate while the coupling ρ falls; as ρ → 0, x is drawn from p(x | y) (Vono et al. 2019; with a
diffusion model as the prior step, Wu et al. 2024, arXiv 2405.18782).
"""

import torch
from azula.sample import DDPMSampler
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.corruption.channel import expand
from diffem.denoiser.denoiser import Denoiser
from diffem.posterior.posterior import Posterior, SamplerFactory
from diffem.runtime.errors import UserError, check_count, check_positive


def time_of(denoiser: Denoiser, rho: float) -> float:
    """Returns the time t at which σ_t / α_t = ρ, by bisection on [0, 1]."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        alpha, sigma = denoiser.schedule(torch.tensor(middle))
        low, high = (middle, high) if float(sigma / alpha) < rho else (low, middle)
    return high


def split_gibbs(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
    coupling: tuple[float, float],
    sweeps: int,
) -> Posterior:
    """Returns the posterior that annealed split Gibbs sampling draws from.

    Arguments:
        denoiser: An unconditional denoiser.
        corruption: The channel, of known spectrum.
        x: Not used.
        sampler: The sampler, of which the number of steps is used and shared out over the sweeps;
            the prior step draws p(x | z), which takes a stochastic sampler: DDPM.
        coupling: The first and the last ρ.
        sweeps: The number of sweeps, each one step of z and one of x.

    Raises:
        UserError: If a number is not positive.
        NotImplementedError: If the operator's spectrum is not at hand (when drawing).
    """
    check_count("method.posterior.sweeps", sweeps)
    if len(coupling) != 2:
        raise UserError(f"method.posterior.coupling must be two numbers, got {coupling}")
    first, last = (check_positive("method.posterior.coupling: each", rho) for rho in coupling)
    steps = max(1, sampler.keywords["steps"] // sweeps)
    rhos = [first * (last / first) ** (i / max(1, sweeps - 1)) for i in range(sweeps)]

    def draw(measurement: Measurement) -> Tensor:
        y, operator, std = measurement
        spectrum = corruption.spectrum(operator)
        if spectrum is None:
            raise NotImplementedError(f"{type(corruption).__name__} has no spectrum")
        back = spectrum.analyse(corruption.adjoint(y, operator))
        var = expand(std**2, back)
        x = torch.zeros_like(back)
        for rho in rhos:
            precision = spectrum.square / var + rho**-2
            z = (back / var + spectrum.analyse(x) / rho**2) / precision
            z = spectrum.synthesise(z + torch.randn_like(z) / precision.sqrt())
            start = time_of(denoiser, rho)
            alpha, _ = denoiser.schedule(torch.tensor(start))
            process = DDPMSampler(denoiser, start=start, steps=steps, silent=True)
            x = process(alpha.to(z) * z)
        return x

    return draw
