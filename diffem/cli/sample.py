"""Reconstructs measurements with a finished run: `diffem sample RUN --input … --out …`.

    diffem sample runs/mine --input crops --n 16 --out reconstructions

Writes samples of p(x | y) of each measurement, their mean and their standard deviation into a new
folder, in the format, dtype and units of the input.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

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
    parser = build_parser()
    chosen = parser.parse_args(arguments)
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


def build_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        prog="diffem sample",
        description="Reconstructs measurements with a finished run: samples of p(x | y).",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="PATH",
        help="a folder of images, a .npy or a .npz file, as dataset.path takes",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--n", type=int, default=8, help="samples of each measurement, default %(default)s"
    )
    add_sampling(parser)
    return parser


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `sample` and `generate` share."""
    parser.add_argument("--seed", type=int, help="default: the run's")
    parser.add_argument("--device", help="as in cpu or cuda:0; default: the GPU if there is one")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package besides diffem whose classes the run may use",
    )
