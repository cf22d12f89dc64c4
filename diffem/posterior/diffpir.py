"""DiffPIR (arXiv 2305.08995): a proximal step on x̂ at each time."""

from azula.guidance.diffpir import DiffPIRDenoiser
from azula.sample import Sampler

from diffem.corruption import LinearGaussianChannel
from diffem.denoiser import Denoiser
from diffem.posterior.guided import Guided
from diffem.posterior.linear_problem import FlatDenoiser, LinearProblem
from diffem.posterior.posterior import SamplerFactory
from diffem.runtime.ranges import check


class DiffPIR(Guided):
    """DiffPIR (Zhu et al. 2023, arXiv 2305.08995).

    Arguments:
        denoiser: An unconditional denoiser.
        channel: The channel.
        sampler: The sampler.
        lmbda: The weight of the denoiser's estimate.
        iterations: The number of conjugate-gradient iterations of the proximal step.

    Raises:
        UserError: If a number is not positive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        channel: LinearGaussianChannel,
        *,
        sampler: SamplerFactory,
        lmbda: float,
        iterations: int,
    ) -> None:
        super().__init__(denoiser, channel, sampler=sampler)
        self.lmbda = check("method.posterior.lmbda", lmbda)
        self.iterations = check("method.posterior.iterations", iterations)

    def process(self, denoiser: FlatDenoiser, problem: LinearProblem) -> Sampler:
        """Returns the sampler of the proximal denoiser."""
        guide = DiffPIRDenoiser(
            denoiser,
            problem.y,
            problem.forward,
            var_y=problem.var,
            lmbda=self.lmbda,
            solver="cg",
            iterations=self.iterations,
        )
        return self.sampler(denoiser=guide, silent=True)
