"""The arguments of the commands that work on data or on a finished run.

Nothing here imports torch, which takes seconds: `--help` and a wrong argument are answered
at once. `train` is Hydra's, and the arguments of `compare` are beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

EVALUATED = ("dataset", "metric", "method.posterior", "sampler", "trust")
"""The settings that have an effect on the evaluation of a finished run."""


def parse_evaluate(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem evaluate`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem evaluate",
        description="Evaluates a finished run under other settings, beside its own evaluation.",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument(
        "--repeats", type=int, default=1, help="measurements of each held-out image, default 1"
    )
    _add_device(parser)
    parser.add_argument(
        "overrides", nargs="*", help=f"settings of {', '.join(EVALUATED)}, as for diffem train"
    )
    return parser.parse_intermixed_args(arguments)


def parse_calibrate(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem calibrate`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem calibrate",
        description="Says how far to trust the samples of a finished run: are images that its "
        "prior draws among the samples given their measurements as often as they should be?",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument(
        "--n", type=int, default=32, help="samples of each measurement, default %(default)s"
    )
    parser.add_argument(
        "--measurements",
        type=int,
        default=256,
        help="measurements that are simulated, and held-out ones that are read; default "
        "%(default)s",
    )
    _add_sampling(parser)
    return parser.parse_args(arguments)


def parse_inspect(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem inspect`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem inspect",
        description="Says what can be learnt from measurements, and what a run would cost.",
    )
    parser.add_argument(
        "path", type=Path, help="the measurements, as dataset.path takes them: a file or a folder"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new folder for the settings and a page of figures",
    )
    parser.add_argument(
        "overrides", nargs="*", help="settings as for diffem train, as in corruption=mask"
    )
    return parser.parse_intermixed_args(arguments)


def parse_sample(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem sample`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem sample",
        description="Reconstructs measurements with a finished run: samples of p(x | y).",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    _add_input(
        parser,
        "a folder or a file of measurements, as dataset.path takes; of the run's shape, or larger",
    )
    _add_out(parser)
    parser.add_argument(
        "--n", type=int, default=8, help="samples of each measurement, default %(default)s"
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="how many pixels neighbouring tiles share, of images larger than the run's; default: "
        "half a tile",
    )
    parser.add_argument(
        "--recalibrate",
        type=float,
        metavar="FACTOR",
        help="scale the samples of each measurement about their mean, by what diffem calibrate "
        "found",
    )
    parser.add_argument(
        "--student",
        action="store_true",
        help="draw by the run's student, with one evaluation a sample",
    )
    _add_sampling(parser)
    return parser.parse_args(arguments)


def parse_generate(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem generate`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem generate", description="Draws images from the prior of a finished run."
    )
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument(
        "--count", type=int, default=64, help="the number of images, default %(default)s"
    )
    _add_out(parser)
    _add_sampling(parser)
    return parser.parse_args(arguments)


def parse_score(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem score`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem score",
        description="Says how probable measurements are under what runs learned: which channel or "
        "run made them, and which are unlike those of the training.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="run directories")
    _add_input(parser, "a folder or a file of measurements of the runs' shape")
    _add_out(parser)
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="settings of the corruption in place of the run's, as in corruption.sigma=1.5, or "
        "several in quotes; once for each candidate",
    )
    parser.add_argument(
        "--n", type=int, default=4, help="estimates of each measurement, default %(default)s"
    )
    _add_sampling(parser)
    return parser.parse_args(arguments)


def parse_erase(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem erase`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem erase",
        description="Withdraws measurements from a finished run: writes a run without them.",
    )
    parser.add_argument("run", type=Path, help="the run directory, which is left as it is")
    parser.add_argument(
        "--rows",
        type=Path,
        required=True,
        metavar="FILE",
        help="a text file that names the measurements, one a line: the numbers of rows, or the "
        "names of files without their suffix",
    )
    _add_out(parser)
    parser.add_argument(
        "--target",
        choices=("heldout", "noise"),
        default="heldout",
        help="what their loss becomes: that of held-out measurements (default), or that of noise, "
        "for groups that are unlike all others",
    )
    parser.add_argument(
        "--steps", type=int, help="optimiser steps; default: a tenth of those of the run"
    )
    parser.add_argument(
        "--eta", type=float, default=0.5, help="rate of unlearning, default %(default)s"
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=4e-3,
        help="learning rate at the first step, default %(default)s",
    )
    _add_device(parser)
    _add_trust(parser)
    return parser.parse_args(arguments)


def parse_export(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem export`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem export",
        description="Writes a finished run into a folder to give away: weights, a model card, "
        "reconstructions, ONNX.",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    _add_out(parser)
    parser.add_argument(
        "--reconstructions",
        choices=("input", "npy", "dataset", "none"),
        default="input",
        help="those of the last round: in the format of the measurements (default), as one .npy "
        "file, as a Hugging Face data set, or not at all",
    )
    parser.add_argument(
        "--onnx", action="store_true", help="write the denoisers as ONNX too, checked"
    )
    _add_trust(parser)
    return parser.parse_args(arguments)


def parse_report(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem report`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem report",
        description="Writes the page of a run, or one page that compares several.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run directory, or several; or the folder of a comparison or a sweep",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page; default: report.html in the folder"
    )
    return parser.parse_args(arguments)


def parse_watch(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem watch`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem watch",
        description="Shows live what a run is doing, until it ends or Ctrl-C.",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument(
        "--once", action="store_true", help="print it once and end, as without a terminal"
    )
    return parser.parse_args(arguments)


def parse_dashboard(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem dashboard`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem dashboard", description="Lays out the W&B workspace of a project of runs."
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="the W&B project, as me/diffem")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write its specification as JSON; send nothing"
    )
    return parser.parse_args(arguments)


def parse_classify(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments of `diffem classify`; None for those of this process."""
    parser = argparse.ArgumentParser(
        prog="diffem classify",
        description="Trains the small classifier in whose features images are compared.",
    )
    parser.add_argument("--dataset", required=True, help="a file of conf/dataset with labels")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="after --, as in dataset.path=FOLDER")
    return parser.parse_args(arguments)


def _add_input(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds the arguments that say which measurements are read, and how."""
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help=text)
    parser.add_argument("--key", help="as dataset.key; default: that of the run")
    parser.add_argument("--axes", help="as dataset.axes; default: those of the run")
    parser.add_argument("--dims", type=int, help="as dataset.dims; default: that of the run")


def _add_out(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that names the folder to write."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def _add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that names the device."""
    parser.add_argument("--device", help="as in cpu or cuda:0; default: the GPU if there is one")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `sample`, `score`, `generate` and `calibrate` share."""
    parser.add_argument("--seed", type=int, help="default: the run's")
    _add_device(parser)
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that names packages to trust."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package besides diffem whose classes the run may use",
    )


PARSE = {
    "calibrate": parse_calibrate,
    "inspect": parse_inspect,
    "evaluate": parse_evaluate,
    "sample": parse_sample,
    "score": parse_score,
    "generate": parse_generate,
    "erase": parse_erase,
    "export": parse_export,
    "watch": parse_watch,
    "report": parse_report,
    "dashboard": parse_dashboard,
    "classify": parse_classify,
}
"""What reads the arguments of a command."""
