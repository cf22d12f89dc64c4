"""What a round of EM costs on this machine: a few steps of its parts are timed, then counted.

    M-step       em.steps_per_round optimiser steps
    E-step       the measurements, in chunks of constant size, and the guard's held-out ones
    evaluation   metric.subset measurements, metric.samples samples each

Timed are optimiser steps and one chunk of reconstructions, with the configured network, batch,
method and device; the sampler with few steps, and scaled.
"""

import copy
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffem.cli.checks import no_guard, not_relaxed
from diffem.cli.parts import build_module, check_posterior
from diffem.config.build import build
from diffem.data.measurements import MeasurementSet
from diffem.em import DenoiserModule, EMSettings, Objective
from diffem.em.guard import DRAWS
from diffem.em.relaxation import HELD_OUT
from diffem.metric import Evaluation
from diffem.posterior import reconstruct
from diffem.posterior.posterior import chunk_count
from diffem.result.parts import build_posterior
from diffem.result.result import MOST
from diffem.result.sampling import Sampling
from diffem.runtime.device import device_of, precision_of
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

LONGEST = 10.0  # seconds that one timed step or chunk may take; larger ones are scaled down
STEPS = (3, 9)  # optimiser steps that are timed, at least and at most
ENOUGH = 3.0  # seconds of them
SHORT = 4  # steps of a sampler that is timed
FEW = 4  # images that show how long a batch takes
COPIES = 10  # of the network's weights that checkpoints and results hold, about


@dataclass(frozen=True)
class RunCost:
    """What a run costs, by its parts."""

    device: str
    m_step: float
    """Seconds of an M-step."""
    e_step: float
    """Seconds of an E-step of one draw, with what is drawn for its guard and over-relaxation."""
    relax: int
    """How many draws an over-relaxed E-step makes, if there may be one; else 1."""
    evaluation: float
    """Seconds of the evaluation of a round."""
    rounds: int
    prior: float
    """Seconds of the prior's training."""
    last: float
    """Seconds of the last evaluation."""
    disk: int
    """Bytes of the reconstructions that are kept, and of checkpoints."""
    memory: int
    """Bytes of memory at the peak of a step and a chunk: of the device, or of this process."""
    scaled: bool
    """Whether a batch or a chunk was too slow to be timed whole."""

    @property
    def round(self) -> float:
        """Seconds of a round."""
        return self.m_step + self.e_step + self.evaluation

    @property
    def total(self) -> float:
        """Seconds of the run, but for round 0, with one draw in each E-step."""
        return self.rounds * self.round + self.prior + self.last


def measure_cost(cfg: DictConfig, train: MeasurementSet, heldout: MeasurementSet) -> RunCost:
    """Returns what a run of a configuration costs on this machine.

    Arguments:
        cfg: The configuration, its `dataset.shape` that of the images.
        train: The training measurements.
        heldout: The held-out measurements.

    Raises:
        UserError: If method, sampler, network and channel do not fit together.
    """
    settings: EMSettings = build(cfg.em, "em")
    objective: Objective = build(cfg.method.objective, "method.objective")
    module = build_module(cfg, objective, train.channel, "m_step")
    check_posterior(cfg, module.denoiser, train.channel)
    evaluation: Evaluation = build(cfg.metric, "metric")
    device = device_of(str(cfg.trainer.accelerator))
    module.to(device)
    precision = precision_of(cfg.trainer.precision, cfg.trainer.accelerator)
    context = Sampling(device, precision, settings.chunk_size, module.seed).context
    with progress_bar("timing", 2, "parts") as advance:
        step, part_of_batch = _time_step(cfg, module, train, settings.batch_size, context)
        advance()
        image, part_of_chunk = _time_chunk(cfg, module, train, settings.chunk_size, context)
        advance()
    chunks = chunk_count(len(train), settings.chunk_size)
    drawn = settings.refreshed(chunks) * settings.chunk_size  # the last chunk is padded
    drawn *= settings.warm_start or 1.0  # the fraction of the sampler's steps
    relax = 1
    if settings.relax is not None and not_relaxed(cfg, objective, train.channel) is None:
        drawn += min(HELD_OUT, len(heldout))
        relax = settings.relax
    if settings.guard is not None and no_guard(cfg, objective, train.channel) is None:
        drawn += DRAWS * min(settings.guard.measurements, len(heldout))
    subset, more = min(evaluation.subset, len(train)), evaluation.samples - 1
    last = min(evaluation.heldout, len(heldout)) * evaluation.samples
    last += evaluation.prior if cfg.prior is not None else 0
    weights = sum(p.numel() for p in module.denoiser.parameters())
    kept = settings.rounds_on_disk * len(train) * math.prod(train.channel.shape)
    return RunCost(
        str(device),
        settings.steps(len(train)) * step,
        drawn * image,
        relax,
        subset * more * image,
        settings.rounds,
        0.0 if cfg.prior is None or objective.learns_prior else cfg.prior.steps * step,
        last * image,
        4 * (kept + COPIES * weights),
        _peak_memory(device),
        part_of_batch or part_of_chunk,
    )


def _time_step(
    cfg: DictConfig,
    module: DenoiserModule,
    train: MeasurementSet,
    batch_size: int,
    context: Callable[[], AbstractContextManager[object]],
) -> tuple[float, bool]:
    """Returns the seconds of an optimiser step, and whether they are of a part of a batch."""
    device = module.device
    weights: list[Tensor] = list(module.denoiser.parameters())
    optimizer = module.m_step.optimizer(weights)
    averages: list[Tensor] = list(module.average.parameters())
    average = get_ema_multi_avg_fn(module.m_step.ema_decay)
    clip = cfg.trainer.gradient_clip_val

    def step(number: int, size: int) -> None:
        key = (module.seed, "timing", number)
        rows = torch.randint(len(train), (size,), generator=generator(*key))
        with seeded(*key, device=device), context():
            x = torch.rand(size, *train.channel.shape, device=device) * 2 - 1
            t = module.m_step.times.sample(size, device)
            loss = module.objective.loss(
                module.denoiser, Batch(x, 0, rows), t, measurements=train, key=key
            )
        loss.backward()
        if clip is not None:
            clip_grad_norm_(weights, clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            average(averages, weights, number)

    few = min(FEW, batch_size)
    _seconds(lambda: step(0, few), device)  # makes the optimiser's state
    size = _size(_seconds(lambda: step(1, few), device), few, batch_size)
    _seconds(lambda: step(2, size), device)
    taken: list[float] = []
    while len(taken) < STEPS[0] or (sum(taken) < ENOUGH and len(taken) < STEPS[1]):
        taken.append(_seconds(lambda: step(3 + len(taken), size), device))
    return statistics.median(taken) * batch_size / size, size < batch_size


def _time_chunk(
    cfg: DictConfig,
    module: DenoiserModule,
    train: MeasurementSet,
    chunk_size: int,
    context: Callable[[], AbstractContextManager[object]],
) -> tuple[float, bool]:
    """Returns the seconds of a reconstruction, and whether they are of a part of a chunk."""
    device, few, steps = module.device, cfg, 1.0
    takes_sampler = "sampler" in build_posterior(cfg).keywords
    if "steps" in cfg.sampler and takes_sampler:
        few = copy.deepcopy(cfg)
        few.sampler.steps = min(cfg.sampler.steps, max(SHORT, cfg.sampler.get("order", 0)))
        steps = cfg.sampler.steps / few.sampler.steps
    posterior = build_posterior(few)(module.average.eval(), train.channel)

    def draw(size: int) -> Tensor:
        y = train.select(slice(0, min(size, len(train))))
        with torch.no_grad(), context():
            return reconstruct(posterior, y, size=size, key=("timing",), device=device)

    with torch.no_grad(), context():
        moments = torch.rand(min(MOST, len(train)), *train.channel.shape)
        posterior.fit(moments * 2 - 1)
    tried = min(FEW, chunk_size)
    draw(tried)
    size = _size(_seconds(lambda: draw(tried), device), tried, chunk_size)
    draw(size)
    taken = min(_seconds(lambda: draw(size), device) for _ in range(2))
    return steps * taken / size, size < chunk_size


def _size(seconds: float, few: int, most: int) -> int:
    """Returns how many images are timed together, given the seconds that a few took."""
    return most if seconds * most / few <= LONGEST else max(few, int(LONGEST * few / seconds))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that a call takes, with all that it starts on the device."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_memory(device: torch.device) -> int:
    """Returns the peak of the device's memory so far, or of this process's, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
