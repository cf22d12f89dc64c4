"""E-step and M-step against bare passes of their network and other libraries; growth in N."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import (
    Azula,
    Contender,
    Convolutions,
    DeepInv,
    DiffusersNetwork,
    Passes,
    installed,
    parameters,
)
from bench.cost import Prediction, network_cost
from bench.figure import Figure, LeftOut, alternate, seconds
from bench.loop import Loop
from diffem.em import DenoiserModule, Round
from diffem.em.loop import e_step
from diffem.em.state import EMState
from diffem.storage.reconstructions import ReconstructionStore

OVERHEAD = 1.03
"""How long E-step and M-step may take, where bare passes take 1."""
UNLIMITED = ("convolutions",)
"""Contenders that are no rivals, but what the machine could do at best."""


@dataclass(frozen=True)
class Case:
    """A network, and how much of the loop is run with it."""

    name: str
    """Its name in figures."""
    title: str
    """Its name in tables."""
    overrides: tuple[str, ...]
    """Of `diffem train`."""
    size: int
    """The number N of measurements."""
    steps: int
    """The optimiser steps of a round."""
    rounds: int
    """The number of rounds that are measured, after one that warms up."""
    clean: bool = True
    """Whether the data set's own images are used; otherwise drawn ones of its shape."""


DIGITS = Case("digits", "digits", ("network.blocks=[2,2]",), size=1024, steps=60, rounds=3)
CIFAR = Case(
    "cifar_cut",
    "CIFAR-10's, cut to (32, 64, 96) × 1",
    (
        *("experiment=cifar10_mask75_fast", "init=gaussian", "init.rank=4", "init.iterations=1"),
        *("network.channels=[32,64,96]", "network.blocks=[1,1,1]"),
        *("em.batch_size=32", "em.chunk_size=32"),
    ),
    size=128,
    steps=12,
    rounds=3,
    clean=False,
)
Times = dict[str, list[tuple[float, float]]]
"""Seconds of M-step and E-step of each round, by contender; "loop" is the loop itself."""


def em_figures(
    case: Case, folder: Path, *, rivals: bool
) -> tuple[list[Figure], list[LeftOut], list[Prediction]]:
    """Returns the figures of a case, what was left out, and the cost model's predictions.

    Arguments:
        case: The case.
        folder: An empty folder.
        rivals: Whether other libraries' training loops and samplers are measured too.
    """
    left_out: list[LeftOut] = []
    loop = _loop(case, folder / "whole", case.size, case.rounds)
    times = _times(loop, rivals=rivals, left_out=left_out)
    figures = []
    for name, contender in TITLES.items():
        if name not in times:
            continue
        for stage, index in (("m_step", 0), ("e_step", 1)):
            pairs = [
                (own[index], other[index])
                for own, other in zip(times[contender.own], times[name], strict=True)
                if other[index] > 0
            ]
            if pairs:
                title = f"{contender.titles[index]}, {case.title}"
                figure = f"{stage}_over_{name}_{case.name}"
                limit = OVERHEAD if name == "bare" else None if name in UNLIMITED else 1.0
                figures.append(Figure(figure, title, pairs, limit=limit))
    rates = _rates(loop, times)
    part = replace(case, size=case.size // 4, steps=case.steps // 2)
    smaller = _loop(part, folder / "small", part.size, 1)
    shorter = _times(smaller, rivals=False, left_out=[], only_loop=True)
    predictions = [
        *_rows(case, smaller, rates, shorter["loop"]),
        *_rows(case, loop, rates, times["loop"]),
    ]
    return figures, left_out, predictions


@dataclass(frozen=True)
class Comparison:
    """What a contender is compared with."""

    own: str
    """What of ours: the loop, or bare passes of its network."""
    titles: tuple[str, str]
    """The titles of the M-step's and the E-step's figure."""


TITLES = {
    "bare": Comparison("loop", ("M-step over the bare loop", "E-step over bare forward passes")),
    "convolutions": Comparison(
        "bare",
        (
            "training pass of our network over its convolutions alone",
            "forward pass of our network over its convolutions alone",
        ),
    ),
    "azula": Comparison(
        "loop", ("M-step over azula's own training loop", "E-step over azula's DDPM sampler")
    ),
    "diffusers": Comparison(
        "bare",
        (
            "training pass of our network over diffusers' U-Net of like size",
            "forward pass of our network over diffusers' U-Net of like size",
        ),
    ),
    "deepinv": Comparison("loop", ("", "E-step over deepinv's DiffPIR on the same network")),
}


def _loop(case: Case, folder: Path, size: int, rounds: int) -> Loop:
    overrides = [
        *case.overrides,
        f"em.rounds={rounds + 1}",
        f"em.steps_per_round={case.steps}",
        f"em.first_steps={case.steps}",
    ]
    if case.clean:
        return Loop([*overrides, f"dataset.train={size}"], folder)
    return Loop(overrides, folder, images=smooth_images((3, 32, 32), size))


def smooth_images(shape: Sequence[int], size: int) -> Tensor:
    """Returns smooth random images in [-1, 1], (size, *shape)."""
    coarse = torch.rand(size, shape[0], 4, 4, generator=torch.Generator().manual_seed(0))
    return 2 * F.interpolate(coarse, size=list(shape[1:]), mode="bilinear") - 1


def _times(loop: Loop, *, rivals: bool, left_out: list[LeftOut], only_loop: bool = False) -> Times:
    """Runs a loop, and after each of its rounds every contender as far as that round went."""
    contenders: dict[str, Contender] = {}
    times: Times = {"loop": []}

    def measure(module: DenoiserModule, round: Round) -> None:
        if round.number == 0:
            return
        if round.number == 1:
            if not only_loop:
                contenders.update(_contenders(loop, rivals=rivals, left_out=left_out))
            for contender in contenders.values():
                contender.sample(1)
                contender.train(2)
            return
        costs, chunks, steps = round.costs, len(loop.store.chunks), loop.data.steps
        times["loop"].append((costs["m_step_seconds"] or 0.0, costs["e_step_seconds"] or 0.0))
        for name, contender in contenders.items():
            trained = 0.0
            if name != "deepinv":
                trained = _scaled(contender.train, steps)
            times.setdefault(name, []).append((trained, _scaled(contender.sample, chunks)))

    loop.fit(measure)
    return times


def _scaled(run: Callable[[int], None], count: int) -> float:
    """Returns the seconds of a number of repetitions, from a quarter of them, to save time."""
    part = max(1, count // 4)
    return count / part * seconds(lambda: run(part))


def _contenders(loop: Loop, *, rivals: bool, left_out: list[LeftOut]) -> Mapping[str, Contender]:
    """Returns the contenders that are installed, and names those that are not."""
    bare = Passes(loop)
    found: dict[str, Contender] = {"bare": bare, "convolutions": Convolutions(bare)}
    if not rivals:
        return found
    found["azula"] = Azula(loop)
    if installed("diffusers"):
        found["diffusers"] = Passes(loop, DiffusersNetwork(loop, bare.cond_channels))
    if installed("deepinv"):
        found["deepinv"] = DeepInv(loop)
    left_out += [
        LeftOut(name, f"{name} is not installed: pip install '.[bench]'")
        for name in ("diffusers", "deepinv")
        if name not in found
    ]
    networks = [each.network for each in found.values() if type(each) is Passes]
    ours, *others = parameters(networks)
    for theirs in others:
        assert 0.5 < theirs / ours < 2, f"diffusers' network has {theirs} parameters, ours {ours}"
    return found


def _rates(loop: Loop, times: Times) -> tuple[float, float]:
    """Returns the operations a second of training passes and of forward passes."""
    m_step, e_step = (median(column) for column in zip(*times["bare"], strict=True))
    m_flops, e_flops = _flops(loop)
    return m_flops / m_step, e_flops / e_step


def _flops(loop: Loop) -> tuple[float, float]:
    """Returns the operations of a round's M-step and E-step, whose chunks are padded."""
    passes = Passes(loop)
    cost = network_cost(passes.network, passes.inputs(2))
    images = len(loop.store.chunks) * loop.settings.chunk_size
    return (
        loop.data.steps * loop.settings.batch_size * cost.training,
        images * passes.evaluations * cost.forward,
    )


def _rows(
    case: Case, loop: Loop, rates: tuple[float, float], measured: Sequence[tuple[float, float]]
) -> list[Prediction]:
    names = (
        f"M-step, {loop.data.steps} steps of {loop.settings.batch_size}",
        f"E-step, {loop.cfg.sampler.steps} evaluations",
    )
    columns = [median(column) for column in zip(*measured, strict=True)]
    return [
        Prediction(case.title, len(loop.train), name, flops, rate, took)
        for name, flops, rate, took in zip(names, _flops(loop), rates, columns, strict=True)
    ]


def growth_in_n(folder: Path, *, size: int = 375, times: int = 4) -> Figure:
    """Returns an E-step's seconds for each row, at 4 N over N, of a small network.

    Arguments:
        folder: An empty folder.
        size: The number N of measurements.
        times: The number of alternations.
    """
    small = ("network.channels=[16]", "network.blocks=[1]", "sampler.steps=4", "em.chunk_size=64")
    loops = {n: Loop([*small, f"dataset.train={n}"], folder / str(n)) for n in (4 * size, size)}
    numbers = count()

    def per_row(n: int) -> float:
        loop = loops[n]
        posterior = loop.make_posterior(loop.module.average.eval(), loop.train.channel)
        path = folder / f"rounds_{next(numbers)}"
        store = ReconstructionStore(path, size=n, chunk_size=loop.settings.chunk_size)
        store.begin(0, "")
        with torch.no_grad():
            return seconds(lambda: e_step(posterior, loop.train, store, EMState(), seed=0)) / n

    per_row(size)  # warms up
    pairs = alternate(lambda: per_row(4 * size), lambda: per_row(size), times)
    title = f"E-step, time of a row at N = {4 * size:,} over N = {size}"
    return Figure("e_step_growth_in_N", title, pairs, unit="s a row", limit=1.05)
