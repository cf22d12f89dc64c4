"""Windows cover an image, and their weights sum to one in each of its pixels."""

import pytest
import torch

from diffem.corruption import Windows

GRIDS = [  # image, window, overlap; multiples or not, one window, 1-D and 3-D
    ((16, 24), (8, 8), 0),
    ((16, 24), (8, 8), 4),
    ((17, 23), (8, 8), 3),
    ((9, 40), (8, 8), 7),
    ((8, 8), (8, 8), 4),
    ((37,), (16,), 8),
    ((37,), (16,), 1),
    ((9, 10, 11), (4, 6, 8), (2, 3, 4)),
]


@pytest.mark.parametrize(("shape", "sides", "overlap"), GRIDS)
def test_every_pixel_is_covered_and_no_window_leaves_the_image(
    shape: tuple[int, ...], sides: tuple[int, ...], overlap: int | tuple[int, ...]
) -> None:
    windows = Windows.of(shape, sides, overlap)
    count, total = torch.zeros(shape), torch.zeros(shape)
    seen = set()
    for number in range(len(windows)):
        place = windows.place(number)
        assert tuple(part.start for part in place) == windows.corner(number)
        assert count[place].shape == sides  # a slice that leaves the image would be shorter
        count[place] += 1
        total[place] += windows.weight(number)
        seen.add(windows.corner(number))
    assert len(seen) == len(windows) and count.min() >= 1
    # float32 rounds each of at most 4^3 weights.
    torch.testing.assert_close(total, torch.ones(shape), rtol=0, atol=1e-6)


def test_the_numbers_follow_the_rows_and_the_last_window_is_shifted_back() -> None:
    windows = Windows.of((10, 11), (4, 4))
    rows, columns = (0, 4, 6), (0, 4, 7)
    corners = [windows.corner(number) for number in range(len(windows))]
    assert corners == [(row, column) for row in rows for column in columns]
    assert Windows.of((10, 11), (4, 4), 2).starts == ((0, 2, 4, 6), (0, 2, 4, 6, 7))


@pytest.mark.parametrize("overlap", [4, 8, 16, 24])
def test_a_quarter_of_the_overlap_has_no_weight_but_at_the_image_s_edge(overlap: int) -> None:
    (weights,) = Windows.of((101,), (32,), (overlap,)).weights
    margin = overlap // 4
    assert (weights[1:, :margin] == 0).all() and (weights[:-1, -margin:] == 0).all()
    assert (weights[1:, margin] > 0).all() and (weights[:-1, -margin - 1] > 0).all()
    assert weights[0, 0] == 1 and weights[-1, -1] == 1


def test_two_windows_of_a_regular_grid_change_places_along_a_line() -> None:
    (weights,) = Windows.of((24,), (16,), (8,)).weights
    # From 0 a quarter of the overlap inwards to 1 a quarter of it before its end: steps of 1/5.
    expected = torch.tensor([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    torch.testing.assert_close(weights[1, :8], expected)
    torch.testing.assert_close(weights[0, 8:], 1 - expected)
