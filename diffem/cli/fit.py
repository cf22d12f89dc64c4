"""`diffem.fit`: from arrays of measurements to samplers, in one call."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from diffem.cli.compose import check_config, compose_run
from diffem.cli.errors import sentence
from diffem.cli.launch import quiet
from diffem.result import Result, load
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.runtime.rank import remove_left_over
from diffem.runtime.signals import STOP_SIGNALS
from diffem.storage.atomic import write_file
from diffem.storage.lock import unlock_folder
from diffem.storage.run_dir import check_version, other_files

MEASUREMENTS = "measurements.npz"  # in the run directory

Array = np.ndarray | Tensor


def fit(
    measurements: Array | Mapping[str, Array],
    *,
    corruption: str,
    run_dir: str | Path,
    noise: float | None = None,
    rounds: int = 6,
    network: str = "unet",
    overrides: Sequence[str] = (),
) -> Result:
    """Learns samplers of p(x | y) and p(x) from measurements, on one device.

    The run is that of `diffem train dataset=measurements …`, with a run directory of its own, in
    which the measurements are kept too: the same call again resumes it, and returns its result
    when it is finished.

    Arguments:
        measurements: y in the data's units, (N, H, W), (N, C, H, W) or (N, D); NaN was not
            measured. Or a mapping with "y" and perhaps "operator" (φ of each measurement, for a
            mask 0 where nothing was measured), "std" (N,) and "truth" (clean images, for scores
            alone).
        corruption: What they went through, a choice of `corruption`, as in "mask".
        run_dir: The run directory, new or of the same run.
        noise: The noise's standard deviation in the data's units, for Gaussian noise; None for
            the corruption's own.
        rounds: The number of EM rounds.
        network: A choice of `network`.
        overrides: Further settings as on the command line, as in "prior.steps=400".

    Returns:
        The result, as `diffem.load` returns it.

    Raises:
        UserError: If a setting or the measurements are refused; what the run has written stays.
    """
    run_dir = Path(run_dir).absolute()
    if left_over := remove_left_over(os.environ):
        warn(left_over)
    arguments = [
        "dataset=measurements",
        f"dataset.path=${{run_dir}}/{MEASUREMENTS}",
        f"corruption={corruption}",
        f"network={network}",
        f"em.rounds={rounds}",
        *([] if noise is None else [f"corruption.noise.std={noise}"]),
        *overrides,
        "resume=auto",
    ]
    with _user_errors(), _signals(), quiet():
        check_version(run_dir)
        cfg = compose_run(arguments, run_dir)
        if cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1:
            raise UserError(
                f"trainer.devices={cfg.trainer.devices}: fit runs on one device; use `diffem "
                "train` for several"
            )
        check_config(cfg)
        _keep(measurements, run_dir)
        from diffem.cli.train import run  # imports Lightning

        try:
            run(cfg)
        except SystemExit as exit:
            if exit.code not in (None, 0):  # 0: the run is finished already
                raise
        finally:
            unlock_folder(run_dir)
    return load(run_dir, trust=list(cfg.trust))


def _keep(measurements: Array | Mapping[str, Array], run_dir: Path) -> None:
    """Writes the measurements to the run directory, or compares them with those that are there.

    Raises:
        UserError: If the directory holds other measurements.
    """
    given = measurements if isinstance(measurements, Mapping) else {"y": measurements}
    arrays = {name: np.asarray(array) for name, array in given.items()}
    file = run_dir / MEASUREMENTS
    if not file.exists():
        if other_files(run_dir) or (run_dir / ".hydra").exists():
            raise UserError(f"run_dir={run_dir} holds other files; choose an empty or new run_dir")
        run_dir.mkdir(parents=True, exist_ok=True)
        write_file(file, lambda content: np.savez(content, allow_pickle=False, **arrays))
        return
    with np.load(file, allow_pickle=False) as held:
        same = held.files == list(arrays) and all(_equal(held[n], a) for n, a in arrays.items())
    if not same:
        raise UserError(
            f"run_dir={run_dir} holds a run on other measurements; choose another run_dir"
        )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@contextmanager
def _user_errors() -> Iterator[None]:
    """Opens a scope in which Hydra's and OmegaConf's refusals are UserErrors of one sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(sentence(error)) from error


@contextmanager
def _signals() -> Iterator[None]:
    """Opens a scope after which the process handles signals as before: a run sets its own."""
    held = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGINT)}
    argv, sys.argv = sys.argv, sys.argv[:1]  # Hydra's helpers read the command line
    try:
        yield
    finally:
        sys.argv = argv
        for number, handler in held.items():
            signal.signal(number, handler)
