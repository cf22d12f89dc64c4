"""Moment-matching posterior sampling, the E-step of EM-MMPS (arXiv 2405.13712)."""

import warnings

from azula.guidance.mmps import MMPSDenoiser
from azula.sample import Sampler
from torch import Tensor

from diffem.corruption import LinearGaussianChannel
from diffem.denoiser import Denoiser
from diffem.posterior.guided import Guided
from diffem.posterior.linear_problem import FlatDenoiser, LinearProblem
from diffem.posterior.posterior import SamplerFactory
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class MMPS(Guided):
    """Moment-matching posterior sampling (Rozet et al. 2024, arXiv 2405.13712).

        E[x | x_t, y] ≈ x̂ + V Aᵀ (A V Aᵀ + σ_y²)⁻¹ (y - A x̂),   V = V[x | x_t] = σ_t²/α_t ∂x̂/∂x_t

    Arguments:
        denoiser: An unconditional denoiser.
        channel: The channel.
        sampler: The sampler.
        solver: azula's linear solver, "gmres" or "cg".
        iterations: The number of solver iterations.

    Raises:
        UserError: If the solver is unknown or the number of iterations below 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        channel: LinearGaussianChannel,
        *,
        sampler: SamplerFactory,
        solver: str,
        iterations: int,
    ) -> None:
        super().__init__(denoiser, channel, sampler=sampler)
        self.iterations = check("method.posterior.iterations", iterations)
        if solver not in ("gmres", "cg"):
            raise UserError(f"method.posterior.solver must be gmres or cg, got {solver!r}")
        self.solver = solver
        _load_forward_derivatives()

    def process(self, denoiser: FlatDenoiser, problem: LinearProblem) -> Sampler:
        """Returns the sampler of the moment-matched denoiser."""

        def cov_y(v: Tensor) -> Tensor:
            return problem.var * v

        guide = MMPSDenoiser(
            denoiser,
            problem.y,
            problem.forward,
            cov_y,  # type: ignore[arg-type]
            solver=self.solver,
            iterations=self.iterations,
        )
        return self.sampler(denoiser=guide, silent=True)


def _load_forward_derivatives() -> None:
    """Loads torch's forward derivatives, by which azula's guide applies A.

    torch scripts some of them when they are first taken, and warns that scripts are deprecated.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is", FutureWarning)
        from torch._decomp import decompositions_for_jvp  # noqa: F401
