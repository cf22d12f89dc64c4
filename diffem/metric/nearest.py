"""Nearest neighbours among images: whether samples are copies of what was trained on."""

from collections.abc import Iterable

import torch
from torch import Tensor


def nearest(x: Tensor, sets: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the distance to the nearest image, and that image, of each image.

    The distance is the root mean square of the difference over entries, in units of x.

    Arguments:
        x: Images, (n, *shape), n >= 1.
        sets: The images to search, in parts, (m, *shape); at least one in all.

    Returns:
        The distances, (n,), and the nearest images, (n, *shape).
    """
    flat = x.flatten(1).double()
    squares = torch.full((len(x),), torch.inf, dtype=torch.float64)
    found = torch.zeros_like(x)
    for part in sets:
        # Differences, not products: those of nearly equal images would be lost in rounding.
        square, index = (
            torch.cdist(
                flat, part.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist"
            )
            .square()
            .min(dim=1)
        )
        closer = square < squares
        squares[closer], found[closer] = square[closer], part[index[closer]]
    return (squares / flat.shape[1]).sqrt(), found
