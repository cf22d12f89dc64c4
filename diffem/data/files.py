"""Measurements of one's own: .npz and .npy files, and folders of PNG or TIFF images."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from diffem.corruption import Channel, LinearChannel, Mask, Measurement
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet
from diffem.data.scale import Scale
from diffem.data.source import inside
from diffem.runtime.errors import UserError, check_fraction
from diffem.runtime.progress import console, warn
from diffem.runtime.rng import generator

SUFFIXES = (".png", ".tif", ".tiff")
MODES = ("L", "RGB", "I;16", "I;16B", "I;16L", "I", "F")  # Pillow's, that lose nothing
QUANTILE = 1e-3  # of the measured values, on either side, that an estimated range may leave out


class Held(NamedTuple):
    """What a file or a folder holds, in the data's units."""

    y: np.ndarray
    """Measurements, (N, *M), float32; NaN where nothing was measured."""
    operator: np.ndarray | None = None
    """The operator's parameters φ of each measurement, (N, *P); for a mask, 0 or 1."""
    std: np.ndarray | None = None
    """The standard deviation of the noise of each measurement, (N,)."""
    truth: np.ndarray | None = None
    """Clean images, (N, *shape), for metrics alone."""


class MeasurementFiles:
    """Measurements from a file or a folder, with no clean images needed.

    Arguments:
        path: A folder of PNG or TIFF images of one size (8-bit, 16-bit or float; grey or 8-bit
            RGB), a .npy file of measurements, or a .npz file with `y` and perhaps `operator` (φ;
            for a mask 0 where nothing was measured), `std` (N,) and `truth`. (N, H, W) are grey
            images, (N, C, H, W) have channels, (N, D) are vectors. NaN in y is "not measured", and
            then no channel of that pixel is.
        shape: The shape of a clean image; None for that of a measurement.
        range: [low, high], the values in the data's units that become -1 and 1; None to estimate
            it from the measurements. Nothing is clipped.
        heldout: The fraction of the measurements that is held out, in (0, 1).

    Raises:
        UserError: If a file is missing, damaged or of another shape than the first, or a number is
            out of its range.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int] | None = None,
        *,
        range: Sequence[float] | None = None,
        heldout: float = 0.1,
    ) -> None:
        self.path = Path(path)
        if not 0 < check_fraction("dataset.heldout", heldout):
            raise UserError("dataset.heldout must be a number in (0, 1), got 0")
        self.heldout = heldout
        if range is not None and len(range) != 2:
            raise UserError(f"dataset.range must be [low, high] with low < high, got {range}")
        self.held = read_folder(self.path) if self.path.is_dir() else read_array(self.path)
        if len(self.held.y) < 4:
            raise UserError(
                f"dataset.path: {self.path} holds {len(self.held.y)} measurements; at least 4 are "
                "needed"
            )
        self.scale = estimated(self.held.y) if range is None else Scale(*range)
        if range is None:
            low, high = self.scale.low, self.scale.high
            console.print(f"dataset.range=[{low:.6g},{high:.6g}], estimated from the measurements")
        else:
            warn_of_range(self.held.y, self.scale)
        self.shape = tuple(self.held.y.shape[1:] if shape is None else shape)

    def measurement_sets(self, channel: Channel) -> tuple[MeasurementSet, MeasurementSet]:
        """Returns the training and the held-out measurements, on the scale of [-1, 1].

        Arguments:
            channel: The channel that they went through, its noise in the data's units.

        Raises:
            UserError: If the measurements do not fit the channel.
        """
        if not isinstance(channel, LinearChannel):
            raise UserError(
                f"dataset=measurements needs a linear channel, got {channel}; choose a corruption "
                "with a linear operator"
            )
        channel = channel.scaled(self.scale.factor)
        y = torch.from_numpy(np.ascontiguousarray(self.held.y))
        measured, y = ~y.isnan(), self.scale.normalise(y.nan_to_num(nan=self.scale.low))
        operator, channel = self._operator(channel, measured)
        expected = channel.apply(torch.zeros(1, *self.shape), operator[:1]).shape[1:]
        if y.shape[1:] != expected:
            raise UserError(
                f"dataset.path: the measurements in {self.path} have shape {list(y.shape[1:])}, "
                f"and {channel} of images {list(self.shape)} gives {list(expected)}; set "
                "dataset.shape or the corruption"
            )
        y = y * channel.measured_mask(y, operator)
        noise = self._noise(channel, len(y))
        truth = None
        if self.held.truth is not None:
            truth = self.scale.normalise(torch.from_numpy(self.held.truth).float())
            if truth.shape[1:] != self.shape or not truth.isfinite().all():
                raise UserError(
                    f"dataset.path: truth in {self.path} must be finite images of shape "
                    f"{list(self.shape)}, got {list(truth.shape[1:])}; mend it, or leave it out"
                )
        order = torch.randperm(len(y), generator=generator("held-out", len(y)))
        count = max(2, round(self.heldout * len(y)))
        if len(y) - count < 2:
            raise UserError(
                f"dataset.heldout={self.heldout} leaves {len(y) - count} of {len(y)} measurements "
                "to train on; at least 2 are needed: lower it"
            )
        sets = []
        for rows in (order[count:].sort().values, order[:count].sort().values):
            part = Measurement(y, operator, noise).select(rows)
            true = None if truth is None else truth[rows]
            sets.append(MeasurementSet(part, channel, true, self.scale).under(channel))
        return sets[0], sets[1]

    def _operator(self, channel: LinearChannel, measured: Tensor) -> tuple[Tensor, LinearChannel]:
        """Returns φ of each measurement, and the channel that draws such φ."""
        n, held, complete = len(measured), self.held.operator, bool(measured.all())
        operator = channel.forward_operator
        if isinstance(operator, Mask):
            shape = (n, *operator.mask_shape)
            mask = torch.ones(shape) if held is None else torch.from_numpy(held).float()
            if mask.shape != shape and mask.unsqueeze(1).shape == shape:
                mask = mask.unsqueeze(1)
            if mask.shape != shape:
                raise UserError(
                    f"dataset.path: the masks in {self.path} have shape {list(mask.shape)}; "
                    f"{list(shape)} is needed"
                )
            if len(shape) > 2:  # a pixel is measured in all of its channels, or not
                measured = measured.all(dim=1, keepdim=True)
            mask = (mask != 0).float() * measured.float()
            return mask, channel.with_operator(Recorded(operator, mask))
        if not complete:
            raise UserError(
                f"dataset.path: {self.path} holds NaN, which says that a pixel was not measured; "
                "choose corruption=mask"
            )
        if held is not None:
            phi = torch.from_numpy(held).float()
            return phi, channel.with_operator(Recorded(operator, phi))
        if any(p.known is None for p in operator.parameters.values()):
            raise UserError(
                f"dataset.path: {self.path} has no `operator`, and {channel} draws its own for "
                "each measurement; give one number in its place, or a .npz file with `operator`"
            )
        first = operator.draw(n, Generator().manual_seed(0))
        if n > 1 and first.numel() and not torch.equal(first[0], first[1]):
            raise UserError(
                f"dataset.path: {self.path} has no `operator`, and {channel} has another one for "
                "each measurement; give a .npz file with `operator`"
            )
        return first, channel

    def _noise(self, channel: LinearChannel, n: int) -> Tensor:
        """Returns the noise's parameters of each measurement, (N, K)."""
        names = list(channel.noise.parameters)
        noise = channel.noise.draw_parameters(n, Generator().manual_seed(0))
        for i, name in enumerate(names):
            if name == "std" and self.held.std is not None:
                noise[:, i] = torch.from_numpy(self.held.std).float() * self.scale.factor
            elif channel.noise.parameters[name].known is None:
                raise UserError(
                    f"corruption.noise.{name} is a range, and {self.path} does not have the value "
                    "of each measurement; give one number"
                )
        return noise


def estimated(y: np.ndarray) -> Scale:
    """Returns the range of measured values, without the outermost 0.1 % on either side."""
    values = y[np.isfinite(y)]
    step = max(1, len(values) // 10_000_000)  # as many tell the quantiles
    low, high = (float(q) for q in np.quantile(values[::step], (QUANTILE, 1 - QUANTILE)))
    return Scale(low, high) if low < high else Scale(low - 1, low + 1)


def read_array(path: Path) -> Held:
    """Returns what a .npz or .npy file holds.

    Raises:
        UserError: If the file is missing, damaged, or lacks `y`.
    """
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        raise UserError(
            f"dataset.path: {path} is no folder and no .npz or .npy file; give one of these"
        )
    try:
        if path.suffix == ".npy":
            arrays = {"y": np.load(path, allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"dataset.path: {path} cannot be read ({error}); get it again") from error
    if "y" not in arrays or (unknown := arrays.keys() - set(Held._fields)):
        names = ", ".join(sorted(arrays))
        raise UserError(
            f"dataset.path: {path} must hold y, and may hold operator, std and truth; it holds "
            f"{names}"
        )
    assert not unknown
    y = numbers(arrays["y"], path, "y")
    if y.ndim == 3:
        y = y[:, None]
    truth = arrays.get("truth")
    if truth is not None and (truth := numbers(truth, path, "truth")).ndim == 3:
        truth = truth[:, None]
    for name, value in arrays.items():
        if value.ndim == 0 or len(value) != len(y):
            raise UserError(
                f"dataset.path: {path}: {name} must have a row for each of the {len(y)} "
                f"measurements, got the shape {list(value.shape)}"
            )
    std = arrays.get("std")
    if std is not None and (std.ndim != 1 or not (std > 0).all()):
        raise UserError(f"dataset.path: {path}: std must be positive numbers, (N,)")
    return Held(y, arrays.get("operator"), std, truth)


def read_folder(folder: Path) -> Held:
    """Returns the images of a folder in the order of their names.

    Raises:
        UserError: If there are none, or one cannot be read without loss or has another shape.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"dataset.path: {folder} has no {', '.join(SUFFIXES)} files")
    images = [read_image(inside(file, folder)) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise UserError(
                f"dataset.path: {file} is {image.dtype} of shape {list(image.shape)}, but "
                f"{files[0].name} is {images[0].dtype} of shape {list(images[0].shape)}; all "
                "measurements must be alike"
            )
    return Held(numbers(np.stack(images), folder, "images"))


def read_image(file: Path) -> np.ndarray:
    """Returns an image, (C, H, W), with its own numbers and dtype.

    Raises:
        UserError: If it cannot be read, or not without loss (alpha, a palette, several pages).
    """
    try:
        with warnings.catch_warnings(), Image.open(file, formats=("PNG", "TIFF")) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            lossy = image.format == "PNG" and image.mode == "RGB" and _bit_depth(file) == 16
            if image.mode not in MODES or lossy or getattr(image, "n_frames", 1) != 1:
                pages, what = getattr(image, "n_frames", 1), "16-bit RGB" if lossy else image.mode
                raise UserError(
                    f"dataset.path: {file} ({what}, {pages} page(s)) would lose values: only "
                    "single-page grey (8-bit, 16-bit, float) or 8-bit RGB images without alpha "
                    "are read; convert it, or give a .npz file"
                )
            array = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"dataset.path: {file} cannot be read ({error}); remove it") from error
    except Image.DecompressionBombWarning as error:
        raise UserError(f"dataset.path: {file} is too large ({error}); crop it") from error
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def numbers(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Returns real numbers as float32; NaN stays.

    Raises:
        UserError: If they are no real numbers, or one is infinite or too large for float32.
    """
    if values.dtype.kind not in "uif" or values.ndim < 2:
        raise UserError(
            f"dataset.path: {path}: {name} must be real numbers, (N, …), got {values.dtype} of "
            f"shape {list(values.shape)}"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if np.isinf(values).any():
        raise UserError(f"dataset.path: {path}: {name} holds infinity; mark it by NaN")
    return values


def warn_of_range(y: np.ndarray, scale: Scale) -> None:
    """Warns if more than 0.1 % of the measured values are outside the range."""
    values = y[np.isfinite(y)]
    outside = float(((values < scale.low) | (values > scale.high)).mean())
    if outside > QUANTILE:
        warn(
            f"{100 * outside:.2g} % of the measured values are outside dataset.range="
            f"[{scale.low:g},{scale.high:g}]; they are kept, not clipped"
        )


def _bit_depth(file: Path) -> int:
    """Returns the bits of a channel of a PNG file (its header's 25th byte)."""
    with file.open("rb") as content:
        return content.read(25)[24]
