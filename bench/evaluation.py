"""The share of a default run that evaluation takes, from a short run of the same parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from bench.figure import Figure
from bench.loop import Loop
from diffem.cli.compose import compose_config, describe_run
from diffem.cli.last_round import fit_prior
from diffem.cli.train import evaluate
from diffem.cli.weights import WeightFiles
from diffem.config.build import build
from diffem.em import DenoiserModule, Round
from diffem.metric import Evaluation
from diffem.report import RunReport
from diffem.result import load

ROUNDS, STEPS = 2, 40


class Clock:
    """Sums the seconds of the scopes that are opened under a name.

    Attributes:
        spent: The seconds of each scope, by name.
    """

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Opens a scope whose time is kept."""
        start = time.perf_counter()
        yield
        self.spent.setdefault(name, []).append(time.perf_counter() - start)


def evaluation_share(folder: Path) -> Figure:
    """Returns evaluation's time over that of a whole default run, without imports.

    A run of two short rounds gives the seconds of an optimiser step, an E-step, the evaluation of
    a round and that of the end; the default run has six rounds of them, with its own numbers of
    steps. Each round of the short run gives one ratio.

    Arguments:
        folder: An empty folder.
    """
    default = compose_config([f"run_dir={folder}"])
    clock = Clock()
    loop = Loop(
        [f"em.rounds={ROUNDS}", f"em.steps_per_round={STEPS}", f"em.first_steps={STEPS}"],
        folder / "run",
    )
    cfg = loop.cfg
    cfg.prior = {"steps": STEPS}
    evaluation: Evaluation = build(cfg.metric, "metric")
    evaluation = evaluation.fitting(
        loop.train.channel, train=len(loop.train), heldout=len(loop.heldout)
    )
    report = RunReport(
        folder / "run", describe_run(cfg), evaluation, loop.train, loop.heldout, store=loop.store
    )

    def on_round(module: DenoiserModule, round: Round) -> None:
        with clock("round"):
            report.on_round(module, round)

    loop.fit(on_round)
    with clock("prior"):
        prior = fit_prior(cfg, loop.module, loop.data)
    WeightFiles(cfg, loop.data, None).write_result(loop.module, prior)
    result = load(folder / "run", device="cpu")
    with clock("end"), redirect_stdout(StringIO()):  # the table of a run too short to be shown
        evaluate(result, loop.train.channel, report)
    init, *rounds = report.journal.rounds
    steps, prior_steps = default.em.steps_per_round, default.prior.steps
    first, *evaluations = clock.spent["round"]
    (end,), (prior_seconds,) = clock.spent["end"], clock.spent["prior"]
    pairs = []
    for costs, seconds in zip(rounds, evaluations, strict=True):
        count = default.em.rounds
        evaluating = first + count * seconds + end
        step = costs["m_step_seconds"] / STEPS
        fitting = init["e_step_seconds"] + count * (costs["e_step_seconds"] + steps * step)
        whole = evaluating + fitting + prior_steps * prior_seconds / STEPS
        pairs.append((evaluating, whole))
    title = "evaluation over the whole default run (from a short one)"
    return Figure("evaluation_share", title, pairs, limit=0.08)
