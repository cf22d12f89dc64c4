"""A small EM run on real digits, in seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from azula.noise import VESchedule
from azula.sample import DDIMSampler
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from diffem.corruption import GaussianNoise, LinearChannel, Mask, Noise, make_channel
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.denoiser import BetaMixture, Conditioning, Denoiser
from diffem.em import (
    Blind,
    Cosine,
    DenoiserModule,
    EMLoop,
    EMSettings,
    EMState,
    MStep,
    Objective,
    PosteriorFactory,
    ReconstructionDataModule,
    Round,
    Unconditional,
)
from diffem.em.checkpoint_io import AtomicCheckpointIO
from diffem.em.init import Gaussian, Init
from diffem.em.objective import Recorrupted
from diffem.em.rollback import fit
from diffem.network import UNet
from diffem.posterior import Conditional
from diffem.runtime.rng import seeded
from diffem.storage.reconstructions import ReconstructionStore

SIZE, CHUNK, STEPS, ROUNDS = 100, 32, 4, 2


def diffem() -> Recorrupted:
    """Returns DiffEM's objective."""
    return Recorrupted(condition=Conditioning(), p_uncond=0.0, fresh=True)


class SmallRun:
    """The parts of a run of two rounds, of DiffEM or of a rival; `fit` runs it.

    Attributes:
        rounds: What the callback told of each round.
        batches: The round of each batch that was trained on, and the datamodule's.
    """

    def __init__(
        self,
        path: Path,
        *,
        seed: int = 0,
        rounds: int = ROUNDS,
        rival: PosteriorFactory | None = None,
        objective: Objective | None = None,
        noise: Noise | None = None,
        assumed: LinearChannel | None = None,
        rollbacks: int = 0,
    ) -> None:
        channel = make_channel(Mask((1, 8, 8), rho=0.5), noise or GaussianNoise(0.05))
        x = Digits([1, 8, 8], train=SIZE).load().train
        self.measurements = simulate_measurements(
            x, channel, seed=seed, split="train", assumed=assumed
        )
        self.store = ReconstructionStore(path, size=SIZE, chunk_size=CHUNK)
        objective = objective or (Unconditional() if rival else diffem())
        cond_channels = objective.cond_channels(self.measurements.channel)
        with seeded(seed, "weights"):
            network = UNet((1, 8, 8), cond_channels, channels=[16], blocks=[1])
        m_step = MStep(
            times=BetaMixture([(2, 2)]),
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            schedule=Cosine(warmup=0.1, final=0.1),
            ema_decay=0.5,
            rollbacks=rollbacks,
        )
        denoiser = Denoiser(network, VESchedule(0.02, 20.0))
        self.module = DenoiserModule(denoiser, objective, m_step, stage="m_step", seed=seed)
        self.settings = self.settings_of(rounds)
        self.sampler = partial(DDIMSampler, steps=4)
        self.posterior = rival or partial(
            Conditional, sampler=self.sampler, condition=Conditioning()
        )
        self.rounds: list[Round] = []
        self.supervised = False
        self.plugins: Sequence[MixedPrecision] = []
        self.clip: float | None = None

    @staticmethod
    def settings_of(rounds: int) -> EMSettings:
        """Returns the settings of a number of rounds."""
        return EMSettings(
            rounds=rounds,
            steps_per_round=STEPS,
            epochs_per_round=None,
            steps_per_epoch=3,
            batch_size=8,
            chunk_size=CHUNK,
        )

    def record(self, round: Round) -> Mapping[str, Sequence[float]] | None:
        """Keeps what the callback tells of a round; another run may return figures of it."""
        self.rounds.append(round)

    def nfe(self, k: int) -> float:
        """Returns the network function evaluations up to round k, or -1 for the last."""
        return self.rounds[k].costs["nfe"] or 0.0

    def with_truth(self, truth: Tensor) -> "SmallRun":
        """Replaces the truth after the measurements were drawn."""
        self.measurements = replace(self.measurements, truth=truth)
        return self

    def fit(self, init: Init | None = None) -> "SmallRun":
        """Runs the EM loop on one CPU process."""
        state = EMState()
        self.data = ReconstructionDataModule(
            self.measurements,
            self.store,
            self.settings,
            state=state,
            seed=self.module.seed,
            supervised=self.supervised,
        )
        em = EMLoop(
            init or Gaussian(rank=64, iterations=2, samples=SIZE),
            self.posterior,
            state=state,
            settings=self.settings,
            checkpoint=self.store.path.with_suffix(".checkpoints") / "last.ckpt",
            blind=Blind(iterations=2, samples=CHUNK, widen=1.5),
            heldout=self.measurements,
            on_round=lambda _, round: self.record(round),
        )
        make_trainer = partial(
            Trainer,
            accelerator="cpu",
            devices=1,
            max_epochs=-1,  # the loop stops
            callbacks=[em],
            logger=False,
            plugins=[AtomicCheckpointIO(), *self.plugins],
            gradient_clip_val=self.clip,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
        )
        fit(make_trainer, self.module, self.data, em.checkpoint)
        return self
