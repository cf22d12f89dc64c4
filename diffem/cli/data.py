"""The measurements of a run: read from files, or simulated from a benchmark."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from diffem.cli.compose import assumed_corruption
from diffem.corruption import Channel, LinearChannel
from diffem.data import ImageDataset, MeasurementFiles
from diffem.data.measurements import MeasurementSet, simulate_measurements
from diffem.data.withdrawn import read_names, withdraw
from diffem.result import build_channel
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


def build_data(
    cfg: DictConfig, source: MeasurementFiles | ImageDataset
) -> tuple[MeasurementSet, MeasurementSet]:
    """Returns the training and the held-out measurements without those that are withdrawn.

    Arguments:
        cfg: The configuration; its dataset.shape is set to that of the files.
        source: As for `build_all_data`.

    Raises:
        UserError: As `build_all_data`, or if a name is that of no measurement.
    """
    sets = build_all_data(cfg, source)
    if cfg.withdrawn is None:
        return sets
    return withdraw(*sets, read_names(Path(str(cfg.withdrawn)), "withdrawn"), key="withdrawn")


def build_all_data(
    cfg: DictConfig, source: MeasurementFiles | ImageDataset
) -> tuple[MeasurementSet, MeasurementSet]:
    """Returns the training and the held-out measurements, under the assumed channel.

    Arguments:
        cfg: The configuration; its dataset.shape is set to that of the files.
        source: The data set of `dataset`: measurements, or clean images to simulate them from.

    Raises:
        UserError: If the data cannot be read, or do not fit the channel.
    """
    if isinstance(source, MeasurementFiles):
        cfg.dataset.shape = list(source.shape)
        if cfg.assumed:
            raise UserError(
                "assumed has no effect on measurements of your own; set the corruption's keys"
            )
        sets = source.measurement_sets(build_channel(cfg.corruption, source.shape))
        check_noise(sets[0].channel)
        return sets
    shape = cfg.dataset.shape
    channel, assumed = (build_channel(c, shape) for c in (cfg.corruption, assumed_corruption(cfg)))
    for each in (channel, assumed):
        check_noise(each)
    clean = source.load()
    darkest = min(float(x.min()) for x in clean)
    if isinstance(channel, LinearChannel) and channel.noise.needs_intensity and darkest < -1:
        raise UserError(
            f"corruption.noise={channel.noise} needs images in [-1, 1], where -1 is dark, and the "
            f"data go down to {darkest:.3g}; choose corruption/noise=gaussian"
        )
    train, heldout = (
        simulate_measurements(x, channel, seed=cfg.seed, split=split, assumed=assumed)
        for split, x in zip(clean._fields, clean, strict=True)
    )
    if (groups := getattr(source, "groups", lambda: None)()) is not None:
        train, heldout = (
            replace(part, groups=of_part)
            for part, of_part in zip((train, heldout), groups, strict=True)
        )
    return train, heldout


def check_noise(channel: Channel) -> None:
    """Refuses noise whose variance, on the scale of [-1, 1], is no number of float32.

    Raises:
        UserError: If its standard deviation is too small or too large.
    """
    if isinstance(channel, LinearChannel) and (std := channel.noise.parameters.get("std")):
        check("corruption.noise.std, on the scale of [-1, 1],", std.bounds)
