"""The parts of a run that are built from its configuration: module, posterior, student, trainer.

What does not fit together is refused here, before anything is written.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from diffem.cli.checks import check_m_step
from diffem.cli.compose import is_given, public_config
from diffem.config.build import build
from diffem.corruption import Channel
from diffem.denoiser import Denoiser
from diffem.em import (
    Balance,
    DenoiserModule,
    DiffInstruct,
    MStep,
    Objective,
    PosteriorFactory,
)
from diffem.em.callbacks import MStepProgress, SignalHandlers
from diffem.em.checkpoint_io import AtomicCheckpointIO
from diffem.em.objective import Recorrupted
from diffem.posterior import Conditional
from diffem.posterior.one_step import start_time
from diffem.posterior.posterior import DenoiserPosterior
from diffem.result import build_denoiser, build_posterior
from diffem.runtime.device import device_of, precision_of
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded


def build_module(
    cfg: DictConfig, objective: Objective, channel: Channel, stage: str
) -> DenoiserModule:
    """Returns the module of the denoiser that an objective trains.

    Arguments:
        cfg: The configuration.
        objective: The objective.
        channel: The channel.
        stage: What the network's first weights depend on beside the seed: "m_step" of EM, or
            "prior".

    Raises:
        UserError: If a setting has no effect under the objective or on the images.
    """
    with seeded(cfg.seed, "weights", stage):
        denoiser = build_denoiser(cfg, cond_channels=objective.cond_channels(channel))
    balance = build(cfg.balance, "balance") if stage == "m_step" else Balance()
    m_step: MStep = build(
        cfg.m_step, "m_step", memory=build(cfg.memory, "memory"), balance=balance
    )
    check_m_step(cfg, m_step, objective, channel)
    module = DenoiserModule(denoiser, objective, m_step, stage=stage, seed=cfg.seed)
    if cfg.compile:
        check_compiles(cfg.trainer.accelerator)
        module.compile_network()
    return module


@cache
def check_compiles(accelerator: str) -> None:
    """Compiles a small function, so that a machine that cannot is refused before all else.

    Arguments:
        accelerator: `trainer.accelerator`.

    Raises:
        UserError: If torch.compile fails.
    """
    with compile_errors(True):
        torch.compile(torch.sin)(torch.zeros(2, device=device_of(accelerator)))


def check_posterior(cfg: DictConfig, denoiser: Denoiser, channel: Channel) -> PosteriorFactory:
    """Returns what makes the E-step's posterior, after it was built once.

    Raises:
        UserError: If the method, the sampler and the channel do not fit together.
    """
    make = build_posterior(cfg)
    posterior = make(denoiser, channel)  # so that bad settings fail before anything is written
    if not posterior.samplers and cfg.prior is None and is_given("sampler"):
        raise UserError(
            f"sampler has no effect: method.posterior={type(posterior).__name__} draws without "
            "one, and prior=null; leave it out"
        )
    if cfg.em.warm_start is not None and not posterior.redraws:
        raise UserError(
            f"em.warm_start={cfg.em.warm_start} needs a posterior that draws from earlier draws, "
            f"and method.posterior={type(posterior).__name__} draws from noise alone; set it to "
            "null or choose method=diffem"
        )
    return make


def build_student(
    cfg: DictConfig, posterior: DenoiserPosterior, objective: Objective
) -> DiffInstruct | None:
    """Returns how the student is distilled; None if there is to be none.

    Raises:
        UserError: If the denoiser is not given y, so that there is no teacher, or the student
            starts from a level that the noise schedule does not reach.
    """
    if cfg.student is None:
        return None
    student: DiffInstruct = build(cfg.student, "student")
    start_time(posterior.denoiser.schedule, student.sigma)
    if not isinstance(posterior, Conditional) or type(objective) is not Recorrupted:
        raise UserError(
            f"student=diff_instruct needs a method whose denoiser is given y, and method.posterior"
            f"={type(posterior).__name__} guides one of p(x); choose method=diffem, or "
            "student=none"
        )
    return student


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """Returns the loggers, with the configuration without its secrets as hyperparameters.

    The names of the choices are among them, as `choices`, for runs to be grouped by.
    """
    chosen = HydraConfig.get().runtime.choices
    choices = {str(k): v for k, v in chosen.items() if not str(k).startswith("hydra/") and v}
    loggers = [build(logger, f"logger.{name}") for name, logger in cfg.logger.items()]
    for logger in loggers:
        logger.log_hyperparams({**public_config(cfg), "choices": choices})
    return loggers


def build_trainer(
    cfg: DictConfig, callbacks: Sequence[Callback], loggers: Sequence[Logger], *, epochs: int
) -> Trainer:
    """Returns a trainer whose checkpoints are the callbacks' to save."""
    settings = cfg.trainer.copy()
    settings.precision = precision_of(settings.precision, settings.accelerator)
    return build(
        settings,
        "trainer",
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


@contextmanager
def compile_errors(compiled: bool) -> Iterator[None]:
    """Opens a scope in which a network that cannot be compiled is a UserError of one sentence."""
    if not compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"compile=true: torch.compile fails on this machine ({reason}); install what it needs "
            "(a C++ compiler, and Triton for a GPU), or start in a new run_dir with compile=false"
        ) from error
