"""Law 10: nothing is ignored. A setting changes what a run computes, or it is refused.

Over every method and sampler of conf/, each key of the sampler, of the method's posterior and of
its condition is changed to another valid value, with seeds and weights held: the samples change
(the prior's, for a method whose posterior draws without a sampler), or building the posterior
refuses the choice in one sentence. Each key of the objective changes the loss, each of a
corruption and its noise the measurement, each of an init round 0.
"""

import pickle
import re
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from command import ROOT
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from diffem.cli.checks import unused_settings
from diffem.cli.compose import check_channel_given, check_config
from diffem.cli.composition import compose
from diffem.cli.parts import build_module
from diffem.config.build import build
from diffem.corruption import (
    Channel,
    Denoising,
    GaussianNoise,
    LinearChannel,
    Mask,
    Measurement,
    make_channel,
)
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet, simulate_measurements
from diffem.denoiser import Denoiser
from diffem.em.init import Init
from diffem.em.objective import Objective
from diffem.result import build_channel, build_posterior, build_prior
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

CONF = ROOT / "conf"
N = 16
NAMES = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("method", "sampler", "corruption", "corruption/noise", "init")
}
TINY = (
    "dataset.shape=[1,8,8]",
    "network.channels=[16]",
    "network.blocks=[1]",
    "corruption.noise.std=0.3",  # the guided methods of random weights stay finite
    "corruption=blur",  # under a mask, one iteration of a solver is exact
)
VALUES: dict[str, tuple[object, object]] = {  # a value of each key, and another one
    "sampler.bounds": (None, [-0.5, 0.5]),
    "sampler.steps": (4, 6),
    "sampler.eta": (0.0, 0.5),
    "sampler.order": (2, 3),
    "sampler.corrections": (1, 2),
    "sampler.delta": (0.01, 0.1),
    "method.condition.maps": (True, False),
    "method.condition.fuse": (None, False),
    "method.objective.p_uncond": (0.2, 0.6),  # both withhold: the same numbers are drawn
    "method.objective.fresh": (True, False),
    "method.objective.delta": (0.1, 0.4),
    "method.posterior.lmbda": (1.0, 2.0),
    "method.posterior.iterations": (1, 2),
    "method.posterior.solver": ("gmres", "cg"),
    "method.posterior.zeta": (0.1, 0.2),
    "method.posterior.covariance.variance": (1.0, 0.5),
    "method.posterior.covariance.rank": (4, 2),
    "method.posterior.coupling": ([3.0, 0.02], [2.0, 0.05]),
    "method.posterior.sweeps": (2, 3),
    "corruption.acceleration": (4.0, 2.0),
    "corruption.angles": (6, [0.0, 20.0, 40.0]),
    "corruption.angle": ([1e-3, 180.0], 45.0),
    "corruption.centre": (0.08, 0.0),
    "corruption.coils": (4, 2),
    "corruption.masks": (3, 2),
    "corruption.fraction": (0.3, 0.5),
    "corruption.gamma": (2.2, 0.5),
    "corruption.high": (0.0, 0.3),
    "corruption.kernel": ([[1.0]], [[1.0, 1.0, 1.0]]),
    "corruption.length": ([2.0, 5.0], 3.0),
    "corruption.levels": (4, 7),
    "corruption.low": (-1.0, -0.5),
    "corruption.quality": (10, 50),
    "corruption.ratio": ([1.0, 10.0], 2.0),
    "corruption.rho": (0.5, 0.25),
    "corruption.sigma": (1.0, 2.0),
    "corruption.kernel_size": (5, 3),
    "corruption.factor": (2, 4),
    "corruption.rows": (2, 3),
    "corruption.physics": ("MRI", "MultiCoilMRI"),
    "corruption.generator": ("RandomMaskGenerator", "EquispacedMaskGenerator"),
    "corruption.generator_arguments": ({"acceleration": 2}, {"acceleration": 4}),
    "corruption.noise.std": (0.05, 0.1),
    "corruption.noise.photons": (100.0, 50.0),
    "corruption.noise.background": (1.0, 2.0),
    "corruption.noise.speckle": (0.3, 0.5),
    "init.rank": (2, 4),
    "init.iterations": (1, 2),
    "init.samples": (8, 16),
    "init.components": (2, 3),
    "init.shrinkage": (1.0, 10.0),
    "init.variance": (None, 0.5),
    "init.count": (2, 5),
}
ELSEWHERE = {  # keys that no sample, loss or measurement of this file shows, and their tests
    "corruption.arguments": "tests/corruption/test_deepinv.py",
    "corruption.learn": "tests/em/test_blind.py",
    "init.path": "tests/cli/test_train.py",
    "method.objective.imputed": "tests/em/test_objective.py",
}
STEPS_OF_THEIR_OWN = ("em_dps", "em_pnp", "fast_em_dps")  # on DDPM's steps
AMBIENT = ("method=ambient", "corruption=mask")
REFUSED = {(m, s) for m in STEPS_OF_THEIR_OWN for s in NAMES["sampler"] if s != "ddpm"}
UNUSED = (("ambient", "sampler.bounds"), ("reflected", "method.condition.fuse"))  # refused too
REFUSED |= {(m, "reflected") for m in NAMES["method"] if m != "reflected"}
REFUSED |= {("reflected", s) for s in NAMES["sampler"] if s != "reflected"}


@cache
def load(group: str, name: str) -> DictConfig:
    """Returns a file of conf/ on top of its defaults in its own group."""
    cfg = OmegaConf.load(CONF / group / f"{name}.yaml")
    assert isinstance(cfg, DictConfig)
    below = [d for d in cfg.pop("defaults", []) if isinstance(d, str) and d != "_self_"]
    merged = OmegaConf.merge(*(load(group, other) for other in below), cfg)
    assert isinstance(merged, DictConfig)
    return merged


def leaves(node: object, where: str) -> Iterator[str]:
    """Yields the keys of values below a node, but for targets and links to other keys."""
    if isinstance(node, DictConfig | ListConfig):
        plain = OmegaConf.to_container(node, resolve=False)
        assert isinstance(plain, dict | list)
        node = plain
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ("_target_", "_partial_"):
                yield from leaves(value, f"{where}.{key}")
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for i, value in enumerate(node):
            yield from leaves(value, f"{where}.{i}")
    elif not (isinstance(node, str) and node.startswith("${")):
        yield where


def keys_of(method: str, *parts: str) -> list[str]:
    """Returns the keys of parts of a method."""
    cfg = load("method", method)
    return [key for part in parts for key in leaves(cfg.get(part, {}), f"method.{part}")]


SAMPLED = [
    (method, sampler, key)
    for method in NAMES["method"]
    for sampler in NAMES["sampler"]
    if (method, sampler) not in REFUSED
    for key in (
        *leaves(load("sampler", sampler), "sampler"),
        *keys_of(method, "posterior", "condition"),
    )
    if (method, key) not in UNUSED
]
TRAINED = [
    (method, key)
    for method in NAMES["method"]
    for key in keys_of(method, "objective", "condition")
    if key not in ELSEWHERE
]
MEASURED = [
    (corruption, noise, key)
    for corruption in NAMES["corruption"]
    for noise in NAMES["corruption/noise"]
    # Each noise after an operator, and each corruption with Gaussian noise.
    if noise == "gaussian" or corruption in ("blur", "denoising", "downsample", "mask")
    for key in (
        *leaves(load("corruption", corruption), "corruption"),
        *leaves(load("corruption/noise", noise), "corruption.noise"),
    )
    if key not in ELSEWHERE
]
STARTED = [
    (init, key)
    for init in NAMES["init"]
    for key in leaves(load("init", init), "init")
    if key not in ELSEWHERE
]


@cache
def composed(*overrides: str) -> DictConfig:
    """Returns the config of a command line."""
    return compose(overrides)


def copied(cfg: DictConfig) -> DictConfig:
    """Returns a copy of a config; by `deepcopy` it takes several times as long."""
    return pickle.loads(pickle.dumps(cfg))


def config(*overrides: str) -> DictConfig:
    """Returns a tiny problem with the first value of each key of `VALUES` that it has."""
    cfg = copied(composed(*overrides))
    for key, (value, _) in VALUES.items():
        # cov_t's variance is its point, and a null would be no number to start from.
        keep = key.endswith("covariance.variance") or key.startswith("corruption")
        keep |= key == "method.condition.fuse" and "method=reflected" in overrides
        if not keep and exists(cfg, key):
            OmegaConf.update(cfg, key, value)
    return cfg


def exists(cfg: DictConfig, key: str) -> bool:
    """Returns whether a config has a key."""
    missing = object()
    return OmegaConf.select(cfg, key, default=missing) is not missing


def changed(cfg: DictConfig, key: str) -> DictConfig:
    """Returns a config with another value of a key."""
    name = re.sub(r"\.parts\.\d+", "", key)
    assert name in VALUES, f"say in VALUES how to change {name}"
    cfg = copied(cfg)
    values = [value for value in VALUES[name] if value != OmegaConf.select(cfg, key)]
    OmegaConf.update(cfg, key, values[-1])
    return cfg


class Problem:
    """What a config builds: a channel, an objective and a denoiser, whose weights are random."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.channel: Channel = build_channel(cfg.corruption, cfg.dataset.shape)
        self.x = torch.rand(N, *self.channel.shape, generator=generator("x")) * 2 - 1
        self.measurement = self.channel.draw(self.x, generator("y"))
        self.objective: Objective = build(cfg.method.objective, "method.objective")
        module = build_module(cfg, self.objective, self.channel, "m_step")
        self.denoiser: Denoiser = module.denoiser.eval()
        with seeded("weights"), torch.no_grad():
            for parameter in self.denoiser.parameters():
                parameter.normal_(std=0.05)

    @torch.no_grad()
    def samples(self) -> Tensor:
        """Returns the posterior's samples, or the prior's where only that takes a sampler."""
        posterior = build_posterior(self.cfg)(self.denoiser, self.channel)
        posterior.fit(self.x)
        with seeded("samples"):
            if posterior.samplers:
                return posterior.draw(self.measurement)
            removed = self.objective.prior_removed(self.channel)
            return build_prior(self.cfg, self.denoiser, removed=removed).sample(N)

    @torch.no_grad()
    def loss(self) -> Tensor:
        """Returns the loss of a training step."""
        measurements = MeasurementSet(self.measurement, self.channel, self.x)
        batch = Batch(self.x, 0, torch.arange(N))
        with seeded("loss"):
            return self.objective.loss(
                self.denoiser,
                batch,
                torch.linspace(0.2, 0.8, N),
                measurements=measurements,
                key=(0, "m_step", 0, 0),
            )


def assert_differ(a: Tensor, b: Tensor) -> None:
    """Holds two results to be finite and to differ by more than rounding."""
    assert a.isfinite().all()
    assert b.isfinite().all()
    assert a.shape != b.shape or (a - b).abs().max() > 1e-4 * a.abs().max()


def method_config(method: str, sampler: str) -> DictConfig:
    mask = ("corruption=mask",) if method == "ambient" else ()  # all that Ambient Diffusion takes
    return config(f"method={method}", f"sampler={sampler}", *TINY, *mask)


@cache
def base_samples(method: str, sampler: str) -> Tensor:
    return Problem(method_config(method, sampler)).samples()


@pytest.mark.parametrize(("method", "sampler", "key"), SAMPLED)
def test_settings_change_the_samples(method: str, sampler: str, key: str) -> None:
    cfg = changed(method_config(method, sampler), key)
    assert_differ(base_samples(method, sampler), Problem(cfg).samples())


@pytest.mark.parametrize("method", NAMES["method"])
def test_the_same_settings_give_the_same_samples(method: str) -> None:
    sampler = "reflected" if method == "reflected" else "ddpm"
    again = Problem(method_config(method, sampler)).samples()
    assert torch.equal(base_samples(method, sampler), again)


@pytest.mark.parametrize(("method", "sampler"), sorted(REFUSED))
def test_samplers_that_a_method_does_not_use_are_refused(method: str, sampler: str) -> None:
    own = "reflected" if method == "reflected" else "ddpm"
    advice = "another sampler" if sampler == "reflected" else f"sampler={own}"
    with pytest.raises(UserError, match=rf"choose {advice}$") as error:
        Problem(method_config(method, sampler)).samples()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("method", "key"), TRAINED)
def test_settings_change_the_loss(method: str, key: str) -> None:
    cfg = method_config(method, "ddpm")
    assert_differ(Problem(cfg).loss(), Problem(changed(cfg, key)).loss())


def test_ambient_s_delta_changes_its_prior() -> None:
    cfg = method_config("ambient", "ddpm")
    other = changed(cfg, "method.objective.delta")
    assert_differ(Problem(cfg).samples(), Problem(other).samples())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((*AMBIENT, "m_step.augment={_target_:diffem.em.Augment}"), "m_step.augment"),
        ((*AMBIENT, "method.supervised=true"), "method.supervised"),
        (("sampler=pc", "sampler.delta=0.0"), "sampler.delta"),
        (("sampler=multistep", "sampler.steps=4", "sampler.order=5"), "sampler.order"),
        ((*AMBIENT, "m_step.clean={_target_:diffem.em.CleanShare,share:0.2}"), "m_step.clean"),
        (
            ("m_step.clean={_target_:diffem.em.CleanShare,share:0.2}", "corruption=mask"),
            "imputed=1",
        ),
        (("m_step.augment={_target_:diffem.em.Augment,hue:0.1}",), "m_step.augment.hue"),
        (("m_step.augment={_target_:diffem.em.Augment,saturation:0.1}",), "augment.saturation"),
        (("m_step.augment={_target_:diffem.em.Augment,flip:false}",), "m_step.augment"),
        (("method=em_pnp", "method.posterior.sweeps=1"), "method.posterior.sweeps"),
        ((*AMBIENT, "sampler.bounds=[-1,1]"), "sampler.bounds has no effect"),
        (("method=reflected", "method.condition.fuse=null"), "method.condition.fuse must be fal"),
        (("method=reflected", "schedule.sigma_max=1"), "schedule.sigma_max must be at least 2"),
        (("sampler.bounds=[1,-1]",), r"sampler.bounds must be auto, null or two numbers"),
        (("sampler.bounds=[-1]",), r"sampler.bounds must be auto, null or two numbers"),
        (("sampler.bounds=0.5",), r"sampler.bounds must be auto, null or two numbers"),
        (("sampler.bounds=automatic",), r"got 'automatic'; give auto, null or \[low, high\]"),
        (("sampler.bounds=[auto,1]",), r"sampler.bounds: each must be a number"),
    ],
)
def test_settings_without_an_effect_are_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence) as error:
        cfg = composed(*TINY, *overrides)
        check_config(cfg)
        Problem(cfg).samples()
    cause = error.value if isinstance(error.value, UserError) else error.value.__cause__
    assert isinstance(cause, UserError)
    assert "\n" not in str(cause)


@pytest.mark.parametrize(("corruption", "noise", "key"), MEASURED)
def test_settings_change_the_measurement(corruption: str, noise: str, key: str) -> None:
    shapes = {"projection": "[6]", "mosaic": "[3,8,8]"}
    shape = f"dataset.shape={shapes.get(corruption, '[1,8,8]')}"
    cfg = composed(f"corruption={corruption}", f"corruption/noise={noise}", shape)
    if corruption == "deepinv":  # a name is needed, and what draws parameters
        for name in ("physics", "generator", "generator_arguments"):
            OmegaConf.update(cfg, f"corruption.{name}", VALUES[f"corruption.{name}"][0])

    def drawn(cfg: DictConfig) -> Measurement:
        channel = build_channel(cfg.corruption, cfg.dataset.shape)
        x = torch.rand(N, *channel.shape, generator=generator("x")) * 2 - 1
        return channel.draw(x, generator("y"))

    assert_differ(drawn(cfg).y, drawn(changed(cfg, key)).y)


@pytest.mark.parametrize(("init", "key"), STARTED)
def test_settings_change_round_0(init: str, key: str) -> None:
    cfg = config(f"init={init}", *TINY)
    channel = build_channel(cfg.corruption, cfg.dataset.shape)
    assert isinstance(channel, LinearChannel)
    x = torch.rand(N, *channel.shape, generator=generator("x")) * 2 - 1
    measurements = simulate_measurements(x, channel, seed=0, split="train")

    def round_0(cfg: DictConfig) -> Tensor:
        prepared: Init = build(cfg.init, "init")
        module = SimpleNamespace(seed=0, device=torch.device("cpu"))
        data = SimpleNamespace(measurements=measurements)
        posterior = prepared.prepare(cast(Any, module), cast(Any, data), cast(Any, None))
        with seeded("round 0"):
            return posterior.draw(measurements.select(slice(None)))

    assert_differ(round_0(cfg), round_0(changed(cfg, key)))


class Hidden(Denoising):
    """An operator whose spectrum is not at hand."""

    def spectrum(self, operator: Tensor) -> None:  # type: ignore[override]
        return None


def test_a_mixture_that_cannot_be_fitted_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that one Gaussian has too, such as init.rank, have an effect."""
    monkeypatch.setattr("diffem.cli.checks.is_given", lambda key: key.startswith("init"))
    chosen: list[str] = []
    monkeypatch.setattr("diffem.cli.checks.is_chosen", lambda key: key in chosen)
    channel = make_channel(Hidden((1, 8, 8)), GaussianNoise(0.1))
    unused = ["init.components", "init.shrinkage"]
    for init, given, expected in (
        ("mixture", ["init"], [*unused, "init=mixture"]),
        ("mixture", [], unused),
        ("gaussian", ["init"], []),
    ):
        chosen[:] = given
        cfg = composed(f"init={init}")
        objective = build(cfg.method.objective, "method.objective")
        assert [key for key, _ in unused_settings(cfg, objective, channel)] == expected


def test_settings_that_a_comparison_gives_to_all_rows_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They have no effect in some rows, which the run says instead of ending."""
    monkeypatch.setattr("diffem.cli.checks.is_given", lambda key: True)
    monkeypatch.setattr("diffem.cli.checks.is_chosen", lambda key: False)
    diffem, rival = composed(), composed("method=em_mmps", "prior=null")

    def unused(cfg: DictConfig, *, learn: tuple[str, ...] = ()) -> set[str]:
        objective = build(cfg.method.objective, "method.objective")
        channel = make_channel(Denoising((1, 8, 8)), GaussianNoise(0.1), learn=learn)
        return {key for key, _ in unused_settings(cfg, objective, channel)}

    guard, relax = "em.guard", "em.relax"
    unlearned = {"blind", guard, relax, "metric.prior"}
    assert unused(diffem, learn=("noise",)) == {guard, relax}
    assert unused(diffem) == {"blind"}
    assert unused(rival) == {"blind", "metric.prior"}
    assert unused(composed("method=em_mmps")) == {"blind", "prior"}
    masked = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    learned = make_channel(masked.forward_operator, GaussianNoise(0.1), learn=("noise",))
    for cfg, channel, expected in (
        (diffem, masked, {"blind"}),
        (diffem, learned, {guard, relax}),  # scores under two channels do not compare
        (composed("method=supervised", "prior=null"), masked, unlearned),
        (composed("method=ambient", "prior=null"), masked, unlearned),
        (diffem, make_channel(Hidden((1, 8, 8)), GaussianNoise(0.1)), {"blind", relax}),
    ):
        objective = build(cfg.method.objective, "method.objective")
        found = {key for key, _ in unused_settings(cfg, objective, channel)}
        assert found - {"init.components", "init.shrinkage"} == expected


@pytest.mark.parametrize("recorded", [False, True])
def test_the_law_of_recorded_operators_has_no_effect(
    recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffem.cli.checks.is_given", lambda key: key == "corruption.rho")
    operator, cfg = Mask((1, 8, 8), rho=0.5), composed()
    own = Recorded(operator, torch.ones(2, 1, 8, 8)) if recorded else operator
    objective = build(cfg.method.objective, "method.objective")
    channel = make_channel(own, GaussianNoise(0.1))
    found = [key for key, _ in unused_settings(cfg, objective, channel)]
    assert found == (["corruption.rho"] if recorded else [])


COILS = "{_target_:diffem.corruption.MultiCoil,coils:4,acceleration:2.0}"


@pytest.mark.parametrize(
    ("corruption", "said"),
    [
        (["chain"], "corruption.parts.0.sigma must be given with dataset=measurements"),
        (["multicoil", "corruption.coils=4"], "corruption.coils=4 simulates the coils"),
        (["phase_retrieval", "corruption.masks=3"], "corruption.masks=3 simulates the masks"),
        (["chain", f"corruption.parts=[{COILS}]"], "corruption.coils=4 simulates the coils"),
    ],
)
def test_a_benchmark_s_instrument_is_not_that_of_own_measurements(
    corruption: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, *keys = corruption
    given = ["corruption", *(key.partition("=")[0] for key in keys), "corruption.noise.std"]
    monkeypatch.setattr("diffem.cli.compose._given_keys", lambda: given)
    cfg = composed("dataset=measurements", "dataset.path=y", f"corruption={chosen}", *keys)
    with pytest.raises(UserError, match=said):
        check_channel_given(cfg)
