"""Guidance: posteriors x ~ p(x | y) of an unconditional denoiser, as DiffEM's rivals draw them.

Each is a `PosteriorFactory` once its own settings and the sampler are given. Images are flattened
around azula's guidance, whose linear solvers take the last axis as the vector.
"""

from collections.abc import Callable

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.mmps import MMPSDenoiser
from azula.sample import DDPMSampler, Sampler
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.denoiser.denoiser import Denoiser
from diffem.posterior.posterior import Posterior, SamplerFactory
from diffem.runtime.errors import UserError, check_count, check_positive


class Flattened(AzulaDenoiser):
    """A denoiser of vectors (B, D) made from one of images (B, *shape)."""

    def __init__(self, denoiser: AzulaDenoiser, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shape = shape
        self.schedule = denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        """Returns the denoised vectors, (B, D)."""
        mean = self.denoiser(x_t.unflatten(1, self.shape), t).mean
        return DiracPosterior(mean=mean.flatten(1))


class Problem:
    """A batch of linear inverse problems y = A x + σ_y ε over vectors.

    Attributes:
        y: Measurements, (B, M).
        var: Noise variances σ_y², (B, 1).
    """

    def __init__(self, corruption: Corruption, measurement: Measurement) -> None:
        self.corruption = corruption
        self.operator = measurement.operator
        self.y = measurement.y.flatten(1)
        self.var = measurement.std[:, None] ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Returns A x, (B, M)."""
        x = x.unflatten(1, self.corruption.shape)
        return self.corruption.apply(x, self.operator).flatten(1)


def guided(
    denoiser: Denoiser, corruption: Corruption, build: Callable[[Flattened, Problem], Sampler]
) -> Posterior:
    """Returns the posterior that a guided sampling process defines.

    Arguments:
        denoiser: An unconditional denoiser.
        corruption: The channel.
        build: Makes the process from the flattened denoiser and the batch's problem.
    """
    flat = Flattened(denoiser, corruption.shape)

    def draw(measurement: Measurement) -> Tensor:
        process = build(flat, Problem(corruption, measurement))
        size = len(measurement.y), torch.Size(corruption.shape).numel()
        x = process(process.init(size, device=measurement.y.device))
        return x.unflatten(1, corruption.shape)

    return draw


def mmps(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
    solver: str,
    iterations: int,
) -> Posterior:
    """Moment-matching posterior sampling (Rozet et al. 2024, arXiv 2405.13712).

        E[x | x_t, y] ≈ x̂ + V Aᵀ (A V Aᵀ + σ_y²)⁻¹ (y - A x̂),   V = V[x | x_t] = σ_t²/α_t ∂x̂/∂x_t

    Arguments:
        denoiser: An unconditional denoiser.
        corruption: The channel.
        x: Not used.
        sampler: The sampler.
        solver: azula's linear solver, "gmres" or "cg".
        iterations: The number of solver iterations.

    Raises:
        UserError: If the solver or the number of iterations is none.
    """
    check_count("method.posterior.iterations", iterations)
    if solver not in ("gmres", "cg"):
        raise UserError(f"method.posterior.solver must be gmres or cg, got {solver!r}")

    def build(flat: Flattened, problem: Problem) -> Sampler:
        def cov_y(v: Tensor) -> Tensor:
            return problem.var * v

        guide = MMPSDenoiser(
            flat,
            problem.y,
            problem.forward,
            cov_y,  # type: ignore[arg-type]
            solver=solver,
            iterations=iterations,
        )
        return sampler(denoiser=guide, silent=True)

    return guided(denoiser, corruption, build)


def diffpir(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
    lmbda: float,
    iterations: int,
) -> Posterior:
    """DiffPIR (Zhu et al. 2023, arXiv 2305.08995): a proximal step on x̂ at each time.

    Arguments:
        denoiser: An unconditional denoiser.
        corruption: The channel.
        x: Not used.
        sampler: The sampler.
        lmbda: The weight of the denoiser's estimate.
        iterations: The number of conjugate-gradient iterations of the proximal step.

    Raises:
        UserError: If a number is not positive.
    """
    check_positive("method.posterior.lmbda", lmbda)
    check_count("method.posterior.iterations", iterations)

    def build(flat: Flattened, problem: Problem) -> Sampler:
        guide = DiffPIRDenoiser(
            flat,
            problem.y,
            problem.forward,
            var_y=problem.var,
            lmbda=lmbda,
            solver="cg",
            iterations=iterations,
        )
        return sampler(denoiser=guide, silent=True)

    return guided(denoiser, corruption, build)


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

    def __init__(self, denoiser: Flattened, problem: Problem, *, zeta: float, steps: int) -> None:
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


def dps(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
    zeta: float,
) -> Posterior:
    """Diffusion posterior sampling, the E-step of EMDiffusion (arXiv 2407.01014).

    Arguments:
        denoiser: An unconditional denoiser.
        corruption: The channel.
        x: Not used.
        sampler: The sampler, of which the number of steps is used.
        zeta: The guidance strength.

    Raises:
        UserError: If zeta is not positive.
    """
    check_positive("method.posterior.zeta", zeta)

    def build(flat: Flattened, problem: Problem) -> Sampler:
        return DPSSampler(flat, problem, zeta=zeta, steps=sampler.keywords["steps"])

    return guided(denoiser, corruption, build)
