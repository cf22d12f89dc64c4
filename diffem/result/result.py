"""The result of a run: `diffem.load(run_dir)`, with neither Hydra nor a Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from diffem.config.allow_list import check_targets
from diffem.config.trust import package_folders
from diffem.corruption import Channel, LinearChannel
from diffem.corruption.recorded import Recorded
from diffem.data.arrays import measurement_of, plain_array
from diffem.data.format import Format
from diffem.data.held import Held
from diffem.data.measurements import MeasurementSet
from diffem.data.patches import are_larger
from diffem.data.scale import Scale
from diffem.denoiser import Denoiser
from diffem.posterior import Posterior, Prior, sample_chunks
from diffem.result.parts import build_channel, build_denoiser, build_posterior, build_prior
from diffem.result.sampling import Sampling
from diffem.result.settings import OTHER_NETWORK, check_settings, check_weights
from diffem.result.tiled import TiledSampler
from diffem.result.weights import Description, Weights, read_weights
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key, default_float32, seeded
from diffem.storage.entries import check_entries
from diffem.storage.reconstructions import Reconstructions, ReconstructionStore
from diffem.storage.rows import read_rows
from diffem.storage.strict_json import from_json

POSTERIOR, PRIOR = "posterior.safetensors", "prior.safetensors"
STUDENT = "student.safetensors"
WEIGHTS = "checkpoints"  # the folder of a run directory that they are in
BENCHMARK = Format(".npy", "float32", channel_axis=True)
MOST = 4096  # reconstructions that a posterior's moments are taken from


class PosteriorSampler:
    """Draws x ~ p(x | y) in the data's units.

    Arguments:
        posterior: The posterior, on the scale of [-1, 1]; its network is on the sampling's device.
        channel: The channel, its noise on the scale of [-1, 1].
        scale: The data's units.
        sampling: How samples are drawn.
    """

    def __init__(
        self, posterior: Posterior, channel: Channel, scale: Scale, sampling: Sampling
    ) -> None:
        self.posterior = posterior
        self.channel = channel
        self.scale = scale
        self.sampling = sampling

    @property
    def measured_shape(self) -> tuple[int, ...]:
        """The shape M of a measurement of an image of the run's shape."""
        x = torch.zeros(1, *self.channel.shape)
        return tuple(self.channel.draw(x, Generator().manual_seed(0)).y.shape[1:])

    def sample(
        self,
        y: np.ndarray | Tensor,
        n: int = 1,
        *,
        operator: np.ndarray | Tensor | None = None,
        noise: np.ndarray | Tensor | None = None,
        seed: int | None = None,
        overlap: int | None = None,
    ) -> Tensor:
        """Draws n samples for each measurement.

        The draws depend on the seed, the measurements' order and their number alone.

        Measurements that are larger than the run's shape are sampled one by one, by tiles that are
        blended at each step of the sampler, each on one path of the whole image.

        Arguments:
            y: Measurements in the data's units, (B, *M); NaN was not measured. The channel axis of
                grey images may be left out, and is then left out of the samples too.
            n: The number of samples of each measurement.
            operator: The operator's parameters of each measurement, (B, *P), for a mask 0 where
                nothing was measured; None where the channel has the same for all.
            noise: The noise's standard deviation of each measurement, (B,), in the data's units;
                None where the channel has one for all.
            seed: The seed; None for the run's, with which its held-out measurements give the
                samples that the run was evaluated on.
            overlap: How many pixels neighbouring tiles of larger measurements share along each
                axis; None for half the shortest side of a tile.

        Returns:
            Samples in the data's units, (n, B, *shape), float32, on the CPU.

        Raises:
            UserError: If the measurements do not fit the channel, or are larger and cannot be cut.
        """
        check("n", n)
        y = plain_array(y, "y: y")
        if len(y) and are_larger([y.shape[1:]], self.measured_shape):
            phi = None if operator is None else plain_array(operator, "y: operator")
            std = None if noise is None else plain_array(noise, "y: std")
            held = Held("y", BENCHMARK, y, operator=phi, std=std)
            samples = self._sample_tiled(self.tiled(held, overlap=overlap), n, seed)
        elif overlap is not None:
            raise UserError(
                f"overlap={overlap} has no effect on measurements that are not larger than "
                f"{list(self.channel.shape)}; leave it out"
            )
        else:
            measurement = measurement_of(
                y, self.channel, self.scale, operator=operator, noise=noise
            )
            measurements = MeasurementSet(measurement, self.channel, scale=self.scale)
            chunks = [chunk.float() for chunk in self.chunks(measurements, n, seed=seed)]
            samples = torch.cat(chunks, dim=1)
        grey = samples.shape[2] == 1 and samples.ndim == y.ndim + 2
        return samples.squeeze(2) if grey else samples

    def draw(
        self, measurements: MeasurementSet, n: int, *key: Key, seed: int | None = None
    ) -> Iterator[Tensor]:
        """Yields samples on the scale of [-1, 1] chunk by chunk, (n, b, *shape), on the CPU.

        Arguments:
            measurements: The measurements, on that scale.
            n: The number of samples of each measurement.
            key: What the draws depend on besides the seed.
            seed: The seed; None for the run's.
        """
        sampling = self.sampling
        draws = sample_chunks(
            self.posterior, measurements, n,
            chunk_size=sampling.chunk_size,
            key=(sampling.chosen(seed), *key),
            device=sampling.device,
        )  # fmt: skip
        while True:
            with torch.no_grad(), sampling.context():
                samples = next(draws, None)
            if samples is None:
                return
            yield samples

    def chunks(
        self, measurements: MeasurementSet, n: int, *, seed: int | None = None
    ) -> Iterator[Tensor]:
        """Yields the samples of `sample` chunk by chunk, (n, b, *shape), float64, on the CPU.

        A float32 would lose the digits of images whose values are large and alike.

        Arguments:
            measurements: The measurements, on the scale of [-1, 1].
            n: The number of samples of each measurement.
            seed: The seed; None for the run's.
        """
        for samples in self.draw(measurements, n, "evaluation", "heldout", seed=seed):
            yield self.scale.denormalise(samples.double())

    def tiled(self, held: Held, *, overlap: int | None = None) -> TiledSampler:
        """Returns what draws samples of measurements that are larger than the run's shape.

        Arguments:
            held: The measurements.
            overlap: As for `sample`.

        Raises:
            UserError: If they, the posterior or the channel do not allow it.
        """
        return TiledSampler(
            self.posterior, self.channel, self.scale, held, sampling=self.sampling, overlap=overlap
        )

    def _sample_tiled(self, tiled: TiledSampler, n: int, seed: int | None) -> Tensor:
        """Returns samples of measurements that are larger than the run's shape, (n, B, C, *S)."""
        images = [
            torch.stack([x.float() for x in tiled.sample(row, n, seed=seed)])
            for row in range(len(tiled.held.y))
        ]
        return torch.stack(images, dim=1)


class PriorSampler:
    """Draws x ~ p(x) in the data's units.

    Arguments:
        prior: The prior, on the scale of [-1, 1]; its network is on the sampling's device.
        scale: The data's units.
        sampling: How samples are drawn.
        channel_axis: Whether the measurements had an axis of channels.
    """

    def __init__(
        self, prior: Prior, scale: Scale, sampling: Sampling, *, channel_axis: bool = True
    ) -> None:
        self.prior = prior
        self.scale = scale
        self.sampling = sampling
        self.channel_axis = channel_axis

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draws n samples in the data's units, float32, on the CPU.

        Arguments:
            n: The number of samples, which are drawn together.
            seed: The seed; None for the run's.

        Returns:
            Samples, (n, *shape); grey ones without their channel if the measurements had none.
        """
        x = self.scale.denormalise(self.draw(check("n", n), seed=seed).double()).float()
        return x if self.channel_axis else x.squeeze(1)

    def draw(self, n: int, *key: Key, seed: int | None = None) -> Tensor:
        """Draws n samples on the scale of [-1, 1], (n, *shape), float32, on the CPU.

        Arguments:
            n: The number of samples.
            key: What the draws depend on besides the seed.
            seed: The seed; None for the run's.
        """
        sampling = self.sampling
        key = (sampling.chosen(seed), "prior samples", *key)
        with torch.no_grad(), sampling.context(), seeded(*key, device=sampling.device):
            return self.prior.sample(n).float().cpu()

    def chunks(self, n: int, *, seed: int | None = None) -> Iterator[Tensor]:
        """Yields n samples in the data's units chunk by chunk, (b, *shape), float64, on the CPU.

        Arguments:
            n: The number of samples.
            seed: The seed; None for the run's.
        """
        size = self.sampling.chunk_size
        for start in range(0, n, size):
            x = self.draw(min(size, n - start), start, seed=seed)
            yield self.scale.denormalise(x.double())


@dataclass(frozen=True)
class Result:
    """What a run learned."""

    path: Path
    """The run directory, or the file of weights."""
    posterior: PosteriorSampler
    """Draws x ~ p(x | y)."""
    prior: PriorSampler | None
    """Draws x ~ p(x); None if the run trained no prior, or one file of weights was loaded."""
    student: PosteriorSampler | None
    """Draws x ~ p(x | y) by one evaluation; None if the run trained no student, or one file of
    weights was loaded."""
    channel: Channel
    """The channel as it was assumed or learned, its noise on the scale of [-1, 1]."""
    scale: Scale
    """The data's units: what is -1 and 1."""
    config: Mapping[str, Any]
    """The settings that the samplers were built from, in plain types."""
    format: Format
    """The form of the measurements in their files; of a benchmark, a float32 .npy file."""
    summary: Mapping[str, Any] | None
    """The run's summary.json; None if one file of weights was loaded."""
    round: int
    """The round whose reconstructions the posterior's network was trained on last."""

    def known_prior(self) -> PriorSampler:
        """Returns the prior, for what needs one.

        Raises:
            UserError: If there is none; it says why.
        """
        if self.prior is not None:
            return self.prior
        if self.path.is_file():
            raise UserError(f"{self.path} holds a posterior alone; give a run directory")
        final = (self.summary or {}).get("final")
        if isinstance(final, Mapping) and final.get("prior"):
            raise UserError(
                f"{weights_folder(self.path) / PRIOR} is missing, and the run has trained a "
                "prior; put the file back, or train again in a new run_dir"
            )
        raise UserError(
            f"{self.path} has no prior, as it was trained with prior=null; train one with it"
        )


def load(
    path: str | Path, *, device: str | torch.device | None = None, trust: Sequence[str] = ()
) -> Result:
    """Returns the result of a finished run.

    Arguments:
        path: The run directory, wherever it was copied to, the folder that it was exported to, or
            its posterior.safetensors.
        device: Where to sample, as in "cpu" or "cuda:0"; None for the GPU if there is one.
        trust: Packages besides diffem whose classes the run's settings may name.

    Raises:
        UserError: If the run is not finished, a file is damaged, another version wrote it, or its
            settings name a class that is not allowed.
    """
    path = Path(path).expanduser()
    if isinstance(trust, str):
        raise UserError(f'trust must be a list such as ["mypackage"], got {trust!r}')
    if path.name == PRIOR:
        raise UserError(f"{path} holds a prior alone; give the run directory, or {POSTERIOR}")
    if path.name == WEIGHTS and (path.parent / ".hydra").is_dir():
        raise UserError(f"{path} is a part of a run; give the run directory, {path.parent}")
    check_entries(path, writing=False)
    file = path if path.is_file() else weights_folder(path) / POSTERIOR
    if not file.is_file():
        state = "is not finished" if (path / ".hydra").is_dir() else "holds no run"
        raise UserError(f"{path} {state}: {file} is missing; give a finished run's directory")
    with default_float32():
        return restore(path, read_weights(file), device=device, trust=trust)


def restore(
    path: Path,
    weights: Weights,
    *,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    trust: Sequence[str] = (),
) -> Result:
    """Returns the result that a run's weights give.

    Arguments:
        path: The run directory, or the file of the posterior's weights.
        weights: The posterior's weights.
        config: Settings in place of those that the weights carry, such as another sampler.
        device: Where to sample; None for the GPU if there is one.
        trust: Packages besides diffem whose classes the settings may name.

    Raises:
        UserError: As `load`.
    """
    about = weights.about
    config = about.config if config is None else config
    package_folders(trust)  # that they are found, and can be imported
    try:
        check_settings(config)
        check_targets(config, trust=trust)
    except UserError as error:
        raise UserError(f"{path}: {error}; give another run") from error
    sampling = Sampling(
        checked_device(device),
        config["trainer"]["precision"],
        config["em"]["chunk_size"],
        config["seed"],
    )
    scale, channel = Scale(*about.scale), restore_channel(weights, config)
    denoiser = restore_denoiser(weights, config, path).to(sampling.device)
    posterior = build_posterior(config)(denoiser, channel)
    prior, student, summary = None, None, None
    if posterior.fits:
        posterior.fit(moments(weights, path))
    if path.is_dir():
        folder = weights_folder(path)
        for file in (folder / PRIOR, folder / STUDENT):
            if file.is_file() and (other := read_weights(file).about.round) != about.round:
                raise UserError(
                    f"{file} is of round {other}, and {POSTERIOR} beside it of round "
                    f"{about.round}: resume the run until it is finished, or give {POSTERIOR}"
                )
        prior = restore_prior(folder / PRIOR, config, scale, sampling)
        if (file := folder / STUDENT).is_file():
            student = restore(file, read_weights(file), device=device, trust=trust).posterior
        warn_of_more_rounds(path, about.round)
        summary = read_summary(path / "summary.json")
    return Result(
        path,
        PosteriorSampler(posterior, channel, scale, sampling),
        prior,
        student,
        channel,
        scale,
        config,
        held_format(about),
        summary,
        about.round,
    )


def warn_of_more_rounds(run_dir: Path, round: int) -> None:
    """Warns where a run went on after it was finished, and is not finished again.

    Arguments:
        run_dir: The run directory.
        round: The round that its weights are of.
    """
    rows = read_rows(run_dir)
    if rows and rows[-1]["round"] > round:
        warn(
            f"{run_dir} was given more rounds and has not finished them: its weights are of round "
            f"{round}, and round {rows[-1]['round']} is done; resume it to have those of the last "
            "round"
        )


def restore_channel(weights: Weights, config: Mapping[str, Any]) -> Channel:
    """Returns the channel as a run assumed or learned it, its noise on the scale of [-1, 1]."""
    about = weights.about
    channel = build_channel(config["corruption"], config["dataset"]["shape"])
    channel = channel.scaled(Scale(*about.scale).factor)
    if isinstance(channel, LinearChannel) and weights.recorded is not None:
        channel = channel.with_operator(Recorded(channel.forward_operator, weights.recorded))
    if about.estimates:
        known = channel.parameters if isinstance(channel, LinearChannel) else {}
        if unknown := about.estimates.keys() - known.keys():
            raise UserError(
                f"the channel has no {min(unknown)} that was learned; give another run"
            )
        assert isinstance(channel, LinearChannel)
        channel = channel.with_estimates(about.estimates)
    return channel


def restore_denoiser(weights: Weights, config: Mapping[str, Any], path: Path) -> Denoiser:
    """Returns the denoiser with its weights, on the CPU, for sampling alone.

    Raises:
        UserError: If the weights are of another network than the settings.
    """
    try:
        check_weights(config, weights.about.cond_channels, weights.state)
        with torch.random.fork_rng(devices=[]):  # the fresh weights that it draws are replaced
            denoiser = build_denoiser(config, cond_channels=weights.about.cond_channels)
        denoiser.load_state_dict(weights.state)
    except (UserError, RuntimeError) as error:
        why = error if isinstance(error, UserError) else OTHER_NETWORK
        raise UserError(f"{path}: {why}; give another run") from error
    return denoiser.requires_grad_(False).eval()


def restore_prior(
    file: Path, config: Mapping[str, Any], scale: Scale, sampling: Sampling
) -> PriorSampler | None:
    """Returns the prior of a file of weights; None if there is no such file."""
    if not file.is_file():
        return None
    weights = read_weights(file)
    denoiser = restore_denoiser(weights, config, file).to(sampling.device)
    about = weights.about
    prior = build_prior(config, denoiser, removed=about.removed)
    grey = len(prior.shape) == 3 and prior.shape[0] == 1 and not held_format(about).channel_axis
    return PriorSampler(prior, scale, sampling, channel_axis=not grey)


def held_format(about: Description) -> Format:
    """Returns the form of the measurements that a run learned from."""
    return BENCHMARK if about.format is None else Format(**about.format)


def weights_folder(path: Path) -> Path:
    """Returns the folder of weights of a run directory, or of an exported one, which is itself."""
    return path if (path / POSTERIOR).is_file() else path / WEIGHTS


def moments(weights: Weights, path: Path) -> Tensor:
    """Returns the reconstructions that a posterior takes moments of, (n, *shape).

    Arguments:
        weights: The posterior's weights; those that were exported carry them.
        path: The run directory, or the file of the weights.

    Raises:
        UserError: If the round that the run ended with is missing or damaged, or a file of weights
            that was not exported was given alone.
    """
    if weights.moments is not None:
        if weights.moments.shape[1:] != tuple(weights.about.config["dataset"]["shape"]):
            raise UserError(f"{path}: its reconstructions have another shape; give another run")
        return weights.moments
    if not path.is_dir():
        raise UserError(
            f"{path}: its posterior takes moments of the run's reconstructions; give the run "
            "directory"
        )
    return newest_round(weights.about, path).__getitems__(range(min(MOST, weights.about.size))).x


def newest_round(about: Description, run_dir: Path) -> Reconstructions:
    """Returns the reconstructions of the round that a run ended with.

    Raises:
        UserError: If the round is missing or damaged.
    """
    store = ReconstructionStore(
        run_dir / "reconstructions",
        size=about.size,
        chunk_size=about.config["em"]["chunk_size"],
    )
    if not store.is_intact(about.round):
        raise UserError(
            f"{store.damaged(about.round)} is missing or damaged; move "
            f"{run_dir / 'summary.json'} away, and `diffem train resume={quote(str(run_dir))}` "
            "draws the round again"
        )
    return store.open(about.round)


def read_summary(file: Path) -> dict[str, Any] | None:
    """Returns a run's summary; None if there is none yet.

    Raises:
        UserError: If the file is damaged.
    """
    if not file.is_file():
        return None
    advice = f"move it away, and `diffem train resume={quote(str(file.parent))}` writes it again"
    try:
        summary = from_json(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); {advice}") from error
    if not isinstance(summary, dict):
        raise UserError(f"{file} is damaged; {advice}")
    return summary


def checked_device(device: str | torch.device | None) -> torch.device:
    """Returns the device of a name; the GPU, if there is one, for None.

    Raises:
        UserError: If there is no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # which "meta", without numbers, does not have
    except Exception as error:  # each type of device raises another
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise UserError(
            f"device={device} is not on this machine ({reason}); give cpu, or cuda with a GPU"
        ) from error
    return chosen
