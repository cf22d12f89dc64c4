"""Reconstructs measurements with a finished run: `diffem sample RUN --input … --out …`.

    diffem sample runs/mine --input crops --n 16 --out reconstructions

Writes samples of p(x | y) of each measurement, their mean and their standard deviation into a new
folder, in the format, dtype and units of the input.
"""

import math
from collections.abc import Sequence

import torch

from diffem.cli.arguments import parse_sample
from diffem.cli.errors import report_user_errors
from diffem.data.files import FileRows, take_survey
from diffem.data.format import SampleWriter
from diffem.data.held import open_measurements
from diffem.data.measurements import MeasurementSet
from diffem.result import load
from diffem.runtime.progress import console, progress_bar
from diffem.runtime.ranges import check


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
        held = open_measurements(chosen.input, key="--input")
        result = load(chosen.run, device=chosen.device, trust=chosen.trust)
        posterior = result.posterior
        rows = FileRows(held, torch.arange(len(held.y)), posterior.channel, posterior.scale)
        measurements = MeasurementSet(rows, posterior.channel, scale=posterior.scale)
        # What does not fit is refused before anything is drawn.
        missing = take_survey(held, len(measurements), None).missing
        for row in sorted({0, missing or 0}):
            measurements.select(slice(row, row + 1))
        total = math.ceil(len(measurements) / posterior.sampling.chunk_size)
        with (
            SampleWriter(
                chosen.out,
                held.format,
                posterior.channel.shape,
                count=len(measurements),
                n=chosen.n,
                names=held.names,
            ) as writer,
            progress_bar("samples", total, "chunks") as advance,
        ):
            for samples in posterior.chunks(measurements, chosen.n, seed=chosen.seed):
                writer.write(samples.transpose(0, 1))
                advance()
        console.print(
            f"wrote {chosen.out}: {chosen.n} samples of each of {len(measurements)} measurements",
            soft_wrap=True,
        )
