"""DiffEM's posterior: sampling a conditional denoiser d_θ(x_t, t, y) ≈ E[x | x_t, y]."""

from collections.abc import Callable

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.noise import Schedule
from torch import Tensor

from diffem.corruption import Channel, Measurement, Windows
from diffem.denoiser import Condition, Conditioning, Denoiser, TiledDenoiser
from diffem.posterior.posterior import DenoiserPosterior, Measurements, SamplerFactory, Start
from diffem.runtime.rng import seeded


class Conditional(DenoiserPosterior):
    """The posterior that a conditional denoiser defines (DiffEM, arXiv 2510.12691).

    Arguments:
        denoiser: A denoiser that was trained on measurements of the channel.
        channel: The channel.
        sampler: The sampler.
        condition: How the denoiser was conditioned on the measurements.
    """

    redraws = True

    def __init__(
        self,
        denoiser: Denoiser,
        channel: Channel,
        *,
        sampler: SamplerFactory,
        condition: Conditioning,
    ) -> None:
        super().__init__(denoiser, channel)
        self.sampler = sampler
        self.condition = condition

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape)."""
        process = self.sampler(denoiser=self.denoiser, silent=True)
        size = measurement.y.shape[:1] + self.channel.shape
        x_1 = process.init(size, device=measurement.y.device)
        return process(x_1, condition=self.condition(self.channel, measurement))

    def redraw(self, measurement: Measurement, start: Start) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape), from an earlier draw x' of it.

            x_t = α_t x' + σ_t z,   then the reverse process from t on

        If the denoiser and x' have the law p(x | y), so has x; it depends on x' the less, the
        larger t is. The sampler takes the fraction t of its steps, rounded down, at least two.
        """
        steps = max(2, int(start.t * self.sampler.keywords["steps"]))
        process = self.sampler(denoiser=self.denoiser, silent=True, start=start.t, steps=steps)
        alpha, sigma = self.denoiser.schedule(torch.tensor(start.t, device=start.x.device))
        x_t = alpha * start.x + sigma * torch.randn_like(start.x)
        return process(x_t, condition=self.condition(self.channel, measurement))

    def draw_tiled(
        self,
        tiles: Measurements,
        windows: Windows,
        *,
        size: int,
        device: torch.device | str,
        on_evaluation: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Draws one x ~ p(x | y) of one image that is larger than the channel's, (C, *S).

        All noise is drawn for the image as a whole, from the global generators, so that it does
        not depend on the windows.

        Arguments:
            tiles: The measurements in the windows, of the channel's shape.
            windows: The windows on the image.
            size: How many tiles are denoised together.
            device: Where to sample.
            on_evaluation: Called after each evaluation of the denoiser on the whole image.
        """

        def condition(numbers: slice) -> Condition:
            return self.condition(self.channel, tiles.select(numbers).to(device))

        tiled = TiledDenoiser(
            self.denoiser, windows, condition, size=size, on_evaluation=on_evaluation
        )
        process = self.sampler(denoiser=tiled, silent=True)
        shape = (1, self.channel.shape[0], *windows.shape)
        return process(process.init(shape, device=device))[0]

    @property
    def evaluations(self) -> int:
        """How often the sampler evaluates the denoiser for one draw."""
        counter = _Counter(self.denoiser.schedule)
        process = self.sampler(denoiser=counter, silent=True)
        with seeded("evaluations"):
            process(process.init((1, 1)))
        return counter.count


class _Counter(AzulaDenoiser):
    """A denoiser that only counts how often it is evaluated."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.count = schedule, 0

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        self.count += 1
        return DiracPosterior(torch.zeros_like(x_t))
