"""The files of weights that a run writes: posterior, prior, student, and the best round's."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffem.cli.compose import assumed_corruption, public_config
from diffem.corruption import LinearChannel
from diffem.corruption.array_file import array_files, carried, read_array
from diffem.em import DenoiserModule, ReconstructionDataModule, Round, StudentModule
from diffem.report.summary import BEST
from diffem.result import Description, write_weights
from diffem.result.result import MOST, POSTERIOR, PRIOR, STUDENT

ONE_STEP = "diffem.posterior.OneStepSampler"  # of a student


@dataclass(frozen=True)
class WeightFiles:
    """Writes a run's averaged weights, each with all that sampling needs."""

    cfg: DictConfig
    """The configuration."""
    data: ReconstructionDataModule
    """The reconstructions that were trained on, and the measurements."""
    format: Mapping[str, Any] | None
    """The format of the measurements' files; None for a benchmark."""

    def write_result(self, module: DenoiserModule, prior: DenoiserModule | None) -> None:
        """Writes posterior and prior.

        Arguments:
            module: The module of the posterior's denoiser.
            prior: That of the prior; None if there is none.
        """
        about = self._describe(module)
        self._write(POSTERIOR, module, about)
        if prior is not None:
            channel = self.data.measurements.channel
            about = replace(
                about,
                cond_channels=prior.objective.cond_channels(channel),
                removed=prior.objective.prior_removed(channel),
            )
            self._write(PRIOR, prior, about)

    def write_student(self, module: StudentModule) -> None:
        """Writes a student, which draws by a sampler of its own."""
        about = self._describe(module)
        sampler = {"_target_": ONE_STEP, "_partial_": True, "sigma": module.settings.sigma}
        sampler["bounds"] = about.config["sampler"].get("bounds")
        self._write(STUDENT, module, replace(about, config={**about.config, "sampler": sampler}))

    def write_best(self, module: DenoiserModule, round: Round) -> None:
        """Writes the denoiser that drew the best round so far.

        Arguments:
            module: The module of the posterior's denoiser.
            round: The round, which was just committed.
        """
        moments = None
        if round.posterior.fits:  # so that the file can be loaded when the round is gone
            first = range(min(MOST, len(self.data.given)))
            moments = self.data.store.open(round.number).__getitems__(first).x
        self._write(BEST, module, self._describe(module), moments=moments)

    def _describe(self, module: DenoiserModule) -> Description:
        """Returns what is written with a denoiser of p(x | y)."""
        channel, given = self.data.measurements.channel, self.data.given
        return Description(
            sampling_config(self.cfg),
            module.objective.cond_channels(channel),
            (given.scale.low, given.scale.high),
            format=self.format,
            estimates={name: channel.known(name) for name in channel.learn}
            if isinstance(channel, LinearChannel)
            else {},
            round=self.data.state.round,
            size=len(given),
        )

    def _write(
        self,
        name: str,
        module: DenoiserModule,
        about: Description,
        *,
        moments: Tensor | None = None,
    ) -> None:
        path = Path(self.cfg.run_dir) / "checkpoints" / name
        weights, channel = module.average.state_dict(), self.data.measurements.channel
        write_weights(path, weights, about, channel, moments=moments)


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
