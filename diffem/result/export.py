"""A finished run as a folder to give away, as a repository of the Hugging Face Hub is laid out.

    README.md                a model card: data, channel, scores, how to sample, limits
    posterior.safetensors    weights, settings, channel and scale of p(x | y) (result/weights.py)
    prior.safetensors        of p(x), if one was trained
    student.safetensors      of p(x | y) in one evaluation, if one was trained
    posterior.onnx, prior.onnx    their denoisers for other runtimes, if asked for
    reconstructions/         those of the last round
    figures/, summary.json   as the run has them

`diffem.load`, `diffem sample` and `diffem generate` read the folder as they read the run's.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from diffem.config.extras import DATASETS
from diffem.data.format import Format, new_folder, write_generated
from diffem.result.card import model_card
from diffem.result.onnx_graph import check_onnx, write_onnx
from diffem.result.result import (
    POSTERIOR,
    PRIOR,
    STUDENT,
    Result,
    held_format,
    load,
    moments,
    newest_round,
    weights_folder,
)
from diffem.result.weights import read_weights, write_weights
from diffem.runtime.errors import UserError
from diffem.runtime.extras import check_installed
from diffem.runtime.progress import progress_bar

FIGURES = ("heldout.png", "prior.png", "curves.png")
ROWS = 1024  # reconstructions that are read together
NAME = "reconstructions"


class LastRound:
    """The reconstructions of a run's last round, in the data's units.

    Arguments:
        run: The run directory.
        result: What the run learned.

    Raises:
        UserError: If the round is missing or damaged.
    """

    def __init__(self, run: Path, result: Result) -> None:
        about = read_weights(weights_folder(run) / POSTERIOR).about
        self.round = newest_round(about, run)
        self.scale, self.shape = result.scale, result.channel.shape
        self.format = held_format(about)

    def __len__(self) -> int:
        return len(self.round)

    def chunks(self) -> Iterator[Tensor]:
        """Yields them chunk by chunk, (b, *shape), float64, under a progress bar."""
        starts = range(0, len(self), ROWS)
        with progress_bar(NAME, len(starts), "chunks") as advance:
            for start in starts:
                rows = range(start, min(start + ROWS, len(self)))
                yield self.scale.denormalise(self.round.__getitems__(rows).x.double())
                advance()


Writer = Callable[[Path, LastRound], None]
"""Writes reconstructions into a folder, which it makes."""


def write_as_measured(folder: Path, held: LastRound) -> None:
    """Writes them in the format and dtype of the measurements; of a benchmark as .npy."""
    write_generated(folder, held.format, held.shape, held.chunks(), count=len(held), name=NAME)


def write_array(folder: Path, held: LastRound) -> None:
    """Writes reconstructions.npy, (N, *shape), float32, or float64 if the values need it."""
    dtype = held.format.float_type().name
    form = Format(".npy", dtype, channel_axis=held.format.channel_axis)
    write_generated(folder, form, held.shape, held.chunks(), count=len(held), name=NAME)


def write_dataset(folder: Path, held: LastRound) -> None:
    """Writes a data set of Hugging Face's `datasets`: Parquet files of one column, `x`.

    Raises:
        UserError: If the package is not installed, or an image has more than five axes.
    """
    check_installed("--reconstructions dataset", DATASETS)
    import datasets

    shape, dtype = tuple(held.shape), held.format.float_type().name
    arrays = {2: datasets.Array2D, 3: datasets.Array3D, 4: datasets.Array4D, 5: datasets.Array5D}
    if len(shape) == 1:
        column = datasets.List(datasets.Value(dtype), length=shape[0])
    elif len(shape) in arrays:
        column = arrays[len(shape)](shape, dtype)
    else:
        raise UserError(
            f"--reconstructions dataset is for up to five axes, and an image has {len(shape)}; "
            "choose --reconstructions npy"
        )
    features, files = datasets.Features({"x": column}), math.ceil(len(held) / ROWS)
    folder.mkdir()
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for i, x in enumerate(held.chunks()):
            rows = datasets.Dataset.from_dict({"x": list(x.numpy())}, features=features)
            rows.to_parquet(folder / f"train-{i:05d}-of-{files:05d}.parquet")
    finally:
        if shown:
            datasets.enable_progress_bars()


WRITERS: Mapping[str, Writer | None] = {
    "input": write_as_measured,
    "npy": write_array,
    "dataset": write_dataset,
    "none": None,
}
"""What writes the reconstructions, by the name that the command has for it."""


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    reconstructions: Writer | None = write_as_measured,
    onnx: bool = False,
    trust: Sequence[str] = (),
) -> list[str]:
    """Writes a finished run into a new folder, which appears when all is written.

    Arguments:
        run: The run directory.
        out: The folder; it must not exist, or be empty.
        reconstructions: What writes the reconstructions of the last round; None for none.
        onnx: Whether the denoisers are written as ONNX too, each after it was compared with
            torch's.
        trust: Packages besides diffem whose classes the run's settings may name.

    Returns:
        The names of what was written, in the folder.

    Raises:
        UserError: If the run is not finished or damaged, the folder is not empty, a package is
            missing, or ONNX cannot express a denoiser.
    """
    run, out = Path(run).expanduser(), Path(out).expanduser()
    if run.is_file():
        raise UserError(f"{run} is a file; give the run directory")
    if onnx:
        check_onnx()
    result = load(run, device="cpu", trust=trust)
    weights = read_weights(weights_folder(run) / POSTERIOR)
    with new_folder(out) as folder:
        posterior = result.posterior.posterior
        write_weights(
            folder / POSTERIOR,
            weights.state,
            weights.about,
            result.channel,
            moments=moments(weights, run) if posterior.fits else None,
        )
        if result.prior is not None:
            shutil.copyfile(weights_folder(run) / PRIOR, folder / PRIOR)
        if result.student is not None:
            shutil.copyfile(weights_folder(run) / STUDENT, folder / STUDENT)
        graphs = write_onnx(folder, result, prior=folder / PRIOR) if onnx else {}
        if reconstructions is not None:
            reconstructions(folder / NAME, LastRound(run, result))
        for name in (name for name in FIGURES if (run / "figures" / name).is_file()):
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(run / "figures" / name, folder / "figures" / name)
        if result.summary is not None:
            text = json.dumps(result.summary, indent=1)
            (folder / "summary.json").write_text(f"{text}\n")
        written = sorted(path.name for path in folder.iterdir())
        card = model_card(result, weights.about, out.name, files=written, graphs=graphs)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return ["README.md", *written]
