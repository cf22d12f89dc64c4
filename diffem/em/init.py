"""Round 0: reconstructions before any network is trained.

An init prepares a posterior p_0(x | y), from which round 0 is drawn.
"""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diffem.corruption import Channel, LinearChannel, Measurement
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.module import DenoiserModule
from diffem.posterior import Posterior
from diffem.posterior.gaussian import UninformedGaussian, fit_gaussian, observed_variance
from diffem.posterior.mixture_fit import fit_mixture
from diffem.posterior.posterior import has_spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.progress import progress_bar
from diffem.runtime.ranges import check
from diffem.runtime.rng import seeded
from diffem.storage.atomic import load_plain, sha256
from diffem.storage.checkpoint import check_digest, digests, save_checkpoint, was_saved

KEPT_WEIGHTS = "init.ckpt"  # in checkpoints/: the weights that init=checkpoint started from
ENTRIES = 2**28  # of the images that a mixture is fitted to, which are in memory at once


class Init(Protocol):
    """Prepares the posterior of round 0."""

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: Posterior
    ) -> Posterior:
        """Returns p_0(x | y).

        Arguments:
            module: The module that is about to be trained, on its device.
            data: The measurements.
            posterior: The posterior of the later E-steps, which samples the module's averaged
                weights.
        """
        ...


class Gaussian:
    """A Gaussian fitted to the measurements by EM, and its posterior; any channel will do.

    It is exact under linear channels with Gaussian noise, and the best affine estimate under other
    linear channels. Otherwise it is fitted under the linear channel that comes nearest
    (`Channel.surrogate`). Where none does, round 0 is drawn from the Gaussian that EM starts from,
    N(0, variance · I); the first M-step then learns its posterior.

    Arguments:
        rank: The rank of the low-rank part of the covariance.
        iterations: The number of EM iterations.
        samples: The largest number of measurements to fit to.
        variance: The variance that EM starts from, > 0. It stays in directions that no
            measurement measures (what a blur removes); None for that of the measurements, or 1/3,
            that of a uniform pixel, under a channel that is not linear.

    Raises:
        UserError: If a number is too small.
    """

    def __init__(
        self, rank: int, iterations: int, samples: int, *, variance: float | None = None
    ) -> None:
        self.rank = check("init.rank", rank)
        self.iterations = check("init.iterations", iterations)
        self.samples = check("init.samples", samples)
        self.variance = check("init.variance", variance)

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: Posterior
    ) -> Posterior:
        """Returns the posterior of the fitted Gaussian.

        Raises:
            UserError: If the measurements measure nothing.
        """
        channel = data.measurements.channel
        linear = channel.surrogate
        if linear is None:
            return UninformedGaussian(channel.shape, self.variance or 1 / 3)
        fitted = self.fit(linear, self.measured(linear, data).to(module.device), module)
        return fitted if linear is channel else Undistorted(channel, fitted)

    def fit(
        self, channel: LinearChannel, measurement: Measurement, module: DenoiserModule
    ) -> Posterior:
        """Returns the posterior of the Gaussian that is fitted to measurements."""
        with (
            progress_bar("Gaussian EM", self.iterations, "iterations") as advance,
            seeded(module.seed, "init", device=module.device),
        ):
            return fit_gaussian(
                channel,
                measurement,
                rank=self.rank,
                iterations=self.iterations,
                variance=self.variance,
                advance=advance,
            )

    def measured(self, channel: LinearChannel, data: ReconstructionDataModule) -> Measurement:
        """Returns the measurements to fit to, of which some entry must be measured.

        Raises:
            UserError: If they measure nothing.
        """
        measurement = data.measurements.select(slice(self.samples))
        measurement = data.measurements.channel.undistorted(measurement)
        if not channel.measured_mask(measurement.y, measurement.operator).any():
            raise UserError(
                f"init: nothing was measured in the first {len(measurement.y)} measurements "
                "(init.samples); choose a corruption that leaves something"
            )
        return measurement


class Mixture(Gaussian):
    """A mixture of Gaussians fitted to the measurements by EM, and its exact posterior.

    It needs a linear channel whose spectrum is at hand; under any other one Gaussian is fitted.

    Arguments:
        components: The number of Gaussians; None doubles it from 1 while a tenth of the
            measurements, left out of the fit, become more likely.
        rank: The largest rank of the low-rank part of each covariance.
        iterations: The number of EM iterations of the first Gaussian, and again of the mixture.
        samples: The largest number of measurements to fit to; of large images fewer are, so that
            they have at most 2²⁸ entries.
        shrinkage: To how many more images, of the components' mean covariance, each component is
            fitted, > 0.
        variance: As of `Gaussian`.

    Raises:
        UserError: If a number is too small.
    """

    def __init__(
        self,
        components: int | None,
        rank: int,
        iterations: int,
        samples: int,
        *,
        shrinkage: float,
        variance: float | None = None,
    ) -> None:
        super().__init__(rank, iterations, samples, variance=variance)
        self.components = check("init.components", components)
        self.shrinkage = check("init.shrinkage", shrinkage)

    @staticmethod
    def fits(channel: Channel) -> bool:
        """Returns whether a mixture can be fitted under a channel."""
        return channel.surrogate is not None and has_spectrum(channel.surrogate)

    def fit(
        self, channel: LinearChannel, measurement: Measurement, module: DenoiserModule
    ) -> Posterior:
        """Returns the posterior of the mixture that is fitted to measurements.

        Raises:
            UserError: If the fit breaks down numerically.
        """
        if not self.fits(channel):
            return super().fit(channel, measurement, module)
        most = max(2, ENTRIES // math.prod(channel.shape))
        measurement = measurement.select(slice(most))
        variance = observed_variance(channel, measurement)
        if self.variance is not None:
            variance = torch.full_like(variance, self.variance)
        iterations = self.iterations * (1 if self.components == 1 else 2)
        with (
            progress_bar("mixture EM", iterations, "iterations") as advance,
            seeded(module.seed, "init", device=module.device),
        ):
            try:
                return fit_mixture(
                    channel,
                    measurement,
                    components=self.components,
                    rank=self.rank,
                    iterations=self.iterations,
                    shrinkage=self.shrinkage,
                    variance=variance,
                    advance=advance,
                )
            except torch.linalg.LinAlgError as error:  # type: ignore[reportPrivateImportUsage]
                raise UserError(
                    f"init=mixture cannot be fitted under {channel}: the noise is too weak for "
                    "float32; start again in a new run_dir with init=gaussian"
                ) from error


class Undistorted(Posterior):
    """The posterior under a channel's linear surrogate.

    Arguments:
        channel: The channel.
        posterior: The posterior under `channel.surrogate`.
    """

    def __init__(self, channel: Channel, posterior: Posterior) -> None:
        self.channel = channel
        self.posterior = posterior

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws x, (B, *shape), for the measurements of the surrogate."""
        return self.posterior.draw(self.channel.undistorted(measurement))


class Confined:
    """Another init, whose draws are brought into the range that later rounds are drawn in.

    Arguments:
        init: The init.
        confine: Returns images, (B, *shape), brought into the range.
    """

    def __init__(self, init: Init, confine: Callable[[Tensor], Tensor]) -> None:
        self.init = init
        self.confine = confine

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: Posterior
    ) -> Posterior:
        """Returns the other init's posterior with its draws confined."""
        return ConfinedPosterior(self.init.prepare(module, data, posterior), self.confine)


class ConfinedPosterior(Posterior):
    """Another posterior, whose draws are brought into a range.

    Arguments:
        posterior: The posterior.
        confine: Returns images, (B, *shape), brought into the range.
    """

    def __init__(self, posterior: Posterior, confine: Callable[[Tensor], Tensor]) -> None:
        self.posterior = posterior
        self.confine = confine

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x for each measurement, (B, *shape), in the range."""
        return self.confine(self.posterior.draw(measurement))

    def under(self, channel: Channel) -> "ConfinedPosterior":
        """Returns the posterior under another channel, its draws confined."""
        return ConfinedPosterior(self.posterior.under(channel), self.confine)

    def uncounted(self) -> "ConfinedPosterior":
        """Returns the posterior with a denoiser whose evaluations are not counted as EM's."""
        return ConfinedPosterior(self.posterior.uncounted(), self.confine)


class FromMeasurement:
    """The measurement itself, brought back on the grid of x."""

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: Posterior
    ) -> Posterior:
        """Returns the point mass at the lifted measurement."""
        return Lifted(data.measurements.channel)


class Lifted(Posterior):
    """The point mass at the measurement, brought on the grid of x.

    Arguments:
        channel: The channel.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def draw(self, measurement: Measurement) -> Tensor:
        """Returns the lifted measurements, (B, *shape)."""
        return self.channel.lift(measurement)


class FromClean:
    """A few clean images, drawn with replacement: round 0 ignores the measurements.

    Arguments:
        count: The number of clean images that the method may see, the first of the training set.
    """

    def __init__(self, count: int) -> None:
        self.count = check("init.count", count)

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: Posterior
    ) -> Posterior:
        """Returns the uniform distribution over the clean images."""
        return Resampled(data.measurements.known_truth("init=clean")[: self.count])


class Resampled(Posterior):
    """The uniform distribution over some images, whatever was measured.

    Arguments:
        x: The images, (n, *shape).
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one of the images for each measurement, (B, *shape)."""
        device = measurement.y.device
        index = torch.randint(len(self.x), measurement.y.shape[:1], device=device)
        return self.x.to(device)[index]


class FromCheckpoint:
    """Another run's posterior; training continues from its weights.

    The run keeps a copy of the weights, so that it can be resumed when the other run is gone, or
    was trained further.

    Arguments:
        path: The other run's directory, or one of its checkpoint files.
    """

    def __init__(self, path: str) -> None:
        self.file = Path(path) / "checkpoints" / "last.ckpt" if Path(path).is_dir() else Path(path)
        self.checkpoint: dict[str, Any] = {}

    def read(self, kept: Path, *, otherwise: str) -> None:
        """Reads the weights: those that the run has kept, if it has, or the other run's.

        Arguments:
            kept: The run's copy, which may not exist yet.
            otherwise: What else to do where the copy is lost and the other run is gone.

        Raises:
            UserError: If there is no checkpoint, or the file is none, or damaged.
        """
        if kept.is_file() and sha256(kept) in digests(kept.parent):
            self.file = kept
        elif not self.file.is_file():
            if was_saved(kept):
                raise UserError(
                    f"{kept} is missing or damaged, and {self.file} of init.path is gone; put one "
                    f"of them back, or {otherwise}"
                )
            raise UserError(
                f"init.path: no checkpoint at {self.file}; give a run directory or a .ckpt file"
            )
        check_digest(self.file)
        try:
            held = load_plain(self.file)
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
            raise self._no_checkpoint(type(error).__name__) from error
        if not isinstance(held, dict) or "state_dict" not in held:
            raise self._no_checkpoint("it holds no weights")
        if "em_state" not in held:
            raise UserError(
                f"init.path: {self.file} was written by diffem 0.1, whose weights have other "
                "names; train that run again with this version"
            )
        self.checkpoint = {key: held[key] for key in ("state_dict", "em_state")}

    def keep(self, kept: Path) -> None:
        """Writes the weights that were read to the run's copy, if they are not from it."""
        if self.file != kept:
            save_checkpoint(self.checkpoint, kept)

    def _no_checkpoint(self, reason: str) -> UserError:
        return UserError(
            f"init.path: {self.file} is no checkpoint of a run ({reason}); give a run directory "
            "or a .ckpt file"
        )

    def prepare(
        self, module: DenoiserModule, data: ReconstructionDataModule, posterior: Posterior
    ) -> Posterior:
        """Returns the other run's posterior and puts its weights into the module.

        Raises:
            UserError: If the checkpoint is of another network.
        """
        self.restore(module)
        return posterior

    def restore(self, module: DenoiserModule) -> None:
        """Puts the other run's averaged weights into a module.

        Raises:
            UserError: If the checkpoint is of another network.
        """
        try:
            module.load_state_dict(self.checkpoint["state_dict"])
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"init.path: {self.file} is of another network; use the network, dataset and "
                "corruption that it was trained with"
            ) from error
        module.restore_average()
