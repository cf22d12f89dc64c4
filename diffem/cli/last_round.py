"""What is trained on the reconstructions of EM's last round: the prior, and the student."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from diffem.cli.parts import build_module, build_trainer
from diffem.em import (
    CheckpointEachEpoch,
    DenoiserModule,
    DiffInstruct,
    EMState,
    ReconstructionDataModule,
    Replay,
    StudentModule,
)
from diffem.em.objective import Recorrupted
from diffem.em.rollback import fit


def fit_prior(
    cfg: DictConfig, em: DenoiserModule, data: ReconstructionDataModule
) -> DenoiserModule:
    """Trains an unconditional denoiser on the last reconstructions.

    Arguments:
        cfg: The configuration.
        em: The module that EM has trained: the prior's objective is that which its own names, and
            the prior learns from the images in its memory too.
        data: The reconstructions.
    """
    module = build_module(cfg, em.objective.prior(), data.measurements.channel, "prior")
    if module.m_step.clean is not None:
        module.m_step.clean.load(data.given)
    if isinstance(em.m_step.memory, Replay):
        module.m_step = replace(module.m_step, memory=em.m_step.memory)
    fit_to_last_round(cfg, module, data, em.trainer.loggers, steps=cfg.prior.steps)
    return module


def fit_student(
    cfg: DictConfig,
    student: DiffInstruct,
    em: DenoiserModule,
    data: ReconstructionDataModule,
) -> tuple[StudentModule, int]:
    """Distils the posterior's averaged denoiser, on the last reconstructions measured afresh.

    Arguments:
        cfg: The configuration.
        student: How it is distilled.
        em: The module that EM has trained.
        data: The reconstructions.

    Returns:
        The module of the student, and the network function evaluations that it took.
    """
    assert isinstance(em.objective, Recorrupted)
    module = StudentModule(em.average, em.objective, em.m_step, settings=student, seed=cfg.seed)
    if cfg.compile:
        module.compile_network()
    state = fit_to_last_round(cfg, module, data, em.trainer.loggers, steps=student.steps)
    return module, state.nfe


def fit_to_last_round(
    cfg: DictConfig,
    module: DenoiserModule,
    data: ReconstructionDataModule,
    loggers: Sequence[Logger],
    *,
    steps: int,
) -> EMState:
    """Trains a module on the last reconstructions, which stay as they are.

    Arguments:
        cfg: The configuration.
        module: The module.
        data: The reconstructions, and the measurements under the channel that was learned.
        loggers: The loggers of EM.
        steps: The number of optimiser steps.

    Returns:
        The state at its end, which has counted its network function evaluations.
    """
    state = EMState(round=data.state.round, e_step_pending=False)
    settings = replace(data.settings, steps_per_round=steps, epochs_per_round=None, restart=True)
    last = ReconstructionDataModule(
        data.measurements, data.store, settings, state=state, seed=cfg.seed
    )
    checkpoint = Path(cfg.run_dir) / "checkpoints" / f"{module.stage}.ckpt"
    callbacks = [CheckpointEachEpoch(state, checkpoint)]
    fit(
        partial(build_trainer, cfg, callbacks, loggers, epochs=last.epochs),
        module,
        last,
        checkpoint,
    )
    return state
