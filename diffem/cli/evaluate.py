"""Evaluates a finished run under other settings: `diffem evaluate RUN [OVERRIDE …]`.

    diffem evaluate runs/mine sampler=heun sampler.steps=25
    diffem evaluate runs/mine --repeats 2 metric=classifier

Writes evaluation_001.json (or the next number) beside the run's summary, and never over anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from diffem.cli.arguments import EVALUATED, parse_evaluate
from diffem.cli.compose import check_values, compose_config, compose_run, describe_run
from diffem.cli.composition import override_key
from diffem.cli.data import build_data
from diffem.cli.errors import report_user_errors
from diffem.cli.launch import quiet
from diffem.cli.weights import sampling_config
from diffem.config.build import build
from diffem.corruption import Measurement
from diffem.corruption.array_file import KEYS
from diffem.data import ImageDataset, MeasurementFiles
from diffem.data.measurements import MeasurementSet, simulate_measurements
from diffem.metric import Evaluation
from diffem.report import RunReport
from diffem.result import Weights, build_channel, read_weights, restore
from diffem.result.result import POSTERIOR
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.runtime.ranges import check
from diffem.storage.entries import COPY, check_entries, check_writable
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.run_dir import resumed_arguments

MOVES_HELDOUT = {"dataset.heldout", "dataset.limit", "dataset.patch", "dataset.train"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates a run.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_evaluate(arguments)
    with report_user_errors(), quiet():
        check("--repeats", chosen.repeats)
        evaluate_run(chosen.run, chosen.overrides, repeats=chosen.repeats, device=chosen.device)


def evaluate_run(
    run_dir: Path, overrides: Sequence[str], *, repeats: int = 1, device: str | None = None
) -> None:
    """Evaluates a run under overrides, and writes the evaluation into its directory.

    Arguments:
        run_dir: The directory of a finished run.
        overrides: Overrides of the run's settings, as on the command line of train.py.
        repeats: How often each held-out image of a benchmark is measured.
        device: Where to sample; None for the GPU if there is one.

    Raises:
        UserError: If the run is not finished or its directory is read-only, or an override has no
            effect on a finished run.
    """
    check_entries(run_dir, writing=True)
    check_finished(run_dir)
    check_writable(run_dir, COPY)
    for override in overrides:
        key = override_key(override)
        if not any(key == name or key.startswith(f"{name}.") for name in EVALUATED):
            raise UserError(
                f"{override} has no effect on a finished run; evaluate takes settings of "
                f"{', '.join(EVALUATED)}"
            )
    weights = read_weights(run_dir / "checkpoints" / POSTERIOR)
    cfg = compose_finished(run_dir, weights, overrides)
    keys = {override_key(override) for override in overrides}
    if (moved := keys & MOVES_HELDOUT) and not keys & {"dataset", "dataset.path"}:
        warn(
            f"{min(moved)} changes which measurements are held out: the run may have been trained "
            "on some of those that are evaluated"
        )
    source = build(cfg.dataset, "dataset")
    train, heldout = build_finished_data(cfg, source, weights)
    if repeats > 1:
        heldout = repeated(cfg, source, heldout, repeats)
    evaluation: Evaluation = build(cfg.metric, "metric")
    report = RunReport(
        run_dir,
        describe_run(cfg),
        evaluation.fitting(
            train.channel, truth=train.truth is not None, train=len(train), heldout=len(heldout)
        ),
        train,
        heldout,
        store=ReconstructionStore(
            run_dir / "reconstructions",
            size=weights.about.size,
            chunk_size=cfg.em.chunk_size,
        ),
    )
    result = restore(
        run_dir, weights, config=sampling_config(cfg), device=device, trust=list(cfg.trust)
    )
    learned = bool(weights.about.estimates)
    sampling = result.posterior.sampling
    with torch.no_grad(), sampling.context():
        report.evaluate_again(
            result.posterior.posterior,
            result.channel if learned else train.channel,
            None if result.prior is None else result.prior.draw,
            sampling.device,
            about={"overrides": list(overrides), "repeats": repeats, "measurements": len(heldout)},
        )


def check_finished(run_dir: Path) -> None:
    """Refuses what is no directory with the weights that a run ends with.

    Raises:
        UserError: If it is a file, or they are missing.
    """
    if run_dir.is_file():
        raise UserError(f"{run_dir} is a file; give a run directory, as in runs/mine")
    file = run_dir / "checkpoints" / POSTERIOR
    if not file.is_file():
        raise UserError(f"{run_dir} holds no finished run: {file} is missing; finish it first")


def compose_finished(run_dir: Path, weights: Weights, overrides: Sequence[str] = ()) -> DictConfig:
    """Returns the configuration of a finished run under overrides.

    Arguments:
        run_dir: Its directory.
        weights: The posterior's weights.
        overrides: Overrides of the run's settings.

    Raises:
        UserError: If the directory holds no settings, or an override is refused.
    """
    # The run's own overrides, those given in place of them, and then its directory.
    *arguments, _, _ = resumed_arguments([*overrides, f"resume={run_dir}"])
    cfg = compose_run(without_lost_keys(arguments, overrides), run_dir.absolute())
    if cfg.dataset._target_ == "diffem.data.MeasurementFiles":
        if given := [o for o in overrides if override_key(o) == "dataset.range"]:
            raise UserError(
                f"{given[0]} has no effect on a finished run, which works in the range of its "
                f"training, {list(weights.about.scale)}; leave it out"
            )
        cfg.dataset.range = list(weights.about.scale)
    keep_files(cfg, weights.about.config["corruption"])
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = weights.about.config["trainer"]["precision"]
    check_values(cfg)
    return cfg


def build_finished_data(
    cfg: DictConfig, source: ImageDataset | MeasurementFiles, weights: Weights
) -> tuple[MeasurementSet, MeasurementSet]:
    """Returns a finished run's training and held-out measurements, as `build_data` does.

    Arguments:
        cfg: The run's configuration; its dataset.shape is set to that of the files.
        source: The data set of `dataset`.
        weights: The posterior's weights.

    Raises:
        UserError: If the data cannot be read, or are of images of another shape than the run's.
    """
    train, heldout = build_data(cfg, source)
    own = list(weights.about.config["dataset"]["shape"])
    if (shape := list(train.channel.shape)) != own:
        raise UserError(
            f"dataset: the measurements are of images {shape}, and the run was trained on {own}; "
            "give measurements of that shape"
        )
    return train, heldout


def keep_files(cfg: DictConfig, carried: Mapping[str, Any]) -> None:
    """Puts what a run's weights carry of a corruption's files in place of their paths.

    The files may be gone.

    Arguments:
        cfg: The run's configuration, which is changed.
        carried: The corruption, as it was assumed, that the weights carry.
    """
    if any(key in cfg.assumed for key in (*KEYS, "parts")):
        return  # what the weights carry is not what simulates the measurements
    plain = OmegaConf.to_container(cfg.corruption, resolve=False)
    assert isinstance(plain, dict)
    pairs = zip(
        (plain, *(plain.get("parts") or ())), (carried, *(carried.get("parts") or ())), strict=True
    )
    for part, own in pairs:
        for key in KEYS:
            if isinstance(part.get(key), str):
                part[key] = own[key]
    cfg.corruption = plain


def without_lost_keys(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Returns a run's settings without those of groups for which another choice was given.

    Of a sampler and a metric those stay that the new choice has too, such as `sampler.steps`.

    Arguments:
        arguments: The run's own overrides and those given in place of them.
        overrides: Those given.
    """
    kept, absent = list(arguments), object()
    for choice in overrides:
        group = choice.partition("=")[0]
        if group in ("dataset", "metric", "sampler"):
            chosen = compose_config([choice])
            kept = [
                argument
                for argument in kept
                if argument in overrides
                or not (key := override_key(argument)).startswith(f"{group}.")
                or (
                    group != "dataset"
                    and OmegaConf.select(chosen, key, default=absent) is not absent
                )
            ]
    return kept


def repeated(
    cfg: DictConfig,
    source: ImageDataset | MeasurementFiles,
    heldout: MeasurementSet,
    repeats: int,
) -> MeasurementSet:
    """Returns held-out images of a benchmark, each measured several times.

    The first measurements are those of the run.

    Raises:
        UserError: If the measurements are the user's own, which were measured once.
    """
    if isinstance(source, MeasurementFiles):
        raise UserError(
            f"--repeats={repeats} needs a benchmark, whose measurements are simulated; these were "
            "measured once, leave it out"
        )
    clean = heldout.known_truth("--repeats")
    channel = build_channel(cfg.corruption, cfg.dataset.shape)
    sets = [heldout] + [
        simulate_measurements(
            clean, channel, seed=cfg.seed, split=f"heldout {r}", assumed=heldout.channel
        )
        for r in range(1, repeats)
    ]
    parts = [part.select(slice(None)) for part in sets]
    measurement = Measurement(*(torch.cat(field) for field in zip(*parts, strict=True)))
    return replace(
        heldout, source=measurement, truth=clean.repeat(repeats, *(1,) * (clean.ndim - 1))
    )
