"""The files of weights that a run writes: posterior, prior, student, and the best round's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffem.cli.compose import assumed_corruption, public_config
from diffem.corruption import LinearChannel
from diffem.corruption.array_file import array_files, carried, read_array
from diffem.em import DenoiserModule, ReconstructionDataModule, Round, StudentModule
from diffem.report.summary import BEST
from diffem.result import Description, write_weights
from diffem.result.result import MOST, POSTERIOR, PRIOR, STUDENT

ONE_STEP = "diffem.posterior.OneStepSampler"  # of a student


def write_result(
    cfg: DictConfig,
    module: DenoiserModule,
    prior: DenoiserModule | None,
    data: ReconstructionDataModule,
    *,
    files: Mapping[str, Any] | None,
) -> None:
    """Writes the averaged weights of posterior and prior, with all that sampling needs.

    Arguments:
        cfg: The configuration.
        module: The module of the posterior's denoiser.
        prior: That of the prior; None if there is none.
        data: The reconstructions that they were trained on, and the measurements.
        files: The format of the measurements' files; None for a benchmark.
    """
    folder, channel = Path(cfg.run_dir) / "checkpoints", data.measurements.channel
    about = describe_weights(cfg, module, data, files=files)
    write_weights(folder / POSTERIOR, module.average.state_dict(), about, channel)
    if prior is not None:
        about = replace(
            about,
            cond_channels=prior.objective.cond_channels(channel),
            removed=prior.objective.prior_removed(channel),
        )
        write_weights(folder / PRIOR, prior.average.state_dict(), about, channel)


def write_student(
    cfg: DictConfig,
    module: StudentModule,
    data: ReconstructionDataModule,
    *,
    files: Mapping[str, Any] | None,
) -> None:
    """Writes the averaged weights of a student, which draws by a sampler of its own.

    Arguments:
        cfg: The configuration.
        module: The student's module.
        data: The reconstructions that it was trained on, and the measurements.
        files: As for `write_result`.
    """
    about = describe_weights(cfg, module, data, files=files)
    sampler = {"_target_": ONE_STEP, "_partial_": True, "sigma": module.settings.sigma}
    about = replace(about, config={**about.config, "sampler": sampler})
    path = Path(cfg.run_dir) / "checkpoints" / STUDENT
    write_weights(path, module.average.state_dict(), about, data.measurements.channel)


def write_best(
    cfg: DictConfig,
    module: DenoiserModule,
    data: ReconstructionDataModule,
    round: Round,
    *,
    files: Mapping[str, Any] | None,
) -> None:
    """Writes the averaged weights that drew the best round so far.

    Arguments:
        cfg: The configuration.
        module: The module of the posterior's denoiser.
        data: The reconstructions, and the measurements.
        round: The round, which was just committed.
        files: As for `write_result`.
    """
    moments = None
    if round.posterior.fits:  # so that the file can be loaded when the round is gone
        first = range(min(MOST, len(data.given)))
        moments = data.store.open(round.number).__getitems__(first).x
    write_weights(
        Path(cfg.run_dir) / "checkpoints" / BEST,
        module.average.state_dict(),
        describe_weights(cfg, module, data, files=files),
        data.measurements.channel,
        moments=moments,
    )


def describe_weights(
    cfg: DictConfig,
    module: DenoiserModule,
    data: ReconstructionDataModule,
    *,
    files: Mapping[str, Any] | None,
) -> Description:
    """Returns what is written with the posterior's weights; arguments as for `write_result`."""
    channel = data.measurements.channel
    return Description(
        sampling_config(cfg),
        module.objective.cond_channels(channel),
        (data.given.scale.low, data.given.scale.high),
        format=files,
        estimates={name: channel.known(name) for name in channel.learn}
        if isinstance(channel, LinearChannel)
        else {},
        round=data.state.round,
        size=len(data.given),
    )


def sampling_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns the settings that sampling needs, in plain types, without paths and secrets.

    Their keys are those of the configuration; `corruption` is as the method assumes it.
    """
    assumed = OmegaConf.merge(cfg, {"corruption": assumed_corruption(cfg)})
    assert isinstance(assumed, DictConfig)
    plain = public_config(assumed)
    for part, key in array_files(plain["corruption"]):  # files may not be where the weights go
        part[key] = carried(read_array(key, part[key]))
    return {
        "dataset": {"shape": plain["dataset"]["shape"]},
        "em": {"chunk_size": plain["em"]["chunk_size"]},
        "method": {"posterior": plain["method"]["posterior"]},
        "trainer": {"precision": plain["trainer"]["precision"]},
        **{key: plain[key] for key in ("corruption", "network", "sampler", "schedule", "seed")},
    }
