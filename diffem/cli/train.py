"""Learns a posterior sampler and a prior from corrupted images: the run of `python train.py`.

Reads top to bottom: build the parts, fit by EM, fit the prior, evaluate, report.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffem.cli.compose import assumed_corruption, describe_run, is_given, public_config
from diffem.cli.data import build_data
from diffem.cli.memory import FILE, earlier_runs, open_earlier, recall
from diffem.cli.processes import expect_processes
from diffem.config.build import build
from diffem.corruption import Channel, LinearChannel, LinearGaussianChannel
from diffem.corruption.array_file import array_files, carried, read_array
from diffem.data import MeasurementFiles
from diffem.data.digest import data_digest
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Denoiser
from diffem.em import (
    Augment,
    Balance,
    CheckpointEachEpoch,
    DenoiserModule,
    DiffInstruct,
    EMLoop,
    EMSettings,
    EMState,
    Guard,
    Memory,
    MStep,
    Objective,
    PosteriorFactory,
    ReconstructionDataModule,
    Replay,
    Round,
    StudentModule,
)
from diffem.em.callbacks import MStepProgress, SignalHandlers
from diffem.em.checkpoint_io import AtomicCheckpointIO
from diffem.em.datamodule import check_batch
from diffem.em.init import Confined, FromCheckpoint, FromClean, Mixture
from diffem.em.objective import Recorrupted
from diffem.em.plateau import LEAST
from diffem.em.rollback import fit
from diffem.inspection.coverage import take_coverage
from diffem.inspection.report import coverage_findings
from diffem.logging.rounds import close, log_final
from diffem.metric import Evaluation
from diffem.posterior import Conditional
from diffem.posterior.one_step import start_time
from diffem.posterior.posterior import DenoiserPosterior, chunk_count
from diffem.report import RunReport
from diffem.report.summary import BEST
from diffem.result import (
    Description,
    Result,
    build_denoiser,
    build_posterior,
    build_sampler,
    load,
    write_weights,
)
from diffem.result.result import MOST, POSTERIOR, PRIOR, STUDENT
from diffem.runtime.errors import UserError
from diffem.runtime.progress import console, warn
from diffem.runtime.rank import global_rank
from diffem.runtime.rng import seeded
from diffem.storage.identity import RunIdentity, bind
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.run_dir import check_space, config_hash, open_run

ONE_STEP = "diffem.posterior.OneStepSampler"  # of a student
LOOKED_AT = 2**22  # entries of the images whose measurements say what is measured
UNIFORM = 5.0  # the level from which on folded noise is uniform, to 1e-13
FEWEST = 64  # measurements that are looked at, at least


def run(cfg: DictConfig) -> None:
    """Composes the parts, fits by EM, fits the prior, evaluates and reports."""
    settings: EMSettings = build(cfg.em, "em")
    if type(cfg.trainer.devices) is int:  # of others Lightning knows the number, later
        check_batch(settings.batch_size, cfg.trainer.devices * cfg.trainer.num_nodes)
    evaluation: Evaluation = build(cfg.metric, "metric")
    source = build(cfg.dataset, "dataset")
    train, heldout = build_data(cfg, source)
    evaluation = evaluation.fitting(
        train.channel, truth=train.truth is not None, train=len(train), heldout=len(heldout)
    )
    check_objective(cfg.objective, evaluation)
    if cfg.method.supervised:
        train.known_truth("method.supervised=true")
    objective: Objective = build(cfg.method.objective, "method.objective")
    module = build_module(cfg, objective, train.channel, "m_step")
    if module.m_step.clean is not None:
        module.m_step.clean.load(train)
    make_posterior = check_posterior(cfg, module.denoiser, train.channel)
    student = build_student(cfg, make_posterior(module.denoiser, train.channel), objective)
    init, blind = build(cfg.init, "init"), build(cfg.blind, "blind")
    folder = Path(HydraConfig.get().runtime.output_dir) / "checkpoints"
    kept = folder / "init.ckpt"
    if isinstance(init, FromClean):
        train.known_truth("init=clean")
    elif isinstance(init, FromCheckpoint):
        init.read(kept)
    earlier = open_earlier(
        module.m_step.memory,
        init,
        folder / FILE,
        device="cpu" if cfg.trainer.accelerator == "cpu" else None,
        trust=list(cfg.trust),
    )
    module.m_step.balance.divide(train.groups)

    for key, reason in unused_settings(cfg, objective, train.channel):
        warn(f"{key} has no effect: {reason}")
    unguarded = no_guard(cfg, objective, train.channel)
    if unguarded:
        settings = replace(settings, guard=None)
    if settings.stop is not None:
        check_stop(settings, len(heldout), unguarded or "em.guard=null")
    chunks = chunk_count(len(train), settings.chunk_size)
    if is_given("em.refresh") and settings.refreshed(chunks) == chunks:
        warn(
            f"em.refresh has no effect: {settings.refresh} of {chunks} chunks, rounded up, is "
            "all of them; set a smaller em.chunk_size"
        )
    for line in (
        weak_noise(cfg, train.channel),
        trivial_noise(cfg),
        assumed_independence(objective, train.channel),
    ):
        if line:
            warn(line)
    run_dir = open_run(cfg, HydraConfig.get())
    others = other_files(cfg, module.m_step)
    identity = RunIdentity(config_hash(cfg), data_digest(train, heldout, others=others))
    if global_rank() == 0:
        bind(run_dir, identity, threads=torch.get_num_threads())
        if isinstance(init, FromCheckpoint):
            init.keep(kept)
    recall(module, earlier, train, folder / FILE)
    check_space(
        run_dir, 4 * len(train) * math.prod(train.channel.shape), rounds=settings.rounds_on_disk
    )
    store = ReconstructionStore(
        run_dir / "reconstructions",
        size=len(train),
        chunk_size=settings.chunk_size,
        identity=identity,
    )
    store.check_own()
    state, supervised = EMState(), cfg.method.supervised
    data = ReconstructionDataModule(
        train, store, settings, state=state, seed=cfg.seed, supervised=supervised
    )
    if supervised:
        console.print("method.supervised=true: the M-step LEARNS FROM CLEAN IMAGES")
    about = {**describe_run(cfg), "run": identity._asdict(), "unmeasured": unmeasured(train)}
    report = RunReport(run_dir, about, evaluation, train, heldout, store=store)
    if settings.stop is not None:
        report.figure = settings.stop.figure
    if global_rank() == 0:
        runs = earlier_runs(module, train, trust=list(cfg.trust))
        report.earlier = list(runs)
    files = asdict(source.format) if isinstance(source, MeasurementFiles) else None

    def on_round(module: DenoiserModule, round: Round) -> dict[str, list[float]]:
        figures = report.on_round(module, round)
        if round.number == report.best_round:
            export_best(cfg, module, data, round, files=files)
        return figures

    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    confine = getattr(build_sampler(cfg).func, "confine", None)
    em = EMLoop(
        init if confine is None else Confined(init, confine),
        make_posterior,
        state=state,
        settings=settings,
        blind=blind,
        checkpoint=checkpoint,
        heldout=heldout,
        on_round=on_round,
    )
    loggers = build_loggers(cfg)
    make_trainer = partial(build_trainer, cfg, [em], loggers, epochs=-1)
    expect_processes()
    prior, distilled = None, None
    with report.following():
        with compile_errors(cfg.compile):
            trainer = fit(make_trainer, module, data, checkpoint)
            if cfg.prior is not None:
                memory = module.m_step.memory
                prior = module
                if not objective.learns_prior:
                    prior = fit_prior(cfg, objective, data, trainer.loggers, memory=memory)
            if student is not None:
                distilled = fit_student(cfg, student, module, data, trainer.loggers)
        if trainer.is_global_zero:
            export(cfg, module, prior, data, files=files)
            if student is not None and distilled is not None:
                export_student(cfg, student, distilled[0], data, files=files)
            device = module.trainer.strategy.root_device
            evaluate(
                load(run_dir, device=device, trust=list(cfg.trust)),
                data.measurements.channel,
                report,
                spent=None if distilled is None else distilled[1],
            )
            log_final(module.trainer.loggers, run_dir)
            close(module.trainer.loggers)


def unmeasured(train: MeasurementSet) -> list[str] | None:
    """Returns a sentence for each part of the images that no training measurement has.

    Arguments:
        train: The training measurements; of many the first ones are looked at.

    Returns:
        None for a channel that is not linear, of which it is not known.
    """
    few = slice(max(LOOKED_AT // math.prod(train.channel.shape), FEWEST))
    coverage = take_coverage(MeasurementSet(train.select(few), train.channel))
    return None if coverage is None else coverage_findings(coverage).warnings


def unused_settings(
    cfg: DictConfig, objective: Objective, channel: Channel
) -> Iterator[tuple[str, str]]:
    """Yields what the command line sets without effect, and why.

    A comparison gives such settings to all of its rows, so they are no reason to refuse a run.
    """
    learned = cfg.prior is not None and objective.learns_prior
    mixture = cfg.init["_target_"] == "diffem.em.init.Mixture"
    unguarded = no_guard(cfg, objective, channel)
    for key, unused, reason in (
        ("prior", learned, "the network of this method is the prior too"),
        ("metric.prior", cfg.prior is None, "prior=null"),
        ("blind", not channel.learn, "corruption.learn is empty"),
        ("em.guard", unguarded is not None, unguarded or ""),
        (
            "init",
            mixture and not Mixture.fits(channel),
            f"{channel} has no spectrum at hand, so that one Gaussian is fitted (init=gaussian)",
        ),
    ):
        if unused and is_given(key):
            yield key, reason


def no_guard(cfg: DictConfig, objective: Objective, channel: Channel) -> str | None:
    """Returns why hidden parts of y are not scored, if there is a reason."""
    if cfg.method.supervised or not objective.uses_reconstructions:
        return "the M-step of this method does not learn from the reconstructions"
    if channel.learn:
        return "the channel is learned, and scores under different channels do not compare"
    if not Guard.fits(channel):
        return f"no part of what {channel} measures can be hidden"
    return None


def check_stop(settings: EMSettings, heldout: int, unguarded: str) -> None:
    """Refuses a figure to stop by that the run does not have; says what an early end leaves out.

    Arguments:
        settings: The EM loop's budget, with a stop.
        heldout: The number of held-out measurements.
        unguarded: Why hidden entries are not scored, if they are not.

    Raises:
        UserError: If the run does not have the figure.
    """
    stop = settings.stop
    assert stop is not None
    if stop.figure == "hidden_entries" and settings.guard is None:
        raise UserError(
            f"em.stop.figure=hidden_entries is not scored: {unguarded}; choose "
            "em.stop.figure=measurement_energy_distance"
        )
    if heldout < LEAST:
        raise UserError(
            f"em.stop needs {LEAST} held-out measurements, and there are {heldout}; give more, "
            "or set em.stop=null"
        )
    if stop.patience >= settings.rounds:
        warn(
            f"em.stop has no effect: em.stop.patience={stop.patience} rounds do not fit into "
            f"em.rounds={settings.rounds}"
        )
    elif not settings.restart:
        warn(
            "em.stop may end EM before the learning rate has fallen, which it does over all of "
            "em.rounds; set em.restart=true for rounds that each are a training of their own"
        )


def check_objective(objective: str, evaluation: Evaluation) -> None:
    """Refuses a sweep's objective that is no held-out score of the run.

    Raises:
        UserError: If it is none.
    """
    names = [score.name for score in evaluation.scores]
    if objective not in (*names, *(f"{name}_truth" for name in names), "init_psnr_mean"):
        raise UserError(
            f"objective must be a score of this run, got {objective!r}; it has {', '.join(names)}"
        )


def assumed_independence(objective: Objective, channel: Channel) -> str | None:
    """Returns what `method.objective.imputed` takes for granted of recorded operators."""
    if not objective.weighs_rows(channel) or not isinstance(channel, LinearChannel):
        return None
    if channel.forward_operator.covers is not None:
        return None
    return (
        "method.objective.imputed below 1 is right only where what is measured does not depend on "
        "the image (as clouds do, or saturated pixels); if it may, set it to null"
    )


def weak_noise(cfg: DictConfig, channel: Channel) -> str | None:
    """Returns what to set where the noise is much weaker than what sampling leaves in x.

    A sample keeps noise of about the standard deviation σ_min, so that its residual χ² is about
    1 + (σ_min / σ_y)²; the last step of sampler=sde knows what a fused y says.
    """
    exact = cfg.sampler["_target_"] == "diffem.posterior.SDESampler"
    if exact and cfg.method.get("condition", {"fuse": False})["fuse"] is not False:
        return None
    if not isinstance(channel, LinearGaussianChannel) or "sigma_min" not in cfg.schedule:
        return None
    std, left = channel.noise.parameters["std"].bounds[0], cfg.schedule.sigma_min
    if 2 * std >= left:
        return None
    return (
        f"corruption.noise.std is {std:.3g} on the scale of [-1, 1], and samples keep noise of "
        f"schedule.sigma_min={left}: their residual χ² is about {1 + (left / std) ** 2:.2g} in "
        f"place of 1; set schedule.sigma_min={std:.3g}"
    )


def trivial_noise(cfg: DictConfig) -> str | None:
    """Returns what to set where a reflected run learns from noise without an image in it."""
    reflected = cfg.method.posterior["_target_"] == "diffem.posterior.Reflected"
    if not reflected or cfg.schedule.sigma_max <= UNIFORM:
        return None
    return (
        f"schedule.sigma_max={cfg.schedule.sigma_max}: nothing is left of an image under folded "
        f"noise of more than {UNIFORM:g}, which method=reflected need not learn from; set "
        f"schedule.sigma_max={UNIFORM:g}"
    )


def other_files(cfg: DictConfig, m_step: MStep) -> Iterator[Tensor]:
    """Yields what a run reads from files besides its measurements.

    Arguments:
        cfg: The configuration.
        m_step: The settings of the M-step, whose clean images were read.
    """
    if m_step.clean is not None and m_step.clean.path is not None:
        yield m_step.clean.images
    for node in (cfg.corruption, assumed_corruption(cfg)):
        plain = OmegaConf.to_container(node, resolve=True)
        assert isinstance(plain, dict)
        for part, key in array_files(plain):
            yield torch.from_numpy(read_array(key, part[key]))


def build_module(
    cfg: DictConfig, objective: Objective, channel: Channel, stage: str
) -> DenoiserModule:
    """Returns the module of the denoiser that an objective trains.

    Raises:
        UserError: If a setting has no effect under the objective or on the images.
    """
    with seeded(cfg.seed, "weights", stage):
        denoiser = build_denoiser(cfg, cond_channels=objective.cond_channels(channel))
    balance = build(cfg.balance, "balance") if stage == "m_step" else Balance()
    m_step: MStep = build(
        cfg.m_step, "m_step", memory=build(cfg.memory, "memory"), balance=balance
    )
    if isinstance(m_step.augment, Augment):
        m_step.augment.check(cfg.dataset.shape)
    for key in ("augment", "clean"):
        if getattr(m_step, key) is not None and objective.weighs_rows(channel):
            raise UserError(
                f"m_step.{key} takes away what was measured of an image, by which "
                "method.objective.imputed weighs its errors; set method.objective.imputed=1, or "
                f"m_step.{key}=null"
            )
    ignored = {
        "m_step.augment": m_step.augment,
        "m_step.clean": m_step.clean,
        "method.supervised": cfg.method.supervised,
        "memory": m_step.memory.remembers,
        "balance": balance.balances,
    }
    for key, value in ignored.items():
        if value and not objective.uses_reconstructions:
            raise UserError(
                f"{key} has no effect on method.objective={type(objective).__name__}, which "
                "learns from the measurements; leave it out"
            )
    others = (
        ("m_step.clean", m_step.clean is not None),
        ("memory", isinstance(m_step.memory, Replay)),
    )
    for key, chosen in others:
        if chosen and balance.balances:
            raise UserError(
                f"{key} puts images of no group in the place of a group's, by which balance="
                f"{type(balance).__name__.lower()} weighs them; set balance=none, or leave {key} "
                "out"
            )
    module = DenoiserModule(denoiser, objective, m_step, stage=stage, seed=cfg.seed)
    if cfg.compile:
        module.compile_network()
    return module


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
            f"compile=true: torch.compile fails on this machine ({reason}); set compile=false, or "
            "install what it needs (a C++ compiler, and Triton for a GPU)"
        ) from error


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


def build_trainer(
    cfg: DictConfig, callbacks: Sequence[Callback], loggers: Sequence[Logger], *, epochs: int
) -> Trainer:
    """Returns a trainer whose checkpoints are the callbacks' to save."""
    return build(
        cfg.trainer,
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


def fit_prior(
    cfg: DictConfig,
    objective: Objective,
    data: ReconstructionDataModule,
    loggers: Sequence[Logger],
    *,
    memory: Memory | None = None,
) -> DenoiserModule:
    """Trains an unconditional denoiser on the last reconstructions.

    Arguments:
        cfg: The configuration.
        objective: The objective of EM, which knows that of its prior.
        data: The reconstructions.
        loggers: The loggers of EM.
        memory: Images of an earlier run that it learns from too, if there are any.
    """
    module = build_module(cfg, objective.prior(), data.measurements.channel, "prior")
    if module.m_step.clean is not None:
        module.m_step.clean.load(data.given)
    if isinstance(memory, Replay):
        module.m_step = replace(module.m_step, memory=memory)
    fit_to_last_round(cfg, module, data, loggers, steps=cfg.prior.steps)
    return module


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
    if cfg.sampler.get("bounds") is not None:
        raise UserError(
            f"student=diff_instruct does not keep sampler.bounds={list(cfg.sampler.bounds)}; set "
            "sampler.bounds=null, or student=none"
        )
    if not isinstance(posterior, Conditional) or type(objective) is not Recorrupted:
        raise UserError(
            f"student=diff_instruct needs a method whose denoiser is given y, and method.posterior"
            f"={type(posterior).__name__} guides one of p(x); choose method=diffem, or "
            "student=none"
        )
    return student


def fit_student(
    cfg: DictConfig,
    student: DiffInstruct,
    teacher: DenoiserModule,
    data: ReconstructionDataModule,
    loggers: Sequence[Logger],
) -> tuple[DenoiserModule, int]:
    """Distils the posterior's averaged denoiser, on the last reconstructions measured afresh.

    Returns:
        The module of the student, and the network function evaluations that it took.
    """
    assert isinstance(teacher.objective, Recorrupted)
    module = StudentModule(
        teacher.average, teacher.objective, teacher.m_step, settings=student, seed=cfg.seed
    )
    if cfg.compile:
        module.compile_network()
    state = fit_to_last_round(cfg, module, data, loggers, steps=student.steps)
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


def export(
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


def export_student(
    cfg: DictConfig,
    student: DiffInstruct,
    module: DenoiserModule,
    data: ReconstructionDataModule,
    *,
    files: Mapping[str, Any] | None,
) -> None:
    """Writes the averaged weights of a student, which draws by a sampler of its own.

    Arguments:
        cfg: The configuration.
        student: How it was distilled.
        module: Its module.
        data: The reconstructions that it was trained on, and the measurements.
        files: As for `export`.
    """
    about = describe_weights(cfg, module, data, files=files)
    sampler = {"_target_": ONE_STEP, "_partial_": True, "sigma": student.sigma}
    about = replace(about, config={**about.config, "sampler": sampler})
    path = Path(cfg.run_dir) / "checkpoints" / STUDENT
    write_weights(path, module.average.state_dict(), about, data.measurements.channel)


def export_best(
    cfg: DictConfig,
    module: DenoiserModule,
    data: ReconstructionDataModule,
    round: Round,
    *,
    files: Mapping[str, Any] | None,
) -> None:
    """Writes the averaged weights that drew a round, which is the best one so far.

    Arguments:
        cfg: The configuration.
        module: The module of the posterior's denoiser.
        data: The reconstructions, and the measurements.
        round: The round, which was just committed.
        files: As for `export`.
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
    """Returns what is written with the posterior's weights; its arguments are as for `export`."""
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
    """Returns the settings that sampling needs, in plain types; paths and secrets are not among.

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


def evaluate(
    result: Result, channel: Channel, report: RunReport, *, spent: int | None = None
) -> None:
    """Evaluates a result on the held-out measurements, and writes the report.

    Arguments:
        result: The result, as `diffem.load` returns it.
        channel: The channel, as it is assumed or was learned.
        report: Where the measurements are, and what writes.
        spent: The network function evaluations that the student was distilled with; None if
            there is none.
    """
    sampling, posterior = result.posterior.sampling, result.posterior.posterior
    draw_prior = None if result.prior is None else result.prior.draw
    with torch.no_grad(), sampling.context():
        if result.student is not None and spent is not None:
            assert isinstance(posterior, Conditional)
            report.evaluate_student(
                result.student.posterior, channel, sampling.device,
                spent=spent, evaluations=posterior.evaluations,
            )  # fmt: skip
        report.finish(posterior, channel, draw_prior, sampling.device)
