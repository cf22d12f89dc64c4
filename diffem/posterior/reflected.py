"""Sampling a reflected diffusion (Lou & Ermon 2023, arXiv 2304.04740): `method=reflected`."""

from collections.abc import Sequence
from typing import Any

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.noise import VESchedule
from azula.sample import DDPMSampler
from torch import Tensor

from diffem.corruption import Channel
from diffem.denoiser import Conditioning, Denoiser
from diffem.denoiser.reflected import fold
from diffem.posterior.bounded import Bounds
from diffem.posterior.conditional import Conditional
from diffem.posterior.posterior import SamplerFactory
from diffem.runtime.errors import UserError

LEAST = 2.0  # the σ from which on x_t is uniform to 2 exp(-π² σ² / 8) = 1.4 %


class ReflectedSampler(DDPMSampler):
    """DDPM steps from uniform noise, each folded into [-1, 1].

    With d = E[m | x_t, y] (`diffem.denoiser.reflected`) in place of E[x | x_t, y], such a step is
    an Euler–Maruyama step of the reflected reverse process.

    Arguments:
        denoiser: A denoiser that was trained on folded x_t.
        steps: The number of evaluations of the denoiser.
        start: The time in (0, 1] of the noise that it starts from.
        silent: Whether no progress bar is shown.
    """

    # Of round 0, which is no folded noise: to fold it would move what is outside twice as far.
    confine = staticmethod(Bounds(-1.0, 1.0).clamp)

    def __init__(
        self,
        denoiser: AzulaDenoiser,
        *,
        steps: int = 50,
        start: float = 1.0,
        silent: bool = False,
    ) -> None:
        super().__init__(denoiser, steps=steps, start=start, silent=silent)

    def init(
        self,
        shape: Sequence[int],
        mean: float | Tensor = 0.0,
        var: float | Tensor = 1.0,
        **kwargs: Any,  # noqa: ANN401 - of the tensor
    ) -> Tensor:
        """Draws uniform noise in [-1, 1], whatever mean and variance the images have."""
        return 2 * torch.rand(tuple(shape), **kwargs) - 1

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401 - the denoiser's
        """Returns samples, (B, *), from noise x of the first time, which is folded."""
        return super().__call__(fold(x), **kwargs)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Returns x_s, (B, *), of x_t."""
        return fold(super().step(x_t, t, s, **kwargs))


class Reflected(Conditional):
    """The posterior that a conditional denoiser of folded images defines.

    Arguments:
        denoiser: A denoiser that was trained by the objective of that name.
        channel: The channel.
        sampler: The sampler.
        condition: How the denoiser was conditioned on the measurements: without fusion, which
            takes a Gaussian x_t.

    Raises:
        UserError: If what is sampled is no image, the schedule scales x or ends at a noise that
            is not uniform when it is folded, or y is fused with x_t.
    """

    samplers = (ReflectedSampler,)

    def __init__(
        self,
        denoiser: Denoiser,
        channel: Channel,
        *,
        sampler: SamplerFactory,
        condition: Conditioning,
    ) -> None:
        super().__init__(denoiser, channel, sampler=sampler, condition=condition)
        if len(channel.shape) == 1:
            raise UserError(
                f"method=reflected needs images, whose values lie in [-1, 1], got vectors of "
                f"{channel.shape[0]} numbers of unknown range; choose another method"
            )
        if condition.fuse is not False:
            raise UserError(
                "method.condition.fuse must be false with method=reflected, whose x_t is not "
                f"Gaussian as the fusion of x_t and y takes it to be, got {condition.fuse}"
            )
        schedule = denoiser.schedule
        if not isinstance(schedule, VESchedule):
            raise UserError(
                "method=reflected needs schedule._target_=azula.noise.VESchedule, which does not "
                f"scale images, got {type(schedule).__name__}"
            )
        if schedule.sigma_max < LEAST:
            raise UserError(
                f"schedule.sigma_max must be at least {LEAST:g} with method=reflected, which "
                f"starts from uniform noise, got {schedule.sigma_max:g}; set it to 5"
            )
