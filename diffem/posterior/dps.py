"""Diffusion posterior sampling, the E-step of EMDiffusion (arXiv 2407.01014)."""

import torch
from azula.sample import DDPMSampler, Sampler
from torch import Tensor

from diffem.corruption import LinearGaussianChannel
from diffem.denoiser import Denoiser
from diffem.posterior.bounded import bounded, bounds_of
from diffem.posterior.guided import Guided
from diffem.posterior.linear_problem import FlatDenoiser, LinearProblem
from diffem.posterior.posterior import SamplerFactory, steps_of
from diffem.runtime.ranges import check


class DPSSampler(DDPMSampler):
    """Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687), on DDPM steps.

        x_s ← DDPM(x_t, x̂) - ζ ∇_{x_t} ‖y - A x̂‖

    The norm is each sample's own: azula's takes one norm over the batch, which makes the step
    depend on the batch size.

    Arguments:
        denoiser: An unconditional denoiser of vectors.
        problem: The batch's problem.
        zeta: The guidance strength ζ.
        steps: The number of steps.
    """

    def __init__(
        self, denoiser: FlatDenoiser, problem: LinearProblem, *, zeta: float, steps: int
    ) -> None:
        super().__init__(denoiser, steps=steps, silent=True)
        self.problem = problem
        self.zeta = zeta

    @torch.no_grad()
    def step(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:  # type: ignore[override]
        """Returns x_s, (B, D), of x_t, (B, D)."""
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            x_hat = self.denoiser(x_t, t).mean
            error = self.problem.y - self.problem.forward(x_hat)
            (grad,) = torch.autograd.grad(error.norm(dim=1).sum(), x_t)
        alpha_s, sigma_s = self.denoiser.schedule(s)
        alpha_t, sigma_t = self.denoiser.schedule(t)
        tau = 1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2  # as in azula's DDPM
        z_t = (x_t - alpha_t * x_hat) / sigma_t
        x_s = alpha_s * x_hat + sigma_s * (1 - tau).sqrt() * z_t
        x_s = x_s + sigma_s * tau.sqrt() * torch.randn_like(x_t)
        return (x_s - self.zeta * grad).detach()


class DPS(Guided):
    """Diffusion posterior sampling on DDPM steps.

    Arguments:
        denoiser: An unconditional denoiser.
        channel: The channel.
        sampler: The DDPM sampler, of which the number of steps is used.
        zeta: The guidance strength ζ.

    Raises:
        UserError: If zeta is not positive, or the sampler has other settings.
    """

    samplers = (DDPMSampler,)

    def __init__(
        self,
        denoiser: Denoiser,
        channel: LinearGaussianChannel,
        *,
        sampler: SamplerFactory,
        zeta: float,
    ) -> None:
        super().__init__(denoiser, channel, sampler=sampler)
        self.zeta = check("method.posterior.zeta", zeta)
        self.steps = steps_of(sampler)

    def process(self, denoiser: FlatDenoiser, problem: LinearProblem) -> Sampler:
        """Returns the sampler whose steps follow the likelihood's gradient."""
        make = bounded(DPSSampler, bounds_of(self.sampler.func))
        return make(denoiser, problem, zeta=self.zeta, steps=self.steps)
