"""Layouts: which axes of an array in a file are measurements, which channels, and which space."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

SPACE = "ZYX"
CHANNELS = "CS"  # C, or the S that TIFF has for samples of a pixel: red, green, blue
UNNAMED = {1: "N", 2: "NX", 3: "NYX", 4: "NCYX", 5: "NCZYX"}
"""The axes of an array that does not name them, by their number; as in .npy files."""


class Reading(NamedTuple):
    """Which array of a file is read, and how."""

    key: str | None = None
    """The array's name in a file of several; None for the one that there is."""
    axes: str | None = None
    """A letter for each axis of the array in place of what the file says; see `Layout`."""
    dims: int | None = None
    """The number of spatial axes of a measurement; None for all that the file names."""

    @classmethod
    def of(cls, key: object = None, axes: object = None, dims: object = None) -> Self:
        """Returns the reading that settings describe.

        Arguments:
            key: `dataset.key`.
            axes: `dataset.axes`.
            dims: `dataset.dims`.

        Raises:
            UserError: If one is of another type, or out of its range.
        """
        if key is not None and not isinstance(key, str):
            raise UserError(f"dataset.key must be the name of an array, got {key!r}")
        if axes is not None and not (isinstance(axes, str) and axes.isascii() and axes.isupper()):
            raise UserError(
                "dataset.axes must be a capital letter for each axis of the array (X, Y, Z space, "
                f"C channels, others measurements), as in TYX, got {axes!r}"
            )
        return cls(key, axes, check("dataset.dims", dims))  # type: ignore[arg-type]

    def refuse(self, what: str) -> None:
        """Refuses settings for files that have no such choice.

        Arguments:
            what: The files, as in ".npy files".

        Raises:
            UserError: If there is one.
        """
        for field, value in zip(self._fields, self, strict=True):
            if value is not None:
                raise UserError(f"dataset.{field}={value} has no effect on {what}; leave it out")


@dataclass(frozen=True)
class Layout:
    """How an array in a file holds measurements, (C, *S) each.

    A letter names each axis: X, Y and Z are space, C (or S, where there is no C) channels; along
    all others there are measurements, and along axes of space beyond the wanted number too.
    Complex numbers are two channels: the real parts of all channels, and then the imaginary ones.

    Arguments:
        axes: The letters, in the array's order.
        sizes: The array's shape.
        space: The letters of the axes of a measurement's space, in the order ZYX.
        channel: The letter of the channels; "" if there are none.
        complex: Whether the numbers are complex.
    """

    axes: str
    sizes: tuple[int, ...]
    space: str
    channel: str
    complex: bool = False

    @classmethod
    def of(
        cls, axes: str, sizes: Sequence[int], dtype: np.dtype, *, dims: int | None, name: str
    ) -> Self:
        """Returns the layout of an array.

        Arguments:
            axes: The letters of its axes.
            sizes: Its shape.
            dtype: Its dtype.
            dims: The number of spatial axes of a measurement, the last ones of Z, Y and X; None
                for all that there are, but for a Z of size 1.
            name: What the sentences call the array.

        Raises:
            UserError: If the letters do not fit the shape, or there are fewer spatial axes.
        """
        found = f"{name} has the axes {axes} of sizes {list(sizes)}"
        if len(axes) != len(sizes) or len(set(axes)) != len(axes):
            raise UserError(
                f"dataset.axes must have one letter for each axis, each letter once: {found}"
            )
        if set(CHANNELS) <= set(axes):
            raise UserError(f"{found}, channels twice; name one of them otherwise by dataset.axes")
        there = [a for a in SPACE if a in axes]
        if dims is None:
            there = [a for a in there if a != "Z" or sizes[axes.index(a)] > 1]
        elif dims > len(there):
            raise UserError(
                f"dataset.dims={dims} needs as many axes of X, Y and Z, and {found}; lower it, or "
                "name the axes by dataset.axes"
            )
        if not there:
            raise UserError(f"{found}, none of them X, Y or Z; name the axes by dataset.axes")
        space = "".join(there[-dims:] if dims else there)
        channel = next((c for c in CHANNELS if c in axes), "")
        return cls(axes, tuple(sizes), space, channel, dtype.kind == "c")

    @classmethod
    def of_samples(cls, shape: Sequence[int], dtype: np.dtype) -> Self:
        """Returns the layout of an array of one sample, for which there is no file.

        Arguments:
            shape: The shape of a sample, (C, *S) or (D,).
            dtype: The dtype of the measurements, which may be complex.
        """
        channels, size = (1, tuple(shape)) if len(shape) == 1 else (shape[0], tuple(shape[1:]))
        if dtype.kind == "c":
            channels //= 2
        channel, space = "C" if channels > 1 else "", SPACE[-len(size) :]
        sizes = (channels, *size) if channel else size
        return cls(channel + space, sizes, space, channel, dtype.kind == "c")

    def of_many(self, count: int) -> "Layout":
        """Returns the layout of an array of samples, along a first axis N."""
        return replace(self, axes="N" + self.axes, sizes=(count, *self.sizes))

    @property
    def rows(self) -> str:
        """The letters of the axes along which there are measurements."""
        return "".join(a for a in self.axes if a != self.channel and a not in self.space)

    @property
    def count(self) -> int:
        """The number of measurements."""
        return math.prod(self.size(a) for a in self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a measurement, (C, *S); (D,) for vectors."""
        space = tuple(self.size(a) for a in self.space)
        if self.is_vector:
            return space
        return (self.size(self.channel) if self.channel else 1) * (
            2 if self.complex else 1
        ), *space

    @property
    def is_vector(self) -> bool:
        """Whether a measurement is a vector, (D,)."""
        return len(self.space) == 1 and not self.channel and not self.complex

    def size(self, axis: str) -> int:
        """Returns the size of an axis."""
        return self.sizes[self.axes.index(axis)]

    def index(self, row: int) -> tuple[int | slice, ...]:
        """Returns the index of a measurement in the array."""
        at = list(np.unravel_index(row, [self.size(a) for a in self.rows])) if self.rows else []
        return tuple(int(at.pop(0)) if a in self.rows else slice(None) for a in self.axes)

    def measurement(self, values: np.ndarray) -> np.ndarray:
        """Returns what the array holds at the index of a measurement as (C, *S), real numbers."""
        kept = [a for a in self.axes if a not in self.rows]
        x = values.transpose([kept.index(a) for a in self.channel + self.space])
        if self.is_vector:
            return x
        x = x if self.channel else x[None]
        return np.concatenate([np.real(x), np.imag(x)]) if self.complex else x

    def array(self, samples: np.ndarray) -> tuple[np.ndarray, str]:
        """Returns samples as an array with the axes of the file.

        The axes of space and the channels may have other sizes than the file's. Samples with as
        many channels as the measurements are complex where these are.

        Arguments:
            samples: A sample for each measurement of the file, (n, C', *S') or (n, D').

        Returns:
            The array, and the letters of its axes: those of the file, without channels of which
            there is one, and with those that the file does not have.
        """
        if samples.ndim == 2:
            samples = samples[:, None]
        if self.complex and samples.shape[1] == self.shape[0]:
            samples = joined(samples, axis=1)
        rows, channel = self.rows, self.channel
        if not channel:
            if samples.shape[1] == 1:
                samples = samples[:, 0]
            else:
                channel = "C"
        given = rows + channel + self.space
        x = samples.reshape(*(self.size(a) for a in rows), *samples.shape[1:])
        axes = self.axes
        if channel not in axes:
            first = min(axes.index(a) for a in self.space)
            axes = axes[:first] + channel + axes[first:]
        return x.transpose([given.index(a) for a in axes]), axes


def joined(parts: np.ndarray, *, axis: int) -> np.ndarray:
    """Returns complex numbers of which an axis holds all real parts, and then all imaginary."""
    real, imaginary = np.split(parts, 2, axis=axis)
    numbers = np.empty(real.shape, np.result_type(parts, np.complex64))
    numbers.real, numbers.imag = real, imaginary
    return numbers


def zooms(
    axes: str, shape: Sequence[int], other_axes: str, other_shape: Sequence[int]
) -> dict[str, float]:
    """Returns how many times as many pixels as another array one has along X, Y and Z.

    Arguments:
        axes: The letters of the array's axes.
        shape: Its shape.
        other_axes: The letters of the other one's axes.
        other_shape: The other one's shape.
    """
    sizes = dict(zip(axes, shape, strict=True))
    others = dict(zip(other_axes, other_shape, strict=True))
    return {a: sizes[a] / others[a] if a in sizes and others.get(a) else 1.0 for a in SPACE}
