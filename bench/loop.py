"""The EM loop as `diffem train` composes it, with something else measured after each round."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from diffem.cli.compose import compose_run
from diffem.cli.data import build_data
from diffem.cli.parts import build_loggers, build_module, build_trainer, check_posterior
from diffem.config.build import build
from diffem.data.measurements import simulate_measurements
from diffem.em import DenoiserModule, EMLoop, EMSettings, EMState, ReconstructionDataModule, Round
from diffem.em.rollback import fit
from diffem.result import build_channel
from diffem.storage.reconstructions import ReconstructionStore

ALWAYS = ("prior=null", "em.guard=null", "em.relax=null")
"""Overrides of all runs that are measured: else E-steps may be left out, or drawn twice."""
OnRound = Callable[[DenoiserModule, Round], None]


class Loop:
    """A run of the EM loop in this process, without evaluation, prior and guard of E-steps.

    Arguments:
        overrides: As on the command line of `diffem train`.
        run_dir: Where the run writes.
        images: Clean images in place of the data set's, (N, *shape).
    """

    def __init__(
        self, overrides: Sequence[str], run_dir: Path, *, images: Tensor | None = None
    ) -> None:
        self.cfg = cfg = compose_run([*ALWAYS, *overrides], run_dir)
        self.settings: EMSettings = build(cfg.em, "em")
        if images is None:
            self.train, self.heldout = build_data(cfg, build(cfg.dataset, "dataset"))
        else:
            channel = build_channel(cfg.corruption, cfg.dataset.shape)
            self.train = self.heldout = simulate_measurements(
                images, channel, seed=cfg.seed, split="train"
            )
        objective = build(cfg.method.objective, "method.objective")
        self.module = build_module(cfg, objective, self.train.channel, "m_step")
        self.make_posterior = check_posterior(cfg, self.module.denoiser, self.train.channel)
        self.store = ReconstructionStore(
            run_dir / "reconstructions", size=len(self.train), chunk_size=self.settings.chunk_size
        )
        self.state = EMState()
        self.data = ReconstructionDataModule(
            self.train, self.store, self.settings, state=self.state, seed=cfg.seed
        )
        self.checkpoint = run_dir / "checkpoints" / "last.ckpt"

    def fit(self, on_round: OnRound) -> None:
        """Runs the loop.

        Arguments:
            on_round: Called with each round; its time counts as none of the loop's.
        """
        em = EMLoop(
            build(self.cfg.init, "init"),
            self.make_posterior,
            state=self.state,
            settings=self.settings,
            blind=build(self.cfg.blind, "blind"),
            checkpoint=self.checkpoint,
            heldout=self.heldout,
            on_round=on_round,
        )
        loggers = build_loggers(self.cfg)
        make_trainer = partial(build_trainer, self.cfg, [em], loggers, epochs=-1)
        fit(make_trainer, self.module, self.data, self.checkpoint)
