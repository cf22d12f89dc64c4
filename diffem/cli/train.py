"""Learns a posterior sampler and a prior from corrupted images: the run of `python train.py`.

`run` reads top to bottom: build the parts, open the run directory, fit by EM, fit the prior and
the student, evaluate and report. How parts are built is in diffem/cli/parts.py, what is refused
or warned of in checks.py, and what follows EM in last_round.py.
"""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffem.cli.checks import check_objective, checked_settings
from diffem.cli.compose import describe_run
from diffem.cli.data import build_data
from diffem.cli.identity import run_identity
from diffem.cli.last_round import fit_prior, fit_student
from diffem.cli.memory import MEMORY, check_continues, earlier_runs, open_earlier, recall
from diffem.cli.parts import (
    build_loggers,
    build_module,
    build_student,
    build_trainer,
    check_posterior,
    compile_errors,
)
from diffem.cli.processes import expect_processes
from diffem.cli.weights import WeightFiles
from diffem.config.build import build
from diffem.corruption import Channel
from diffem.data import MeasurementFiles
from diffem.em import (
    DenoiserModule,
    EMLoop,
    EMSettings,
    EMState,
    Objective,
    ReconstructionDataModule,
    Round,
)
from diffem.em.datamodule import check_batch
from diffem.em.init import KEPT_WEIGHTS, Confined, FromCheckpoint, FromClean
from diffem.em.rollback import fit
from diffem.inspection.report import unmeasured
from diffem.logging.rounds import close, log_final
from diffem.metric import Evaluation
from diffem.posterior import Conditional
from diffem.report import RunReport
from diffem.result import Result, build_sampler, load
from diffem.runtime.device import precision_of
from diffem.runtime.progress import console, warn
from diffem.runtime.rank import global_rank
from diffem.storage.identity import bind
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.run_dir import check_space, open_run


def run(cfg: DictConfig) -> None:
    """Trains, evaluates and reports a run, or resumes it.

    Arguments:
        cfg: The configuration, checked by `check_config`.

    Raises:
        UserError: If settings, data or files are refused.
    """
    # The parts. What does not fit is refused before anything is written.
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
    supervised = cfg.method.supervised
    if supervised:
        train.known_truth("method.supervised=true")
    objective: Objective = build(cfg.method.objective, "method.objective")
    module = build_module(cfg, objective, train.channel, "m_step")
    if module.m_step.clean is not None:
        module.m_step.clean.load(train)
    make_posterior = check_posterior(cfg, module.denoiser, train.channel)
    student = build_student(cfg, make_posterior(module.denoiser, train.channel), objective)
    init, blind = build(cfg.init, "init"), build(cfg.blind, "blind")
    checkpoints = Path(HydraConfig.get().runtime.output_dir) / "checkpoints"
    kept = checkpoints / KEPT_WEIGHTS
    otherwise = (
        "go on from its weights without a memory, in a new run_dir with init=checkpoint "
        f"init.path={checkpoints.parent} memory=none"
    )
    if isinstance(init, FromClean):
        train.known_truth("init=clean")
    elif isinstance(init, FromCheckpoint):
        init.read(kept, otherwise=otherwise)
        init.restore(module)  # so that those of another network are refused now
    check_continues(module.m_step.memory, init)
    earlier = open_earlier(
        module.m_step.memory,
        checkpoints / MEMORY,
        shape=train.channel.shape,
        device="cpu" if cfg.trainer.accelerator == "cpu" else None,
        trust=list(cfg.trust),
        otherwise=otherwise,
    )
    module.m_step.balance.divide(train.groups)
    settings = checked_settings(cfg, settings, objective, train, heldout=len(heldout))

    # The run directory, which is bound to the settings and the data.
    fast = precision_of("auto", cfg.trainer.accelerator)
    run_dir = open_run(cfg, HydraConfig.get(), precision=fast)
    if cfg.trainer.precision == "bf16-mixed" and fast != "bf16-mixed":
        warn(
            "trainer.precision=bf16-mixed is about ten times slower than 32-true on a device "
            "without instructions for bfloat16, which this one is not known to have"
        )
    identity = run_identity(cfg, module.m_step, train, heldout)
    if global_rank() == 0:
        bind(run_dir, identity, threads=torch.get_num_threads())
        if isinstance(init, FromCheckpoint):
            init.keep(kept)
    recall(module, earlier, train, checkpoints / MEMORY)
    check_space(
        run_dir,
        4 * len(train) * math.prod(train.channel.shape),
        rounds=settings.rounds_on_disk,
        last=settings.rounds,
    )
    store = ReconstructionStore(
        run_dir / "reconstructions",
        size=len(train),
        chunk_size=settings.chunk_size,
        identity=identity,
    )
    store.check_own()
    state = EMState()
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
        report.earlier = list(earlier_runs(module, train, trust=list(cfg.trust)))
    files = asdict(source.format) if isinstance(source, MeasurementFiles) else None
    weights = WeightFiles(cfg, data, files)

    def on_round(module: DenoiserModule, round: Round) -> dict[str, list[float]]:
        figures = report.on_round(module, round)
        if round.number == report.best_round:
            weights.write_best(module, round)
        return figures

    confine = getattr(build_sampler(cfg).func, "confine", None)
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
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
    make_trainer = partial(build_trainer, cfg, [em], build_loggers(cfg), epochs=-1)
    expect_processes()
    with report.page.following():
        # EM, then what is trained on its last reconstructions.
        with compile_errors(cfg.compile):
            trainer = fit(make_trainer, module, data, checkpoint)
            prior, distilled = None, None
            if cfg.prior is not None:
                prior = module if objective.learns_prior else fit_prior(cfg, module, data)
            if student is not None:
                distilled = fit_student(cfg, student, module, data)
        # The result: its weights, its held-out scores and the report.
        if trainer.is_global_zero:
            weights.write_result(module, prior)
            spent = None
            if distilled is not None:
                of_student, spent = distilled
                weights.write_student(of_student)
            device = module.trainer.strategy.root_device
            result = load(run_dir, device=device, trust=list(cfg.trust))
            evaluate(result, data.measurements.channel, report, spent=spent)
            log_final(module.trainer.loggers, run_dir)
            close(module.trainer.loggers)


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
