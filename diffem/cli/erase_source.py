"""The finished run that measurements are withdrawn from."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from diffem.cli.evaluate import build_finished_data, check_finished, compose_finished
from diffem.config.build import build
from diffem.data.measurements import MeasurementSet
from diffem.data.withdrawn import read_names, rows_named, withdraw
from diffem.denoiser import Denoiser
from diffem.em.erase import Erasing, Rows, audit_figures
from diffem.posterior.posterior import DenoiserPosterior
from diffem.report.record import is_sound
from diffem.result import Description, PosteriorSampler, Result, read_weights, restore
from diffem.result.result import POSTERIOR
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator
from diffem.storage.entries import check_entries

MOST = 512  # held-out measurements that are used, and withdrawn ones that are audited
FEW = 32  # held-out measurements at least: one half is the target, the other the audit's


@dataclass(frozen=True)
class Source:
    """The run that measurements are withdrawn from."""

    path: Path
    """Its directory."""
    cfg: DictConfig
    """Its configuration."""
    result: Result
    """What it learned."""
    about: Description
    """What its weights say of it."""
    train: MeasurementSet
    """Its training measurements, under the channel as it was assumed or learned."""
    target: MeasurementSet
    """Held-out measurements, none of them withdrawn, whose loss the withdrawn ones are to have."""
    unseen: MeasurementSet
    """Others of them, which the audit compares with the withdrawn ones."""
    names: list[str]
    """The names of what is withdrawn."""
    rows: torch.Tensor
    """Their rows among the training measurements."""
    held_out: int
    """How many held-out measurements are among them, from which nothing was learned."""
    optimizer_steps: int
    """The optimiser steps of its M-steps."""
    nfe: int
    """The network function evaluations of its E- and M-steps."""

    @classmethod
    def of(cls, path: Path, file: Path, *, device: str | None, trust: Sequence[str]) -> "Source":
        """Reads a run and which of its measurements are withdrawn.

        Arguments:
            path: The run directory.
            file: The text file that names the measurements, one a line.
            device: Where to sample; None for the GPU if there is one.
            trust: Packages besides diffem whose classes the run's settings may name.

        Raises:
            UserError: If the run is not finished, or nothing can be erased from it.
        """
        check_entries(path, writing=False)
        check_finished(path)
        weights = read_weights(path / "checkpoints" / POSTERIOR)
        names = read_names(file, "--rows")
        cfg = compose_finished(path, weights, trusted(trust))
        if cfg.method.supervised:
            raise UserError(
                "method.supervised=true learns from clean images, which erase does not withdraw; "
                "train without them"
            )
        result = restore(path, weights, device=device, trust=trust)
        train, heldout = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
        rows = rows_named(train, names)
        _, unseen = withdraw(train, heldout, names, key="--rows")
        if not len(rows):
            raise UserError(f"--rows={file} names held-out measurements alone, and nothing "
                            "was learned from them; leave them out of the evaluation")  # fmt: skip
        if len(unseen) < FEW:
            raise UserError(f"{path} has {len(unseen)} held-out measurements, and erase needs "
                            f"{FEW}; train again without the rows")  # fmt: skip
        if (path / "measurements.npz").is_file():
            raise UserError(f"{path} holds its measurements itself, as diffem.fit keeps them; "
                            "call diffem.fit again without the rows")  # fmt: skip
        summary = result.summary or {}
        last = summary["rounds"][-1] if summary.get("rounds") and is_sound(summary) else {}
        if not (last.get("nfe") and last.get("optimizer_steps")):
            raise UserError(f"{path / 'summary.json'} does not say what the run cost; give a "
                            "finished run")  # fmt: skip
        own = result.channel if weights.about.estimates else train.channel
        order = torch.randperm(len(unseen), generator=generator(cfg.seed, "erase halves"))
        target, audit = (part(unseen.under(own), half) for half in order[:MOST].chunk(2))
        return cls(
            path, cfg, result, weights.about, train.under(own), target, audit, names, rows,
            len(heldout) - len(unseen), last["optimizer_steps"], last["nfe"],
        )  # fmt: skip

    @property
    def size(self) -> int:
        """The bytes that a run without the rows takes on the disk: its weights and a round."""
        files = (self.path / "checkpoints").glob("*.safetensors")
        left = len(self.train) - len(self.rows)
        images = 4 * left * math.prod(self.train.channel.shape)
        return sum(file.stat().st_size for file in files) + images

    def drawn(self, denoiser: Denoiser, measurements: MeasurementSet, name: str) -> Rows:
        """Returns measurements with reconstructions that the posterior of a denoiser draws."""
        own = self.result.posterior
        assert isinstance(own.posterior, DenoiserPosterior)
        posterior = copy(own.posterior)
        posterior.denoiser = denoiser
        sampler = PosteriorSampler(posterior, own.channel, own.scale, own.sampling)
        x = torch.cat([x[0] for x in sampler.draw(measurements, 1, "erase", name)])
        return Rows(x, measurements)

    def audit(self, erasing: Erasing, denoiser: Denoiser) -> dict[str, Any]:
        """Returns whether the loss of a denoiser tells withdrawn from held-out measurements.

        The loss is on reconstructions that the denoiser itself draws, with their measurements: on
        those of another denoiser it would be high for that reason alone.
        """
        parts = {"members": part(self.train, self.rows[:MOST]), "unseen": self.unseen}
        with self.result.posterior.sampling.context():
            members, unseen = (
                erasing.row_losses(denoiser, self.drawn(denoiser, each, name), seed=self.cfg.seed)
                for name, each in parts.items()
            )
        return audit_figures(members, unseen)


def part(measurements: MeasurementSet, rows: torch.Tensor) -> MeasurementSet:
    """Returns some measurements, read into memory."""
    return MeasurementSet(measurements.select(rows), measurements.channel)


def trusted(packages: Sequence[str]) -> list[str]:
    """Returns the override that trusts packages; none for no package."""
    return [f"trust=[{','.join(packages)}]"] if packages else []
