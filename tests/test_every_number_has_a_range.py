"""Every number of every configuration group has a range, in one table (issue 11, D 5).

The table has each number of `conf/`, and each that a class of the registry takes. Each leaf of
each choice that is a number, or a list of numbers, is replaced by values that a user may give by
mistake. Each is refused in one sentence, or a training step and samples are finite: never a
traceback, never minutes. A property test draws the values at large (`slow`).
"""

import gc
import itertools
import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import ROOT
from omegaconf import DictConfig, ListConfig, OmegaConf

from diffem.cli.compose import check_config
from diffem.cli.composition import compose
from diffem.cli.data import check_noise
from diffem.cli.parts import build_module, build_student
from diffem.config.allow_list import ALLOWED
from diffem.config.build import build, locate
from diffem.config.types import check_types
from diffem.data import Digits, Manifold
from diffem.data.measurements import MeasurementSet
from diffem.em import EMSettings, Objective
from diffem.em.datamodule import StepSampler
from diffem.em.init import Gaussian
from diffem.metric import Evaluation
from diffem.posterior.gaussian import fit_gaussian
from diffem.result import build_channel, build_posterior
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

CONF = ROOT / "conf"
N = 4
HOSTILE: tuple[object, ...] = (
    -1, 0, 1e-300, 1e300, 2**70, math.nan, math.inf, -math.inf, "", "x", [], {}, True, None,
)  # fmt: skip
TINY = (
    "dataset.train=60",
    "sampler.steps=2",
    "network.channels=[16]",
    "network.blocks=[1]",
    "init.iterations=1",
    "init.samples=8",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
)


def measurements() -> Path:
    """Writes measurements of one's own, and returns their file."""
    file = Path(tempfile.mkdtemp()) / "y.npy"
    np.save(file, np.random.default_rng(0).normal(0, 0.5, (20, 8, 8)))
    return file


# What a choice of a group needs besides itself.
BESIDE = {
    "corruption=projection": ("dataset=manifold", "network=mlp"),
    "dataset=manifold": ("corruption=projection", "network=mlp"),
    "network=mlp": ("dataset=manifold", "corruption=projection"),
    "method=ambient": ("corruption=mask",),
    "init=checkpoint": ("init.path=x",),
    "memory=generative": ("memory.path=x",),
    "memory=replay": ("memory.path=x",),
    "dataset=measurements": (f"dataset.path={measurements()}", "dataset.shape=[1,8,8]"),
    "dataset=cifar10": ("network.channels=[16]", "dataset.shape=[1,8,8]"),
    "dataset=celeba": ("network.channels=[16]", "dataset.shape=[1,8,8]"),
    "dataset=fashion_mnist": ("network.channels=[16]", "dataset.shape=[1,8,8]"),
    "method=em_pnp": ("sampler.steps=16",),
    "sampler=reflected": ("method=reflected",),
}
GROUPS = (
    "dataset", "corruption", "corruption/noise", "network", "sampler", "method", "init", "metric",
    "trainer", "memory", "balance", "student",
)  # fmt: skip
OWN = ("seed", "em", "m_step", "blind", "schedule", "prior")  # of train.yaml itself
NOT_FINITE = "the loss or the samples are not finite"
LARGE = 64  # a larger whole number may be a sensible one that takes minutes
WITHOUT = tuple(f"metric={name}" for name in ("classifier", "dinov2", "inception", "lpips"))


@cache
def composed(choice: str) -> DictConfig:
    """Returns a tiny configuration with a choice of a group."""
    given = [*BESIDE.get(choice, ()), *([choice] if choice else [])]
    groups = {o.partition("=")[0] for o in given}
    kept = [o for o in TINY if o.partition(".")[0] not in groups]
    keys = {o.partition("=")[0] for o in given}
    kept = [o for o in kept if o.partition("=")[0] not in keys]
    cfg = compose([*kept, *given])
    if "dataset=manifold" in given:
        cfg.dataset.train, cfg.dataset.heldout = 60, 8
    if "network" in groups:
        for key, value in (("channels", [16]), ("blocks", [1]), ("attention", [0])):
            if key in cfg.network:
                cfg.network[key] = value
    return cfg


@cache
def plain(choice: str) -> dict[Any, Any]:
    """Returns the configuration of a choice in plain types."""
    found = OmegaConf.to_container(composed(choice), resolve=False)
    assert isinstance(found, dict)
    return found


def numbers(node: Any, where: str) -> Iterator[str]:
    """Yields the keys of numbers below a node, and of lists of them."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numbers(value, f"{where}.{key}")
    elif isinstance(node, list):
        if node:
            yield where
        for i, value in enumerate(node):
            yield from numbers(value, f"{where}.{i}")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield where
    elif node is None and where in RANGES:
        yield where


@cache
def cases() -> list[tuple[str, str]]:
    """Returns (choice, key) of each number of each choice; of each class once.

    Not while tests are collected: each choice is composed.
    """
    found = [("", name) for key in OWN for name in numbers(plain("")[key], key)]
    seen = set()
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            choice, where = f"{group}={path.stem}", group.replace("/", ".")
            if choice in WITHOUT:
                continue
            cfg = composed(choice)
            if OmegaConf.select(cfg, where) is None:
                continue
            held = OmegaConf.to_container(OmegaConf.select(cfg, where), resolve=False)
            for key in numbers(held, where):
                parent = OmegaConf.select(cfg, key.rpartition(".")[0])
                target = parent.get("_target_") if isinstance(parent, DictConfig) else choice
                if (key, target) not in seen:
                    seen.add((key, target))
                    found.append((choice, key))
    return list(dict.fromkeys(found))


def attempt(cfg: DictConfig) -> None:
    """Takes a training step and draws samples, as a run would.

    Arguments:
        cfg: The configuration, after `check_config`.

    Raises:
        UserError: If the configuration is refused.
        FloatingPointError: If what comes out is not finite.
    """
    settings: EMSettings = build(cfg.em, "em")
    evaluation: Evaluation = build(cfg.metric, "metric")
    source = build(cfg.dataset, "dataset")
    if isinstance(source, Digits | Manifold):  # the other data are not here
        source.load()
    channel = build_channel(cfg.corruption, cfg.dataset.shape)
    check_noise(channel)
    evaluation.fitting(channel, train=60, heldout=8)
    objective: Objective = build(cfg.method.objective, "method.objective")
    module = build_module(cfg, objective, channel, "m_step")
    build(cfg.blind, "blind")
    build_student(cfg, build_posterior(cfg)(module.denoiser, channel), objective)
    init = build(cfg.init, "init")
    rows = next(iter(StepSampler(60, settings.batch_size, steps=range(1), key=("x",))))
    assert len(rows) == settings.batch_size
    x = torch.rand(N, *channel.shape, generator=generator("x")) * 2 - 1
    measurement = channel.draw(x, generator("y"))
    measurements = MeasurementSet(measurement, channel, x)
    optimizer = module.m_step.optimizer(module.denoiser.parameters())
    with seeded("step"):
        t = module.m_step.times.sample(N)
        batch = Batch(x, 0, torch.arange(N))
        key = (0, "m_step", 0, 0)
        loss = objective.loss(module.denoiser, batch, t, measurements=measurements, key=key)
        loss.backward()
        optimizer.step()
    posterior = build_posterior(cfg)(module.denoiser, channel)
    posterior.fit(x)
    with seeded("samples"), torch.no_grad():
        drawn = posterior.draw(measurement)
        linear = channel.surrogate
        if isinstance(init, Gaussian) and linear is not None:
            measurement = channel.undistorted(measurement)
            fitted = fit_gaussian(
                linear, measurement,
                rank=init.rank, iterations=init.iterations, variance=init.variance,
            )  # fmt: skip
            drawn = drawn + fitted.draw(measurement)
    if not (loss.isfinite() and drawn.isfinite().all()):
        raise FloatingPointError(NOT_FINITE)


def is_large(value: object) -> bool:
    """Returns whether a value has a whole number above LARGE."""
    numbers = value if isinstance(value, list) else [value]
    return any(isinstance(number, int) and number > LARGE for number in numbers)


def outcome(choice: str, key: str, value: object) -> str:
    """Returns the sentence that refuses a value of a key, or "" if it is accepted."""
    cfg, files = composed(choice), plain(choice)
    node, _, last = key.rpartition(".")
    parent = OmegaConf.select(cfg, node) if node else cfg
    name: Any = int(last) if isinstance(parent, ListConfig) else last
    before = parent[name]
    parent[name] = value  # and back: a copy of all takes longer than what follows
    try:
        check_types(with_value(files, key.split("."), value), files)
        check_config(cfg)
        if not is_large(value):  # its size or time would follow from the number
            attempt(cfg)
    except (UserError, FloatingPointError) as error:
        return str(error)
    finally:
        parent[name] = before
    return ""


def with_value(node: Any, path: Sequence[str], value: object) -> Any:
    """Returns plain types with another value at a path, and the rest as it is."""
    if not path:
        return value
    if isinstance(node, list):
        return [
            with_value(v, path[1:], value) if str(i) == path[0] else v for i, v in enumerate(node)
        ]
    return {**node, path[0]: with_value(node[path[0]], path[1:], value)}


def taken() -> Iterator[str]:
    """Yields the keys of the numbers that the registry's classes take, by their signatures."""
    for place, registry in ALLOWED.items():
        for target, names in registry.items():
            parameters = signature(locate(target, place)).parameters
            for parameter in (parameters[name] for name in names if name in parameters):
                texts = f"{parameter.annotation} {type(parameter.default).__name__}"
                if re.search(r"\b(int|float)\b", texts) and "Callable" not in texts:
                    yield f"{place}.{parameter.name}"


def test_the_table_has_every_number() -> None:
    # A part of a chain has the keys of the corruption that it is.
    files = {re.sub(r"\.parts(?=\.)|\.\d+", "", key) for _, key in cases()}
    classes = {key.replace(".parts.*", "") for key in taken()}
    others = {"dataset.splits", "logger.*.version", "corruption.parts"}
    assert files | classes <= RANGES.keys() | others


def test_ranges_stand_in_the_table_alone() -> None:
    """Besides what depends on other values, such as a kernel that fits into the images."""
    for path in (ROOT / "diffem").rglob("*.py"):
        text = path.read_text()
        assert path.name == "ranges.py" or not re.search(r"\b(Range|whole)\(", text), path
        keys = re.findall(r"\bcheck\(\s*\"([^\"]+)\"", text)
        assert {*keys} <= RANGES.keys(), path
        assert not re.search(r"check_(count|positive|fraction)\b", text), path


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_what_is_no_sensible_number_is_refused_in_one_sentence(group: str) -> None:
    tried = [(choice, key) for choice, key in cases() if choice.partition("=")[0] == group]
    assert tried
    for choice in dict(tried):
        assert outcome(choice, "seed", composed(choice).seed) == "", choice  # as it is
    for choice, key in tried:
        for value in HOSTILE:
            sentence = outcome(choice, key, value)
            assert "\n" not in sentence and sentence != NOT_FINITE, (choice, key, value, sentence)
            if isinstance(value, float) and (math.isnan(value) or value == 1e300):
                assert sentence, (choice, key, value)
            if sentence:
                assert len(sentence) > 20, (choice, key, value, sentence)


@pytest.mark.slow
def test_no_value_is_a_traceback() -> None:
    """Issue 11, Show 2: 10,000 values, at large; none takes 20 seconds."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    texts = st.text(max_size=6).filter(lambda text: "$" not in text and text != "???")
    values = st.one_of(
        st.sampled_from(HOSTILE), st.floats(), st.integers(), st.integers(-(2**80), 2**80),
        st.integers(-2, 20), st.floats(-2, 2), texts, st.lists(st.integers(), max_size=3),
        st.dictionaries(texts, st.integers(), max_size=2),
    )  # fmt: skip

    @hypothesis.settings(
        max_examples=10_000,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=st.sampled_from(cases()), value=values)
    def is_a_sentence(case: tuple[str, str], value: object) -> None:
        start = time.process_time()
        assert "\n" not in outcome(*case, value)
        assert time.process_time() - start < 20
        if next(tried) % 100 == 0:
            gc.collect()  # modules are in cycles, whose size the collector does not see

    tried = itertools.count(1)
    is_a_sentence()
    assert next(tried) > 10_000
