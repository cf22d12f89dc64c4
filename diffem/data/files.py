"""Measurements of one's own: files and folders of any known format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffem.corruption import (
    Channel,
    LinearChannel,
    Mask,
    Measurement,
    Weighting,
    require_pixelwise,
)
from diffem.corruption.recorded import Recorded
from diffem.data.arrays import check_parameters, operator_of, own_operator
from diffem.data.format import Format
from diffem.data.held import Held, open_measurements
from diffem.data.layout import Reading
from diffem.data.measurements import MeasurementSet
from diffem.data.npy import ComplexRows, Rows, verify_npz
from diffem.data.patches import Patches
from diffem.data.scale import Scale
from diffem.data.source import unreadable
from diffem.data.stack import FileStack
from diffem.data.survey import OUTSIDE, row_chunks, rows_at_once, take_survey
from diffem.runtime.errors import UserError
from diffem.runtime.progress import say, warn
from diffem.runtime.ranges import check
from diffem.runtime.rank import global_rank
from diffem.runtime.rng import generator

BY_NOISE = 4.0  # standard deviations by which noise takes values out of the range of clean images
MIXED = 2**14  # patches of a set that come first, of all its images; as many as init.samples


@dataclass(frozen=True)
class FileRows:
    """Some rows of a file or folder, as measurements.

    Arguments:
        held: The file or folder.
        rows: The numbers of the rows, (N,).
        channel: The channel, on the scale of [-1, 1].
        scale: The data's units.
        missing: Whether some of them may hold NaN.
    """

    held: Held
    rows: Tensor
    channel: Channel
    scale: Scale
    missing: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: slice | Tensor) -> Measurement:
        """Returns the measurements at an index."""
        return self.held.select(self.rows[index], self.channel, self.scale)

    def check_fit(self, missing: int | None) -> None:
        """Reads one of them, those that may hold NaN, and the parameters of all; they must fit.

        Arguments:
            missing: The index of the first that holds NaN; None if none does.

        Raises:
            UserError: If they do not.
        """
        self.select(slice(0, 1))
        own = own_operator(self.channel) if isinstance(self.channel, LinearChannel) else None
        if missing is not None and not isinstance(own, Mask | Weighting):  # which take any NaN
            for part in torch.arange(missing, len(self)).split(rows_at_once(self.held.y)):
                self.select(part)
        beside = [array for array in (self.held.operator, self.held.std) if array is not None]
        steps = [rows_at_once(array) for array in beside]
        for part in self.rows.split(min(steps)) if steps else ():
            index = part.numpy()
            check_parameters(
                len(part),
                self.channel,
                self.scale,
                operator=None if self.held.operator is None else self.held.operator[index],
                noise=self.held.noise(index, self.channel),
                source=self.held.name,
            )

    def __getitem__(self, index: Tensor) -> Tensor:
        """Returns the operator's parameters φ of the measurements at an index, (n, *P)."""
        assert isinstance(self.channel, LinearChannel)
        own = self.channel.forward_operator
        masks = self.missing and isinstance(own, Mask | Weighting)
        found = []
        for part in index.split(rows_at_once(self.held.y)):  # many rows of φ, a few of y at once
            rows = self.rows[part].numpy()
            std = None
            if isinstance(own, Weighting) and self.held.std is not None:
                std = self.held.std[rows]
            phi = operator_of(
                len(rows),
                self.channel,
                y=self.held.y[rows] if masks else None,
                operator=None if self.held.operator is None else self.held.operator[rows],
                std=std,
                scale=self.scale,
                source=self.held.name,
            )
            found.append(phi)
        return torch.cat(found)


class MeasurementFiles:
    """Measurements from a file or a folder, with no clean images needed.

    They need not fit in memory: rows are read when they are asked for. All that are used are read
    once at the start, to check them; `truth` is kept in memory.

    Arguments:
        path: A folder of files of a known format and of one size, one such file, a .npy file of
            measurements, or a .npz file with `y` and perhaps `operator` (φ; for a mask 0 where
            nothing was measured), `std` (N,) and `truth`. (N, H, W) are grey images, (N, C, H, W)
            have channels, (N, D) are vectors; complex numbers are two channels. NaN in y is "not
            measured", and then no channel of that pixel is.
        shape: The shape of a clean image; None for that of a measurement, or of a patch.
        range: [low, high], the values in the data's units that become -1 and 1; None to estimate
            it from the measurements. Nothing is clipped. Under noise of photons it must be given:
            the mean values of a pixel without light and of one with `photons` photons. Under a
            channel that is not linear it is the range of the clean images, and the measurements
            stay in their own units.
        heldout: The fraction of the measurements that is held out, in (0, 1).
        limit: The largest number of measurements to use, the first ones; None for all.
        patch: The side in pixels, or the sides, of the patches that the measurements are cut into;
            None to leave them whole. Patches lie side by side from the first pixel on, the last of
            each axis is shifted back into the image, and they are numbered image by image. The
            images of a folder may then differ in size. All patches of an image are trained on or
            held out together.
        key: The name of the array, in files that hold several; None for the one that there is.
        axes: A letter for each axis of the files' arrays in place of what they say: X, Y and Z
            space, C channels, any other letter measurements.
        dims: The number of spatial axes of a measurement, 1 to 3: of a volume, 2 gives its slices
            along Z; of slices of DICOM, 3 gives the volume of each series. None for all axes of
            space that the files name.
        groups: A .npy file with one whole number for each measurement of the file or folder, in
            its order: the instrument, the site or the class that it is of; None for no groups.

    Raises:
        UserError: If a file is missing, damaged or of another shape than the first, holds infinity
            where a measurement is, or a number is out of its range.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int] | None = None,
        *,
        range: Sequence[float] | None = None,
        heldout: float = 0.1,
        limit: int | None = None,
        patch: int | Sequence[int] | None = None,
        key: str | None = None,
        axes: str | None = None,
        dims: int | None = None,
        groups: str | None = None,
    ) -> None:
        self.heldout = check("dataset.heldout@measurements", heldout)
        given = Scale.of(range)
        check("dataset.limit", limit)
        self.patch = check("dataset.patch", patch)
        reading = Reading.of(key, axes, dims)
        self.held = open_measurements(path, limit=limit, reading=reading, alike=patch is None)
        held = len(self.held.y)
        self.count = held if limit is None else min(held, limit)
        if self.held.format.suffix == ".npz" and self.count == held:
            verify_npz(Path(path), self.held.name)
        self.groups = None if groups is None else read_groups(groups, held)[: self.count]
        if patch is not None:
            self.held = cut_into_patches(self.held, self.count, patch, shape)
            self.count = len(self.held.y)
            if self.groups is not None:  # patches are numbered image by image
                assert isinstance(self.held.y, Patches)
                patches = torch.from_numpy(np.diff(self.held.y.first))
                self.groups = self.groups.repeat_interleave(patches)
        if self.count < 4:
            raise UserError(
                f"{self.held.name} holds {self.count} measurements; at least 4 are needed"
            )
        self.shape = tuple(shape or clean_shape(self.held.y))
        self.given = {"shape": shape is not None, "range": range is not None}
        self.survey = take_survey(self.held, self.count)
        self.scale = given or self.survey.scale()

    @property
    def format(self) -> Format:
        """The form of the measurements: file type, dtype, axes."""
        return self.held.format

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of a folder's files without their suffix; None for arrays."""
        return self.held.names

    def measurement_sets(self, channel: Channel) -> tuple[MeasurementSet, MeasurementSet]:
        """Returns the training and the held-out measurements.

        Arguments:
            channel: The channel that they went through; the noise of a linear one is in the data's
                units.

        Raises:
            UserError: If the measurements do not fit the channel.
        """
        self._check_given(channel)
        channel = channel.scaled(self.scale.factor)
        if isinstance(channel, LinearChannel):
            self._report_range(channel)
        if self.patch is not None:
            require_pixelwise(channel, f"dataset.patch={self.patch}", "leave dataset.patch out")
        missing = self.survey.missing is not None
        every = FileRows(self.held, torch.arange(self.count), channel, self.scale, missing)
        every.check_fit(self.survey.missing)
        assumed = channel
        if isinstance(channel, LinearChannel):
            own = channel.forward_operator
            if isinstance(own, Mask | Weighting) or self.held.operator is not None:
                recorded = every
                if isinstance(self.held.y, Patches):  # a result keeps the first of them
                    recorded = replace(every, rows=_mixed_first(every.rows))
                assumed = channel.with_operator(Recorded(own, recorded))
            if isinstance(own, Mask) and self.held.operator is None and not missing:
                warn(
                    f"{self.held.name} says nowhere that a pixel was not measured (by NaN in y, "
                    "or 0 in operator), and corruption=mask takes all of them for measured"
                )
        truth = self._truth()
        sets = []
        for rows in self._split():
            source = replace(every, rows=rows)
            true = None if truth is None else truth[rows]
            groups = None if self.groups is None else self.groups[rows]
            sets.append(MeasurementSet(source, assumed, true, self.scale, groups))
        return sets[0], sets[1]

    def _check_given(self, channel: Channel) -> None:
        """Refuses a channel under which range or shape cannot be learned from the measurements.

        Raises:
            UserError: If one of them was not given.
        """
        if isinstance(channel, LinearChannel):
            if channel.noise.needs_intensity and not self.given["range"]:
                raise UserError(
                    f"dataset.range must be given with {channel}: [LOW, HIGH], the mean values of "
                    "y, in the data's units, of a pixel without light and of one at full intensity"
                )
            if not (channel.forward_operator.keeps_units or self.given["range"]):
                raise UserError(
                    f"dataset.range must be given with {channel}, whose measurements are not in "
                    "the units of an image: [LOW, HIGH], about the smallest and the largest value "
                    "of a clean one"
                )
            return
        needed = ["range"] if channel.keeps_units else ["shape", "range"]
        if unset := [key for key in needed if not self.given[key]]:
            raise UserError(
                f"dataset.{unset[0]} must be given with {channel}, which is not linear: what "
                f"the clean images are cannot be learned from {self.held.name}"
            )

    def _units(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns what is held out together: files, series of files, or single measurements.

        Arguments:
            count: The number of measurements: of images, if they are cut into patches.

        Returns:
            The number of each measurement's unit, (count,), and the units in the order in which
            they are held out.
        """
        unit = torch.arange(count)
        if self.held.groups is not None:
            found, group = np.unique(self.held.groups[:count], return_inverse=True)
            if len(found) == 1:
                warn(
                    f"{self.held.name} is one file or series, whose last measurements are held "
                    "out: they are like their neighbours; give several for scores of new ones"
                )
                return unit, unit.flip(0)
            unit = torch.from_numpy(group)
        number = int(unit.max()) + 1
        return unit, torch.randperm(number, generator=generator("held-out", number))

    def _split(self) -> tuple[Tensor, Tensor]:
        """Returns the rows that are trained on and those that are held out.

        Measurements of one file, or of a series of files, are on the same side, and so are patches
        of one image; of a single file the last ones are held out.

        Raises:
            UserError: If fewer than two are left to train on.
        """
        patches = self.held.y if isinstance(self.held.y, Patches) else None
        sizes = torch.ones(self.count, dtype=torch.int64)  # rows of each measurement
        if patches is not None:
            sizes = torch.from_numpy(np.diff(patches.first))
        unit, order = self._units(len(sizes))
        rows = torch.zeros(len(order), dtype=torch.int64).index_add(0, unit, sizes)  # of each unit
        rows = rows[order].cumsum(0)
        heldout = max(round(self.heldout * len(order)), 1 + int((rows < 2).sum()))
        left = self.count - int(rows[min(heldout, len(rows)) - 1])
        if left < 2:
            what, advice = "measurements", "lower it"
            if patches is not None:
                what, advice = "patches", "lower it, or give more images, which are held out whole"
            elif len(order) < self.count:
                advice = "lower it, or give more files, which are held out whole"
            raise UserError(
                f"dataset.heldout={self.heldout} leaves {left} of {self.count} {what} to train "
                f"on; at least 2 are needed: {advice}"
            )
        held = torch.zeros(len(order), dtype=torch.bool)
        held[order[:heldout]] = True
        held = held[unit].repeat_interleave(sizes)
        split = (~held).nonzero().flatten(), held.nonzero().flatten()
        return split if patches is None else (_mixed_first(split[0]), _mixed_first(split[1]))

    def _report_range(self, channel: LinearChannel) -> None:
        """Says what the range is if it was estimated, and warns of a given one that is left.

        The range is of clean images: that measurements leave it by their noise is not said.

        Arguments:
            channel: The channel on the scale of [-1, 1].
        """
        low, high = self.scale.low, self.scale.high
        if not self.given["range"]:
            if not global_rank():
                say(f"dataset.range=[{low:.6g},{high:.6g}], estimated from the measurements")
            return
        if not channel.forward_operator.keeps_units:
            return
        below, above = (BY_NOISE * std / self.scale.factor for std in noise_at_the_ends(channel))
        if self.survey.outside(low - below, high + above) > OUTSIDE:
            warn(
                f"{100 * self.survey.outside(low, high):.3g} % of the measured values are outside "
                f"dataset.range=[{low:g},{high:g}], some by more than noise; they are kept, not "
                "clipped"
            )

    def _truth(self) -> Tensor | None:
        """Returns the clean images, (N, *shape), on the scale of [-1, 1]."""
        truth = self.held.truth
        if truth is None:
            return None
        parts = [
            self.scale.normalise(torch.from_numpy(truth[rows].astype(np.float64))).float()
            for rows in row_chunks(truth, self.count)
        ]
        x = torch.cat(parts)
        if x.ndim == 3 and len(self.shape) == 3:
            x = x[:, None]
        if x.shape[1:] != self.shape or not x.isfinite().all():
            raise UserError(
                f"{self.held.name}: truth must be finite images of shape {list(self.shape)}, got "
                f"{list(x.shape[1:])}; mend it, or leave it out"
            )
        return x


def noise_at_the_ends(channel: LinearChannel) -> tuple[float, float]:
    """Returns the largest standard deviation of the noise of the entries -1 and 1."""
    parameters = channel.noise.parameters.values()
    levels = torch.tensor([[p.bounds[i] for p in parameters] for i in (0, 1)])
    variance = channel.noise.variance(torch.tensor([[-1.0, 1.0]] * 2), levels).expand(2, 2)
    low, high = variance.amax(dim=0).sqrt().tolist()
    return low, high


def clean_shape(y: Rows) -> tuple[int, ...]:
    """Returns the shape of a measurement with its axis of channels, which grey images may lack."""
    size = tuple(y.shape[1:])
    has_channels = isinstance(y.images if isinstance(y, Patches) else y, FileStack | ComplexRows)
    return size if has_channels or len(size) != 2 else (1, *size)


def read_groups(path: str, count: int) -> Tensor:
    """Returns the number of each measurement's group, (count,), int64.

    Arguments:
        path: A .npy file of whole numbers.
        count: The number of measurements.

    Raises:
        UserError: If it is none, or has another number of them.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise unreadable(f"dataset.groups={path}", error) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        kind = values.dtype.name if isinstance(values, np.ndarray) else "a .npz file"
        raise UserError(
            f"dataset.groups={path} must hold whole numbers, and is {kind}; save them by "
            "np.save('groups.npy', groups.astype(int))"
        )
    if values.shape != (count,):
        raise UserError(
            f"dataset.groups={path} must hold one number for each of {count} measurements, and "
            f"has the shape {list(values.shape)}; give as many"
        )
    low, high = (int(values.min()), int(values.max())) if count else (0, 0)
    if low < 0 or high >= 2**31:
        raise UserError(
            f"dataset.groups={path} must hold numbers in [0, {2**31 - 1}], and has some from "
            f"{low} to {high}; number the groups from 0"
        )
    return torch.from_numpy(values.astype(np.int64))


def _mixed_first(rows: Tensor) -> Tensor:
    """Returns rows of patches, of which the first are drawn at random from all.

    The init, the guard and the scores look at the first measurements of a set, which would be all
    of one image; the others stay in their order, so that an E-step reads image by image.
    """
    order = torch.randperm(len(rows), generator=generator("patches", len(rows)))
    return torch.cat([rows[order[:MIXED]], rows[order[MIXED:].sort().values]])


def cut_into_patches(
    held: Held, count: int, patch: int | Sequence[int], shape: Sequence[int] | None
) -> Held:
    """Returns what the patches of the first measurements hold.

    Arguments:
        held: The file or folder.
        count: How many of its measurements are used, the first ones.
        patch: The side of a patch in pixels, or its sides.
        shape: The shape of a clean image that was given, if any.

    Raises:
        UserError: If the measurements are vectors, one is smaller than a patch, or the sides are
            not those of the shape.
    """
    axes = len(shape or clean_shape(held.y)) - 1
    if axes < 1:
        raise UserError(
            f"dataset.patch={patch} cuts images and signals, and {held.name} holds vectors; leave "
            "dataset.patch out"
        )
    sides = (patch,) * axes if isinstance(patch, int) else tuple(patch)
    if len(sides) != axes:
        raise UserError(
            f"dataset.patch={list(sides)} must be one number or {axes}, one for each side of the "
            "images; give as many"
        )
    if shape is not None and tuple(shape[1:]) != sides:
        raise UserError(
            f"dataset.shape={list(shape)} must have the sides of dataset.patch, {list(sides)}; "
            "leave dataset.shape out, or correct it"
        )
    advice = "lower dataset.patch, or take this one out"
    return held.cut(held.windows(sides, range(count), advice=advice))
