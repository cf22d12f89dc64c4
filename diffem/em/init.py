"""Round 0: reconstructions before any network is trained.

An init has one method, `prepare`, which returns a posterior p_0(x | y): a function that draws one
x̂ for each of a batch of measurements from the global generators.
"""

import pickle
from pathlib import Path
from typing import Protocol

import torch

from diffem.corruption import Measurement
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.module import DenoiserModule
from diffem.posterior import Posterior, PosteriorFactory
from diffem.posterior.gaussian import fit_gaussian
from diffem.runtime.errors import UserError, check_count, check_positive
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import seeded
from diffem.storage.atomic import load_plain
from diffem.storage.checkpoint import check_sum


class Init(Protocol):
    """Makes the posterior of round 0."""

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: PosteriorFactory
    ) -> Posterior:
        """Returns p_0(x | y).

        Arguments:
            module: The module that is about to be trained, on its device.
            data: The measurements.
            posterior: Makes the E-step's posterior from the denoiser and the channel.
        """
        ...


class Gaussian:
    """A Gaussian fitted to the measurements by EM, and its exact posterior.

    Arguments:
        rank: The rank of the low-rank part of the covariance.
        iterations: The number of EM iterations.
        samples: The largest number of measurements to fit to.
        variance: The variance that EM starts from, > 0. It stays in directions that no
            measurement measures (what a blur removes); None for that of the measurements.

    Raises:
        UserError: If a number is too small.
    """

    def __init__(
        self, rank: int, iterations: int, samples: int, *, variance: float | None = None
    ) -> None:
        self.rank = check_count("init.rank", rank)
        self.iterations = check_count("init.iterations", iterations)
        self.samples = check_count("init.samples", samples, minimum=2)
        self.variance = None if variance is None else check_positive("init.variance", variance)

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: PosteriorFactory
    ) -> Posterior:
        """Returns the posterior of the fitted Gaussian."""
        measurement = data.observed.measurement.select(slice(self.samples)).to(module.device)
        with (
            progress_bar("Gaussian EM", self.iterations, "iterations") as advance,
            seeded(module.seed, "init", device=module.device),
        ):
            return fit_gaussian(
                data.observed.corruption,
                measurement,
                rank=self.rank,
                iterations=self.iterations,
                variance=self.variance,
                advance=advance,
            )


class FromMeasurement:
    """The measurement itself, brought back on the grid of x."""

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: PosteriorFactory
    ) -> Posterior:
        """Returns the point mass at the lifted measurement."""
        return data.observed.corruption.lift


class FromClean:
    """A few clean images, drawn with replacement: round 0 ignores the measurements.

    Arguments:
        count: The number of clean images that the method may see, the first of the training set.
    """

    def __init__(self, count: int) -> None:
        self.count = check_count("init.count", count)

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: PosteriorFactory
    ) -> Posterior:
        """Returns the uniform distribution over the clean images."""
        clean = data.observed.truth[: self.count].to(module.device)

        def draw(measurement: Measurement) -> torch.Tensor:
            index = torch.randint(len(clean), measurement.y.shape[:1], device=clean.device)
            return clean[index]

        return draw


class FromCheckpoint:
    """Another run's posterior; training goes on from its weights.

    Arguments:
        path: The other run's directory, or one of its checkpoint files.

    Raises:
        UserError: If there is no checkpoint, or the file is none, or damaged.
    """

    def __init__(self, path: str) -> None:
        self.file = Path(path) / "checkpoints" / "last.ckpt" if Path(path).is_dir() else Path(path)
        if not self.file.is_file():
            raise UserError(
                f"init.path: no checkpoint at {self.file}; give a run directory or a .ckpt file"
            )
        check_sum(self.file)
        try:
            self.state = load_plain(self.file)["state_dict"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
            raise UserError(
                f"init.path: {self.file} is no checkpoint of a run ({type(error).__name__}); give "
                "a run directory or a .ckpt file"
            ) from error

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: PosteriorFactory
    ) -> Posterior:
        """Returns the other run's posterior and puts its weights into the module.

        Raises:
            UserError: If the checkpoint is of another network.
        """
        try:
            module.load_state_dict(self.state)
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"init.path: {self.file} is of another network; use the network, dataset and "
                "corruption that it was trained with"
            ) from error
        module.ema.restore(module.denoiser)
        return posterior(module.ema.denoiser, data.observed.corruption, data.sample())
