"""Small pictures of a run, kept as arrays, from which its page is made at any time.

figures/round_003.npz   what `figures/round_003.png` shows, and several samples of each measurement
figures/heldout.npz     the same of held-out measurements
figures/prior.npz       samples of the prior, and those with the nearest reconstructions

Values in [-1, 1] are kept as 8 bits, standard deviations as they are. A large image is averaged
over blocks until its longer side is at most 96 pixels.
"""

import base64
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image
from torch import Tensor

from diffem.storage.npz import Arrays, load_arrays, save_arrays

SHOWN = 6  # measurements
SAMPLES = 8  # of each
SIDE = 96  # pixels of a kept image, at most
SHOWN_SIDE = 64  # pixels of an image on the page, at least
GAP = 4  # pixels between images on the page
ACROSS = 8  # images in a row of a grid
POINTS = 512  # of a scatter plot


def save_pictures(path: Path, samples: Tensor, lifted: Tensor, truth: Tensor | None) -> None:
    """Saves what the page shows of some measurements.

    Arguments:
        path: The .npz file.
        samples: Samples of the posterior of each measurement, (S, n, *shape).
        lifted: The measurements on the grid of x, (n, *shape).
        truth: The clean images, (n, *shape); None if they are not known.
    """
    if samples.ndim == 3:  # vectors: their first two entries
        count = math.ceil(POINTS / len(samples))
        arrays = {"points": _points(samples[:, :count])}
        if truth is not None:
            arrays["true_points"] = _points(truth[None, :POINTS])
    else:
        n = min(samples.shape[1], SHOWN)
        samples, lifted = samples[:, :n], lifted[:n]
        arrays = {
            "measurement": _bytes(lifted),
            "samples": np.stack([_bytes(x) for x in samples[:SAMPLES]]),
            "mean": _bytes(samples.mean(0)),
            "std": _reduced(samples.std(0).mean(1, keepdim=True).float().numpy())[..., 0],
        }
        if truth is not None:
            arrays["truth"] = _bytes(truth[:n])
    save_arrays(path, arrays)


def save_prior_pictures(
    path: Path, samples: Tensor, pairs: tuple[Tensor, Tensor, Tensor] | None
) -> None:
    """Saves samples of the prior, and those nearest to a training reconstruction.

    Arguments:
        path: The .npz file.
        samples: Samples, (n, *shape).
        pairs: Samples, (m, *shape), the reconstruction nearest to each, and their distances, (m,);
            None if they were not compared.
    """
    if samples.ndim == 2:
        save_arrays(path, {"points": _points(samples[None, :POINTS])})
        return
    arrays = {"samples": _bytes(samples)}
    if pairs is not None:
        pair, nearest, distance = pairs
        arrays |= {"pair": _bytes(pair), "nearest": _bytes(nearest), "distance": distance.numpy()}
    save_arrays(path, arrays)


def load_pictures(path: Path) -> Arrays:
    """Returns what `save_pictures` or `save_prior_pictures` wrote.

    Returns:
        The arrays; none if the file is absent or damaged, or holds what these do not write.
    """
    held = load_arrays(path)
    try:
        return held if held and _are_pictures(held) else {}
    except KeyError:
        return {}


def _are_pictures(held: Arrays) -> bool:
    """Returns whether arrays are of the shapes and types that pages take.

    Raises:
        KeyError: If one is missing.
    """
    if "points" in held:
        clouds = [held[name] for name in ("points", "true_points") if name in held]
        return all(c.dtype.kind == "f" and c.ndim == 2 and c.shape[1] == 2 for c in clouds)
    if not all(
        x.dtype == np.uint8 and x.ndim in (4, 5) and x.shape[-1] in (1, 3) and x.size
        for name, x in held.items()
        if name not in ("std", "distance")
    ):
        return False
    samples = held["samples"]
    if "measurement" not in held:  # of the prior
        known = [held[name].shape for name in ("pair", "nearest") if name in held]
        distance = held["distance"] if known else samples
        return samples.ndim == 4 and (
            not known
            or (len(known) == 2 and known[0] == known[1] and len(known[0]) == 4
                and distance.dtype.kind == "f" and distance.shape == known[0][:1]
                and bool(np.isfinite(distance).all()))
        )  # fmt: skip
    std = held["std"]
    beside = [held[name] for name in ("measurement", "mean", "truth") if name in held]
    return (
        held["mean"].ndim == 4
        and samples.ndim == 5
        and all(x.shape[:-1] == samples.shape[1:-1] for x in beside)
        and std.dtype.kind == "f"
        and std.ndim == 3
        and (len(std), std.shape[2]) == (samples.shape[1], samples.shape[3])  # a signal's: a row
        and bool(np.isfinite(std).any() and not np.isinf(std).any())
    )


def strip(images: Sequence[np.ndarray], *, across: bool = False) -> np.ndarray:
    """Returns images in one, with gaps that let the page show through, (H, W, 4) of 8 bits.

    Arguments:
        images: Images of one size, (h, w, 1 or 3), of 8 bits.
        across: Whether they stand beside one another, and not below.
    """
    tiles = [_scaled(image) for image in images]
    height, width = tiles[0].shape[:2]
    n, axis = len(tiles), 1 if across else 0
    size = [height, width]
    size[axis] = n * size[axis] + (n - 1) * GAP
    whole = np.zeros((*size, 4), np.uint8)
    for i, tile in enumerate(tiles):
        start = i * (tile.shape[axis] + GAP)
        rows = slice(start, start + height) if axis == 0 else slice(None)
        columns = slice(start, start + width) if axis == 1 else slice(None)
        whole[rows, columns, :3], whole[rows, columns, 3] = tile, 255
    return whole


def grid(images: np.ndarray) -> np.ndarray:
    """Returns images in rows of eight, (H, W, 4)."""
    columns = [strip(list(images[i::ACROSS])) for i in range(min(ACROSS, len(images)))]
    return beside(columns)


def beside(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns strips of images, (h, w, 4), beside one another; shorter ones end in nothing."""
    height = max(len(column) for column in columns)
    parts = []
    for i, column in enumerate(columns):
        below = [(0, height - len(column)), (GAP if i else 0, 0), (0, 0)]
        parts.append(np.pad(column, below))
    return np.concatenate(parts, axis=1)


def coloured(std: np.ndarray, largest: float) -> np.ndarray:
    """Returns standard deviations in colours from 0 (dark) to the largest, (…, 3) of 8 bits."""
    scaled = np.clip(np.nan_to_num(std) / max(largest, 1e-12), 0, 1)
    return (255 * mpl.colormaps["magma"](scaled)[..., :3]).astype(np.uint8)


def data_uri(image: np.ndarray) -> str:
    """Returns an image of 8 bits, (H, W, 4), as a URI that holds it as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@functools.lru_cache(maxsize=128)
def _round_strips(path: Path, modified: int, largest: float) -> dict[str, str]:
    """Returns the columns of a round; the page is written anew after each, but not its images."""
    held = load_pictures(path)
    if "mean" not in held:
        return {}
    columns = {"reconstruction": held["samples"][0], "mean": held["mean"]}
    columns["std"] = coloured(held["std"], largest)
    return {name: data_uri(strip(list(images))) for name, images in columns.items()}


def round_strips(path: Path, *, largest: float) -> dict[str, str]:
    """Returns the columns `reconstruction`, `mean` and `std` of a round's file as URIs.

    Arguments:
        path: The .npz file.
        largest: The standard deviation that the brightest colour stands for.

    Returns:
        {column: URI}; nothing where the file holds no such images.
    """
    return _round_strips(path, path.stat().st_mtime_ns, largest) if path.is_file() else {}


def _points(x: Tensor) -> np.ndarray:
    """Returns the first two entries of vectors, (S, n, D), as (S n, 2)."""
    flat = x.flatten(0, 1).float()
    return flat[:, [0, min(1, flat.shape[1] - 1)]].numpy()


def _bytes(x: Tensor) -> np.ndarray:
    """Returns images, (n, *shape) in [-1, 1], as (n, h, w, 1 or 3) of 8 bits."""
    x = x.float()
    if x.ndim == 3:  # signals, (n, C, L): a channel is a row
        x = x[:, None]
    elif x.shape[1] not in (1, 3):
        x = x.mean(1, keepdim=True)
    scaled = (127.5 * (_reduced(x.numpy()) + 1)).round()
    return np.nan_to_num(scaled, nan=127).clip(0, 255).astype(np.uint8)


def _reduced(x: np.ndarray) -> np.ndarray:
    """Returns images, (n, C, H, W), averaged over blocks, as (n, h, w, C).

    Of volumes, (n, C, D, H, W), it is the middle slice; signals, (n, C, L), are images of C rows.
    """
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 5:
        x = x[:, :, x.shape[2] // 2]
    height, width = x.shape[-2:]
    block = math.ceil(max(height, width) / SIDE)
    if block > 1:
        rows, columns = min(block, height), min(block, width)
        h, w = height // rows, width // columns
        x = x[..., : h * rows, : w * columns]
        x = x.reshape(*x.shape[:2], h, rows, w, columns).mean((3, 5))
    return np.moveaxis(x, 1, -1)


def _scaled(image: np.ndarray) -> np.ndarray:
    """Returns an image with each pixel repeated until the page shows it well, (H, W, 3)."""
    height, width = image.shape[:2]
    times = max(1, math.ceil(SHOWN_SIDE / max(height, width)))
    lines = max(times, width * times // (8 * height))  # of a signal, which has few rows
    return np.broadcast_to(
        image.repeat(lines, axis=0).repeat(times, axis=1), (height * lines, width * times, 3)
    )
