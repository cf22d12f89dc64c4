"""The student: a sampler of p(x | y) of one evaluation, distilled from the posterior's denoiser.

Diff-Instruct (Luo et al. 2023, arXiv 2305.18455) minimises a divergence between the noisy samples
of the student and those of its teacher, E w(t) KL(q_t ‖ p_t), along its gradient

    E w(t) (d_ψ(x_t, t, ỹ) - d_p(x_t, t, ỹ)) ∂x/∂φ,   x = d_φ(noise, ỹ),  x_t = x + σ_t z

where the denoiser d_ψ follows the student's own samples by the denoising loss,

    E w(t) ‖d_ψ(x_t, t, ỹ) - x‖²,   ỹ ~ q(· | x̂),  x̂ ~ D_K

The teacher d_p is frozen, and all three start from it. Both gradients are of one x_t, and both
nets take their steps together. What the student starts from is in `diffem.posterior.one_step`.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from diffem.corruption.operator import expand
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Denoiser
from diffem.em.balance import Balance
from diffem.em.memory import Memory
from diffem.em.module import DenoiserModule, MStep
from diffem.em.objective import Recorrupted
from diffem.posterior.one_step import start_time
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key
from diffem.storage.reconstructions import Batch

BETAS = (0.0, 0.999)  # of Adam, as in the authors' code: the two nets follow each other


@dataclass(frozen=True)
class DiffInstruct:
    """How a student is distilled.

    Raises:
        UserError: If a number is out of its range.
    """

    steps: int
    """Optimiser steps, of both nets."""
    lr: float
    """The learning rate of the student d_φ."""
    score_lr: float
    """That of the denoiser d_ψ of its samples."""
    sigma: float
    """The noise level that the student starts from."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(f"student.{name}", value)


class StudentModule(DenoiserModule):
    """Trains a student; its `average` is the sampler's denoiser.

    Arguments:
        teacher: The posterior's denoiser d_p, conditional on y.
        objective: The objective that it was trained by.
        m_step: The training times, the schedule of the rates and the moving average.
        settings: How it is distilled.
        seed: The run's seed.
    """

    rates = "student.lr and student.score_lr"

    def __init__(
        self,
        teacher: Denoiser,
        objective: Recorrupted,
        m_step: MStep,
        *,
        settings: DiffInstruct,
        seed: int,
    ) -> None:
        student = copy.deepcopy(teacher).requires_grad_(True)
        plain = replace(m_step, balance=Balance(), memory=Memory())  # D_K is all it learns from
        super().__init__(student, objective, plain, stage="student", seed=seed)
        self.settings = settings
        self.follower = copy.deepcopy(student)
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)
        self.start = start_time(teacher.schedule, settings.sigma)

    def loss(
        self, batch: Batch, t: Tensor, measurements: MeasurementSet, key: tuple[Key, ...]
    ) -> Tensor:
        """Returns the follower's loss; its gradient is that of both nets."""
        assert isinstance(self.objective, Recorrupted)
        condition = self.objective.draw_condition(measurements.channel, batch, key)
        start = self.start.to(t)
        noise = self.denoiser.fused_start(torch.randn_like(batch.x), start, condition)
        x = self.denoiser(noise, start, condition).mean
        fixed = x.detach()
        alpha, sigma = (expand(s, x) for s in self.denoiser.schedule(t))
        x_t = alpha * fixed + sigma * torch.randn_like(x)
        guess = self.follower(x_t, t, condition).mean
        with torch.no_grad():
            wanted = self.teacher.eval()(x_t, t, condition).mean  # as it samples: no dropout
        self.teacher.train()  # Lightning warns of modules that start a fit in eval mode
        w, analyse = self.follower.loss_weight(t, condition, x), condition.spectrum.analyse
        # 0, with the gradient w (d_ψ - d_p) by x.
        pull = w * analyse(guess.detach() - wanted) * analyse(x - fixed)
        return (w * analyse(guess - fixed).square() + pull).mean()

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union
        """Returns the optimiser of both nets and its schedule."""
        groups = [
            {"params": list(self.denoiser.parameters()), "lr": self.settings.lr},
            {"params": list(self.follower.parameters()), "lr": self.settings.score_lr},
        ]
        optimizer = Adam(groups, betas=BETAS)
        scheduler = LambdaLR(optimizer, lambda step: self._factor(step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def take_nfe(self) -> int:
        """Returns this process's network evaluations (NFE) since the last call."""
        return super().take_nfe() + self.follower.take_nfe() + self.teacher.take_nfe()
