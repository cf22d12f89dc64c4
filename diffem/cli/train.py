"""Learns a posterior sampler and a prior from corrupted images: python train.py [GROUP=CHOICE …].

Reads top to bottom: compose, fit by EM, fit the prior, evaluate, report.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor

from diffem.cli import command
from diffem.cli.sweep import SubprocessJobs
from diffem.corruption import Corruption
from diffem.data.measurements import MeasurementSet, observe
from diffem.denoiser import Denoiser
from diffem.em import (
    DenoiserModule,
    EMLoop,
    EMSettings,
    Objective,
    ObjectiveFactory,
    ReconstructionDataModule,
    Unconditional,
)
from diffem.em.callbacks import CheckpointEachEpoch, MStepProgress, SignalHandlers
from diffem.em.rollback import fit
from diffem.logging.rounds import close
from diffem.metric import Evaluation
from diffem.posterior import PosteriorFactory, sample_prior
from diffem.report import RunReport
from diffem.runtime.progress import console
from diffem.runtime.rng import seeded
from diffem.storage.checkpoint import AtomicCheckpointIO
from diffem.storage.run_dir import check_space, config_hash, open_run
from diffem.storage.store import ReconstructionStore


@hydra.main(version_base="1.3", config_path=str(command.CONF), config_name="train")
@SubprocessJobs
def hydra_main(cfg: DictConfig) -> None:
    """Runs one experiment in its run directory."""
    with command.report_user_errors():
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Composes the parts, fits by EM, fits the prior, evaluates and reports."""
    command.check(cfg)
    settings: EMSettings = instantiate(cfg.em)
    evaluation: Evaluation = instantiate(cfg.metric)
    train, heldout = build_data(cfg)
    steps = settings.steps(len(train))
    make_objective: ObjectiveFactory = instantiate(cfg.method.objective, _convert_="all")
    objective = make_objective(train.corruption, train.measurement)
    module = build_module(cfg, objective, "m_step", steps=steps)
    make_posterior = build_posterior(cfg, module.denoiser, train.corruption)
    init, blind = instantiate(cfg.init), instantiate(cfg.blind)

    run_dir = open_run(cfg)
    check_space(run_dir, train.truth, rounds=settings.rounds_on_disk)
    store = ReconstructionStore(
        run_dir / "reconstructions",
        size=len(train),
        chunk_size=settings.chunk_size,
        config_hash=config_hash(cfg),
    )
    data = ReconstructionDataModule(train, store, settings, steps=steps, seed=cfg.seed)
    data.supervised = cfg.method.supervised
    if data.supervised:
        console.print("method.supervised=true: the M-step LEARNS FROM CLEAN IMAGES")
    report = RunReport(run_dir, command.about(cfg), evaluation, train, heldout, store=store)
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    em = EMLoop(
        init,
        make_posterior,
        settings=settings,
        blind=blind,
        checkpoint=checkpoint,
        on_round=report.on_round,
    )
    loggers = build_loggers(cfg)
    make_trainer = partial(build_trainer, cfg, [em], loggers, epochs=settings.rounds * data.epochs)
    trainer = fit(make_trainer, module, data, checkpoint)

    prior = None
    if cfg.prior is not None:
        prior = module if objective.learns_prior else fit_prior(cfg, data, trainer.loggers)
    if trainer.is_global_zero:
        evaluate(cfg, module, prior, data, make_posterior, report)


def build_data(cfg: DictConfig) -> tuple[MeasurementSet, MeasurementSet]:
    """Returns the training and the held-out measurements, under the channel as it is believed."""
    channel, believed = (
        instantiate(node, shape=cfg.dataset.shape, _convert_="all")
        for node in (cfg.corruption, command.believed(cfg))
    )
    clean = instantiate(cfg.dataset, _convert_="all").load()
    train, heldout = (
        observe(x, channel, seed=cfg.seed, split=split, believed=believed)
        for split, x in zip(clean._fields, clean, strict=True)
    )
    return train, heldout


def build_module(
    cfg: DictConfig, objective: Objective, phase: str, *, steps: int
) -> DenoiserModule:
    """Returns the module of the denoiser that an objective trains."""
    with seeded(cfg.seed, "weights", phase):
        network = instantiate(
            cfg.network,
            shape=cfg.dataset.shape,
            cond_channels=objective.cond_channels,
            _convert_="all",
        )
    denoiser = Denoiser(network, instantiate(cfg.schedule))
    m_step = instantiate(cfg.m_step, steps=steps, _convert_="all")
    return DenoiserModule(denoiser, objective, m_step, phase=phase, seed=cfg.seed)


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """Returns the loggers, which are told the configuration without its secrets."""
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    for logger in loggers:
        logger.log_hyperparams(command.shown(cfg))
    return loggers


def build_posterior(
    cfg: DictConfig, denoiser: Denoiser, corruption: Corruption
) -> PosteriorFactory:
    """Returns the factory of the E-step's posterior, once tried: its mistakes are told early."""
    make_posterior: PosteriorFactory = instantiate(
        cfg.method.posterior, sampler=instantiate(cfg.sampler), _convert_="all"
    )
    make_posterior(denoiser, corruption, torch.zeros(2, *cfg.dataset.shape))
    return make_posterior


def build_trainer(
    cfg: DictConfig, callbacks: Sequence[Callback], loggers: Sequence[Logger], *, epochs: int
) -> Trainer:
    """Returns a trainer whose checkpoints are the callbacks' to save."""
    return instantiate(
        cfg.trainer,
        max_epochs=epochs,
        logger=loggers,
        callbacks=[SignalHandlers(), MStepProgress(), *callbacks],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the datamodule's own sampler shares the batches out
        reload_dataloaders_every_n_epochs=1,
    )


def fit_prior(
    cfg: DictConfig, data: ReconstructionDataModule, loggers: Sequence[Logger]
) -> DenoiserModule:
    """Trains an unconditional denoiser on the last reconstructions."""
    objective = Unconditional(data.observed.corruption, data.observed.measurement)
    module = build_module(cfg, objective, "prior", steps=cfg.prior.steps)
    last = ReconstructionDataModule(
        data.observed, data.store, instantiate(cfg.em), steps=cfg.prior.steps, seed=cfg.seed
    )
    last.round, last.due = data.round, False
    checkpoint = Path(cfg.run_dir) / "checkpoints" / "prior.ckpt"
    make_trainer = partial(
        build_trainer, cfg, [CheckpointEachEpoch(checkpoint)], loggers, epochs=last.epochs
    )
    fit(make_trainer, module, last, checkpoint)
    return module


def evaluate(
    cfg: DictConfig,
    module: DenoiserModule,
    prior: DenoiserModule | None,
    data: ReconstructionDataModule,
    make_posterior: PosteriorFactory,
    report: RunReport,
) -> None:
    """Evaluates the final posterior and the prior, and writes the report."""
    device, folder = module.trainer.strategy.root_device, report.run_dir / "checkpoints"
    module.export(folder / "posterior.safetensors")
    if prior is not None:
        prior.export(folder / "prior.safetensors")
    with module.to(device).averaged() as denoiser:
        draw_prior = None if prior is None else partial(sample, cfg, prior)
        draw = make_posterior(denoiser, data.observed.corruption, data.sample())
        report.finish(draw, draw_prior, device)
    close(module.trainer.loggers)


def sample(cfg: DictConfig, prior: DenoiserModule, n: int) -> Tensor:
    """Returns n samples of the prior, (n, *shape), on the CPU."""
    device = prior.to(prior.trainer.strategy.root_device).device
    with prior.averaged() as denoiser, seeded(cfg.seed, "prior samples", device=device):
        shape = (n, *cfg.dataset.shape)
        learned = prior.objective.prior(denoiser, n)
        return sample_prior(learned, shape, instantiate(cfg.sampler), device=prior.device)


def main() -> None:
    """Runs the command with this process's arguments."""
    command.run_command(hydra_main)
