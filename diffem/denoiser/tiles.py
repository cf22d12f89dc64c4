"""Tiles: a denoiser of small images applied to a large one, window by window."""

from collections.abc import Callable

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from torch import Tensor

from diffem.corruption import Windows
from diffem.denoiser.condition import Condition
from diffem.denoiser.denoiser import Denoiser


class TiledDenoiser(AzulaDenoiser):
    """E[x | x_t, y] of one image that is larger than those of a denoiser, from overlapping tiles.

        d(x_t, t) = Σ_k w_k ⊙ d_θ(x_t in window k, t, y in window k),   Σ_k w_k = 1 in each pixel

    A sampler that draws with it follows one path of the whole image, whose noise is drawn for the
    whole image, so that neighbouring tiles agree at every step (MultiDiffusion, Bar-Tal et al.
    2023, arXiv 2302.08113). It equals a denoiser of the whole image where d_θ looks no further
    than a quarter of the windows' overlap.

    Arguments:
        denoiser: The denoiser d_θ of images of the windows' size.
        windows: The windows on the image.
        condition: Returns the condition of the tiles in a range of the windows.
        size: How many tiles are denoised together.
        on_evaluation: Called each time the whole image has been denoised.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        windows: Windows,
        condition: Callable[[slice], Condition],
        *,
        size: int,
        on_evaluation: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.windows = windows
        self.condition = condition
        self.size = size
        self.on_evaluation = on_evaluation

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        """Returns the denoised image as the mean of a Dirac posterior.

        Arguments:
            x_t: One noisy image, (1, C, *S).
            t: The time in [0, 1], ().
        """
        mean = self._blend(x_t, lambda x, condition: self.denoiser(x, t, condition).mean)
        self.on_evaluation()
        return DiracPosterior(mean)

    def fused_noise(self, noise: Tensor, t: Tensor) -> Tensor:
        """Returns white noise, (1, C, *S), given the variance of the fused measurement."""
        return self._blend(noise, lambda x, given: self.denoiser.fused_noise(x, t, given))

    def fused_start(self, noise: Tensor, t: Tensor) -> Tensor:
        """Returns x_t, (1, C, *S), whose fusion with y is what y alone says plus its noise."""
        return self._blend(noise, lambda x, given: self.denoiser.fused_start(x, t, given))

    def _blend(self, x: Tensor, function: Callable[[Tensor, Condition], Tensor]) -> Tensor:
        """Returns what a function makes of the tiles of x, (1, C, *S), blended."""
        (image,) = x
        whole = torch.zeros_like(image)
        for start in range(0, len(self.windows), self.size):
            numbers = range(start, min(start + self.size, len(self.windows)))
            places = [(..., *self.windows.place(number)) for number in numbers]
            tiles = torch.stack([image[place] for place in places])
            blended = function(tiles, self.condition(slice(start, numbers.stop)))
            weights = torch.stack([self.windows.weight(number) for number in numbers])
            for place, tile in zip(places, weights[:, None].to(blended) * blended, strict=True):
                whole[place] += tile
        return whole[None]
