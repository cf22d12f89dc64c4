"""Nearest neighbours among images."""

import torch

from diffem.metric import nearest


def test_known_neighbours_in_parts() -> None:
    draw = torch.Generator().manual_seed(0)
    held = torch.randn(50, 1, 4, 4, generator=draw)
    x = held[[40, 3, 17]] + 0.5 * torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 4, 4)
    x[2] = held[17]
    distance, found = nearest(x, held.split(16))
    torch.testing.assert_close(found, held[[40, 3, 17]])
    torch.testing.assert_close(distance, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))


def test_nearly_equal_images_are_not_lost_in_rounding() -> None:
    """By products, ‖a‖² + ‖b‖² − 2 a·b, the distance would be 0 in float32."""
    held = torch.ones(30, 1, 8, 8)
    x = held[:2] + 2.0**-20
    distance, _ = nearest(x, [held])
    torch.testing.assert_close(distance, torch.full((2,), 2.0**-20, dtype=torch.float64))
