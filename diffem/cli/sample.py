"""Reconstructs measurements with a finished run: `diffem sample RUN --input … --out …`.

    diffem sample runs/mine --input crops --n 16 --out reconstructions

Writes samples of p(x | y) of each measurement, their mean and their standard deviation into a new
folder, in the format, dtype and units of the input, with its axes and metadata. Images that are
larger than those that the run was trained on, or of several sizes, are sampled one by one, by
overlapping tiles.
"""

import math
from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor

from diffem.cli.arguments import parse_sample
from diffem.cli.errors import report_user_errors
from diffem.cli.input import check_measurements, open_input
from diffem.corruption import LinearChannel
from diffem.data.files import FileRows
from diffem.data.format import SampleWriter
from diffem.data.held import Held
from diffem.data.measurements import MeasurementSet
from diffem.data.patches import are_larger
from diffem.posterior.posterior import chunk_count
from diffem.result import PosteriorSampler, TiledSampler, load
from diffem.runtime.errors import UserError
from diffem.runtime.progress import console, progress_bar, warn
from diffem.runtime.ranges import check

MISSED = 3.0  # χ² of a measurement above which its samples are said to miss it, at least
CHANCE = 3.72  # standard deviations that one of ten thousand is beyond


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws samples and writes them.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_sample(arguments)
    with report_user_errors():
        check("--n", chosen.n)
        check("--overlap", chosen.overlap)
        check("--recalibrate", chosen.recalibrate)
        if chosen.recalibrate is not None and chosen.n == 1:
            raise UserError(
                "--recalibrate has no effect on a single sample; give --n of 2 or more"
            )
        result = load(chosen.run, device=chosen.device, trust=chosen.trust)
        posterior = result.student if chosen.student else result.posterior
        if posterior is None:
            raise UserError(
                f"{chosen.run} has no student, as it was trained with student=none; leave out "
                "--student, or train one with student=diff_instruct"
            )
        held = open_input(chosen, result.format, alike=False)
        if are_larger(held.shapes, posterior.measured_shape):
            sample_tiled(chosen, posterior.tiled(held, overlap=chosen.overlap))
        else:
            sample_chunks(chosen, posterior, held)
        console.print(
            f"wrote {chosen.out}: {chosen.n} samples of each of {len(held.y)} measurements",
            soft_wrap=True,
        )


def sample_chunks(chosen: Namespace, posterior: PosteriorSampler, held: Held) -> None:
    """Samples measurements of the run's shape, many together.

    Raises:
        UserError: If they do not fit, or the samples cannot be written.
    """
    if chosen.overlap is not None:
        raise UserError(
            f"--overlap={chosen.overlap} has no effect on images of the run's shape "
            f"{list(posterior.channel.shape)}; leave it out"
        )
    rows = FileRows(held, torch.arange(len(held.y)), posterior.channel, posterior.scale)
    check_measurements(rows)
    measurements = MeasurementSet(rows, posterior.channel, scale=posterior.scale)
    total = chunk_count(len(measurements), posterior.sampling.chunk_size)
    channel, scale, row = posterior.channel, posterior.scale, 0
    fit, entries = list[Tensor](), list[Tensor]()
    with (
        SampleWriter(
            chosen.out,
            held.format,
            posterior.channel.shape,
            count=len(measurements),
            n=chosen.n,
            like=held.files,
        ) as writer,
        progress_bar("samples", total, "chunks") as advance,
    ):
        for samples in posterior.chunks(measurements, chosen.n, seed=chosen.seed):
            if chosen.recalibrate is not None:
                mean = samples.mean(dim=0)
                samples = mean + chosen.recalibrate * (samples - mean)
            writer.write(samples.transpose(0, 1))
            advance()
            if isinstance(channel, LinearChannel):
                given = measurements.select(slice(row, row + samples.shape[1]))
                each = [channel.residual_chi2(given, scale.normalise(x).float()) for x in samples]
                fit.append(torch.stack(each).mean(dim=0))
                measured = channel.measured_mask(given.y, given.operator).expand_as(given.y)
                entries.append(measured.flatten(1).sum(dim=1))
            row += samples.shape[1]
    if fit:
        report_fit(torch.cat(fit), torch.cat(entries), held)


def report_fit(chi2: Tensor, entries: Tensor, held: Held) -> None:
    """Prints how well samples fit the measurements, and warns of those that they miss.

    Arguments:
        chi2: The residual χ² of each measurement, (N,), a mean over its samples; NaN where nothing
            was measured.
        entries: The number of measured entries of each, (N,).
        held: The measurements.
    """
    known = chi2[~chi2.isnan()]
    if not len(known):
        return
    console.print(f"residual χ² {float(known.mean()):.4g}, where 1 is expected", soft_wrap=True)
    # Of a few entries χ² is large by chance (Wilson & Hilferty 1931).
    spread = 2 / (9 * entries.clamp(min=1))
    missed = chi2 > (1 - spread + CHANCE * spread.sqrt()).pow(3).clamp(min=MISSED)
    if (count := int(missed.sum())) > len(known) / 100:
        worst = int(torch.where(missed, chi2, 0).argmax())
        warn(
            f"samples miss {count} of {len(known)} measurements (the largest χ² is "
            f"{float(chi2[worst]):.4g}, of {held.label(worst)}): look whether they are of the "
            "run's channel and noise, and in the units of what it was trained on"
        )


def sample_tiled(chosen: Namespace, tiled: TiledSampler) -> None:
    """Samples images that are larger than the run's shape, one after another.

    Raises:
        UserError: If they do not fit, or the samples cannot be written.
    """
    check_measurements(tiled.pieces())
    if chosen.recalibrate is not None:
        raise UserError(
            "--recalibrate is for images of the run's shape, of which all samples are in memory "
            "together; leave it out"
        )
    held = tiled.held
    count = len(held.y)
    total = count * chosen.n * tiled.evaluations
    with (
        SampleWriter(
            chosen.out,
            held.format,
            max((tiled.shape(row) for row in range(count)), key=math.prod),
            count=count,
            n=chosen.n,
            like=held.files,
        ) as writer,
        progress_bar("samples", total, "steps") as advance,
    ):
        for row in range(count):
            writer.write_one(tiled.sample(row, chosen.n, seed=chosen.seed, on_evaluation=advance))
