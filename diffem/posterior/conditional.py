"""DiffEM's posterior: sampling a conditional denoiser d_θ(x_t, t, y) ≈ E[x | x_t, y]."""

from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.denoiser import Conditioning, Denoiser
from diffem.posterior.posterior import DenoiserPosterior, SamplerFactory


class Conditional(DenoiserPosterior):
    """The posterior that a conditional denoiser defines (DiffEM, arXiv 2510.12691).

    Arguments:
        denoiser: A denoiser that was trained on measurements of the channel.
        channel: The channel.
        sampler: The sampler.
        condition: How the denoiser was conditioned on the measurements.
    """

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
