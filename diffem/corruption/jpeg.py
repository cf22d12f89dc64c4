"""JPEG: g(u) is u after a lossy compression."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.corruption.noise import Noise
from diffem.corruption.parameter import ChannelParameter
from diffem.runtime.errors import UserError


class JPEG(Distortion):
    """Compresses 8-bit images by Pillow's JPEG, on the CPU.

    -1 is black (0) and 1 white (255).

    Arguments:
        quality: The encoder's quality in [1, 100], or a range [low, high].
    """

    def __init__(self, *, quality: float | Sequence[float]) -> None:
        self.quality = ChannelParameter.of("corruption.quality", quality)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"quality": self.quality}

    def check(self, shape: Sequence[int], noise: Noise) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(
                "corruption=jpeg needs grey or colour images of shape (1, H, W) or (3, H, W), got "
                f"{tuple(shape)}; give other images"
            )

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        pixels = ((u.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
        qualities = parameters[:, 0].round().long().tolist()
        images = pixels.movedim(1, -1).squeeze(-1).numpy()  # grey ones have no axis of channels
        decoded = [
            compressed(image, quality) for image, quality in zip(images, qualities, strict=True)
        ]
        y = torch.from_numpy(np.stack(decoded)).reshape(len(u), *u.shape[2:], u.shape[1])
        return y.movedim(-1, 1).to(u) / 127.5 - 1


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """Returns an 8-bit image, (H, W) or (H, W, 3), after a compression of this quality."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
