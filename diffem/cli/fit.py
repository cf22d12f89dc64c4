"""`diffem.fit`: from arrays of measurements to samplers, in one call."""

import os
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from diffem.cli.compose import check_channel_given, check_config, compose_run
from diffem.cli.composition import override_key
from diffem.cli.errors import sentence
from diffem.cli.launch import quiet
from diffem.data.arrays import plain_array
from diffem.data.held import FIELDS
from diffem.result import Result, load
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.runtime.rank import remove_left_over
from diffem.runtime.rng import default_float32
from diffem.runtime.signals import STOP_SIGNALS
from diffem.storage.atomic import write_file
from diffem.storage.lock import unlock_folder
from diffem.storage.run_dir import check_version, other_files

MEASUREMENTS = "measurements.npz"  # in the run directory
ARGUMENTS = (  # the settings that the arguments of `fit` give
    *("corruption", "dataset", "dataset.path", "em.rounds", "network", "resume", "run_dir"),
    "hydra",
)

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
        noise: The noise's standard deviation in the data's units, for Gaussian noise; None where
            `overrides` says what the noise is, as in "corruption.noise.photons=30".
        rounds: The number of EM rounds.
        network: A choice of `network`.
        overrides: Further settings as on the command line, as in "prior.steps=400"; none of those
            that the other arguments give.

    Returns:
        The result, as `diffem.load` returns it.

    Raises:
        UserError: If a setting or the measurements are refused; what the run has written stays.
    """
    run_dir = Path(run_dir).expanduser().absolute()
    _check_given(corruption, network, run_dir, noise, overrides)
    arrays = _arrays(measurements)
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
    with _user_errors(), _process_state(), quiet():
        check_version(run_dir)
        cfg = compose_run(arguments, run_dir)
        if cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1:
            raise UserError(
                f"trainer.devices={cfg.trainer.devices}: fit runs on one device; use `diffem "
                "train` for several"
            )
        check_config(cfg)
        check_channel_given(cfg)
        _keep(arrays, run_dir)
        from diffem.cli.train import run  # imports Lightning

        try:
            run(cfg)
        except SystemExit as exit:
            if isinstance(exit.__context__, KeyboardInterrupt):  # which Lightning replaces
                raise KeyboardInterrupt from None
            if exit.code not in (None, 0):  # 0: the run is finished already
                raise
        finally:
            unlock_folder(run_dir)
    return load(run_dir, trust=list(cfg.trust))


def _check_given(
    corruption: str, network: str, run_dir: Path, noise: float | None, overrides: Sequence[str]
) -> None:
    """Refuses arguments that are no names, and overrides of what is an argument of `fit`.

    Raises:
        UserError: If there is one.
    """
    for name, choice in (("corruption", corruption), ("network", network)):
        if not isinstance(choice, str) or not re.fullmatch(r"[\w/-]+", choice):
            raise UserError(f"{name} must be the name of a choice, got {choice!r}")
    if "${" in str(run_dir):
        raise UserError(f"run_dir={run_dir} must be a path without ${{…}}; give another one")
    if isinstance(overrides, str) or not all(isinstance(o, str) for o in overrides):
        raise UserError(f'overrides must be a list such as ["seed=1"], got {overrides!r}')
    given = [*ARGUMENTS, *([] if noise is None else ["corruption.noise.std"])]
    for override in overrides:
        key = override_key(override)
        if key in given or key.startswith(("hydra.", "hydra/", "-")):
            raise UserError(
                f"overrides: {override} is not for fit, whose arguments give "
                f"{', '.join(given)}; leave it out"
            )


def _arrays(measurements: Array | Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Returns the measurements and what was given with them, by name.

    Raises:
        UserError: If one is no array of real numbers, or has a name that is not known.
    """
    given = measurements if isinstance(measurements, Mapping) else {"y": measurements}
    if "y" not in given or not given.keys() <= set(FIELDS):
        raise UserError(
            f"measurements must hold y, and may hold {', '.join(FIELDS[1:])}; got "
            f"{', '.join(map(str, given)) or 'nothing'}"
        )
    return {name: plain_array(array, f"measurements: {name}") for name, array in given.items()}


def _keep(arrays: Mapping[str, np.ndarray], run_dir: Path) -> None:
    """Writes the measurements to the run directory, or compares them with those that are there.

    Those of a call that was refused before its run began are replaced.

    Raises:
        UserError: If the directory holds a run on other measurements, or other files.
    """
    file, begun = run_dir / MEASUREMENTS, (run_dir / ".hydra").exists()
    if not (file.exists() and begun):
        others = [path for path in other_files(run_dir) if path.name != MEASUREMENTS]
        if others or begun:
            raise UserError(f"run_dir={run_dir} holds other files; choose an empty or new run_dir")
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run_dir={run_dir} cannot be made ({error.strerror}); choose another run_dir"
            ) from error
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
def _process_state() -> Iterator[None]:
    """Opens a scope that a run needs, after which the process is as before.

    A run handles signals, draws from the global generators, and makes float32 tensors by default.
    """
    numbers = (*STOP_SIGNALS, signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()  # which alone handles signals
    held = {number: signal.getsignal(number) for number in numbers} if main else {}
    argv, sys.argv = sys.argv, sys.argv[:1]  # Hydra's helpers read the command line
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), default_float32(), torch.inference_mode(False):
            yield
    finally:
        sys.argv = argv
        random.setstate(state)
        np.random.set_state(numpy_state)
        for number, handler in held.items():
            if handler is not None:  # one that was not installed by Python
                signal.signal(number, handler)
