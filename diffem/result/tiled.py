"""Large images: x ~ p(x | y) of images that are larger than those that a run was trained on."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffem.corruption import Channel, Windows, require_pixelwise
from diffem.data.files import FileRows
from diffem.data.held import Held
from diffem.data.scale import Scale
from diffem.posterior import Conditional, Posterior
from diffem.result.sampling import Sampling
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.runtime.rng import seeded

TOGETHER = 2**18  # pixels of tiles that are denoised together: 64 tiles of 64 × 64


class TiledSampler:
    """Draws x ~ p(x | y) of large images, or of images of several sizes, in the data's units.

    An image is covered by overlapping tiles of the run's own shape, which are denoised a few at a
    time and blended at every step of the sampler, so that each sample follows one path of the
    whole image. In memory are x_t and a few more of the image's size, and the measurement.

    Arguments:
        posterior: The posterior, on the scale of [-1, 1]; its network is on the sampling's device.
        channel: The channel, its noise on the scale of [-1, 1].
        scale: The data's units.
        held: The measurements; their last axes are those of the image.
        sampling: How samples are drawn.
        overlap: How many pixels neighbouring tiles share along each axis, at least 0 and less than
            their shortest side; None for half of it. A denoiser that looks further than a quarter
            of it sees less at the edge of a tile than in the middle.

    Raises:
        UserError: If the posterior or the channel does not allow it, an image is smaller than a
            tile, or the overlap is out of its range.
    """

    def __init__(
        self,
        posterior: Posterior,
        channel: Channel,
        scale: Scale,
        held: Held,
        *,
        sampling: Sampling,
        overlap: int | None = None,
    ) -> None:
        part = f"sampling images that are not of the run's shape {list(channel.shape)}"
        advice = "give images of that shape"
        if len(channel.shape) < 2:
            raise UserError(f"{part} needs a run on images or signals; {advice}")
        if not isinstance(posterior, Conditional):
            raise UserError(
                f"{part} needs a run of method=diffem, and the posterior of this one is "
                f"{type(posterior).__name__}; {advice}"
            )
        require_pixelwise(channel, part, advice)
        side = min(channel.shape[1:])
        overlap = side // 2 if overlap is None else check("overlap", overlap)
        if overlap >= side:
            raise UserError(
                f"overlap must be less than {side}, the shortest side of a tile, got {overlap}; "
                "lower it"
            )
        self.posterior, self.channel, self.scale = posterior, channel, scale
        self.held, self.sampling = held, sampling
        self.windows = self._windows(overlap)

    def _windows(self, overlap: int) -> dict[int, Windows]:
        """Returns the tiles of each image, by its number."""
        return self.held.windows(
            self.channel.shape[1:],
            range(len(self.held.y)),
            overlap=overlap,
            advice="give larger images, or train on smaller ones",
        )

    def pieces(self) -> FileRows:
        """Returns the images cut side by side, as measurements of the run's shape."""
        return self._cut(self._windows(0))

    def _cut(self, windows: dict[int, Windows]) -> FileRows:
        held = self.held.cut(windows)
        return FileRows(held, torch.arange(len(held.y)), self.channel, self.scale)

    @property
    def evaluations(self) -> int:
        """How often the denoiser is evaluated on the whole image for one sample."""
        with self.sampling.context():
            return self.posterior.evaluations

    def shape(self, row: int) -> tuple[int, ...]:
        """Returns the shape of an image, (C, *S)."""
        return self.channel.shape[0], *self.windows[row].shape

    def sample(
        self,
        row: int,
        n: int,
        *,
        seed: int | None = None,
        on_evaluation: Callable[[], object] = lambda: None,
    ) -> Iterator[Tensor]:
        """Yields samples of one image, one by one.

        The noise of a sample depends on the seed, the number of its image and its own alone, and
        not on the tiles.

        Arguments:
            row: The number of the image.
            n: The number of samples.
            seed: The seed; None for the run's.
            on_evaluation: Called after each of the `evaluations` of a sample.

        Yields:
            Samples in the data's units, (C, *S), float64, on the CPU.
        """
        sampling, windows = self.sampling, self.windows[row]
        tiles = self._cut({row: windows})
        size = max(1, min(sampling.chunk_size, TOGETHER // math.prod(windows.sides)))
        for s in range(n):
            key = (sampling.chosen(seed), "tiles", s, row)
            with torch.no_grad(), sampling.context(), seeded(*key, device=sampling.device):
                x = self.posterior.draw_tiled(
                    tiles,
                    windows,
                    size=size,
                    device=sampling.device,
                    on_evaluation=on_evaluation,
                )
            yield self.scale.denormalise(x.cpu().double())
