"""Issue 11, A 5: the weights of a stranger can build nothing else, and cost bounded memory."""

import copy
import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffem
from diffem import __version__
from diffem.result import Description, build_channel, build_denoiser, read_weights, write_weights
from diffem.runtime.errors import UserError

CONFIG: dict[str, Any] = {
    "dataset": {"shape": [1, 8, 8]},
    "em": {"chunk_size": 4},
    "method": {
        "posterior": {
            "_target_": "diffem.posterior.Conditional",
            "_partial_": True,
            "condition": {"_target_": "diffem.denoiser.Conditioning", "maps": True, "fuse": None},
        }
    },
    "trainer": {"precision": "32-true"},
    "corruption": {
        "_target_": "diffem.corruption.Mask",
        "rho": 0.5,
        "learn": [],
        "noise": {"_target_": "diffem.corruption.GaussianNoise", "std": 0.1},
    },
    "network": {
        "_target_": "diffem.network.UNet",
        "channels": [16],
        "blocks": [1],
        "attention": [],
        "heads": 4,
        "dropout": 0.0,
    },
    "sampler": {"_target_": "azula.sample.DDPMSampler", "_partial_": True, "steps": 2},
    "schedule": {"_target_": "azula.noise.VESchedule", "sigma_min": 0.1, "sigma_max": 10.0},
    "seed": 0,
}


def saved(path: Path, config: Any, **about: Any) -> Path:
    """Writes a run that has these settings, and weights of the right ones."""
    channel = build_channel(CONFIG["corruption"], CONFIG["dataset"]["shape"])
    state = build_denoiser(CONFIG, cond_channels=3).state_dict()
    file = path / "checkpoints" / "posterior.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    described = Description(**{"config": config, "cond_channels": 3, **about})
    write_weights(file, state, described, channel)
    return path


def test_what_is_broken_below_is_intact(tmp_path: Path) -> None:
    result = diffem.load(saved(tmp_path / "run", CONFIG), device="cpu")
    assert result.posterior.sample(torch.zeros(2, 1, 8, 8)).shape == (1, 2, 1, 8, 8)


def change(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(config: dict[str, Any]) -> None:
        node = config
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to

    return apply


def remove(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(key)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def deepinv(physics: str, **arguments: object) -> Callable[[dict[str, Any]], None]:
    return change(
        "corruption",
        to={
            "_target_": "diffem.corruption.DeepInverse",
            "physics": physics,
            "arguments": arguments,
            "generator": None,
            "generator_arguments": None,
            "learn": [],
            "noise": CONFIG["corruption"]["noise"],
        },
    )


TOUCH = {"_target_": "pathlib.Path.touch", "self": "marker"}
MASK = {"_target_": "diffem.corruption.Mask", "rho": 0.5}
SETTINGS = {
    "a function": (change("sampler", to=TOUCH), "sampler._target_=pathlib.Path.touch is"),
    "a function below": (change("sampler", "x", to=TOUCH), "sampler.x is not a key of azula"),
    "a function in a list": (change("network", "channels", to=[TOUCH]), "channels.0._target_=pa"),
    "a function beside": (change("x", to=[TOUCH]), "x.0._target_=pathlib.Path.touch is not"),
    "a method": (
        change("schedule", to={"_target_": "azula.noise.VESchedule.load_state_dict"}),
        "schedule._target_=azula.noise.VESchedule.load_state_dict is not allowed",
    ),
    "another place": (change("network", to=MASK), "network._target_=diffem.corruption.Mask"),
    "a part": (change("network", "_partial_", to=True), "network._partial_=true is not allowed"),
    "no part": (change("sampler", "_partial_", to=False), "sampler._partial_=false is not"),
    "arguments": (change("network", "_args_", to=[1]), "network._args_ is not allowed"),
    "trust": (
        lambda config: config.update(trust=["evil"], sampler={"_target_": "evil.Sampler"}),
        "sampler._target_=evil.Sampler is not allowed",
    ),
    "a resolver": (change("x", to="${oc.create:{a:1}}"), "x holds an interpolation that"),
    "channels": (change("network", "channels", to=[10**9]), "channels.0=1000000000 is more"),
    "more channels": (change("network", "channels", to=[32]), "are of another network"),
    "levels": (change("network", "channels", to=[16] * 30), "blocks must have one number"),
    "blocks": (change("network", "blocks", to=[10**9]), "blocks.0=1000000000 is more than its w"),
    "heads": (change("network", "heads", to=10**12), "network.heads=1000000000000 is more than"),
    "sides": (change("dataset", "shape", to=[1, 10**9, 10**9]), "has more than 268435456 values"),
    "a side": (change("dataset", "shape", to=[1, -8, 8]), "shape: each must be a whole number"),
    "no shape": (change("dataset", "shape", to=None), "dataset.shape must be a list of sides"),
    "a kernel": (
        change(
            "corruption",
            to={**CONFIG["corruption"], "_target_": "diffem.corruption.Blur", "rho": 1},
        ),
        "corruption.rho is not a key of diffem.corruption.Blur",
    ),
    "rows": (
        change(
            "corruption",
            to={
                "_target_": "diffem.corruption.Projection",
                "rows": 10**12,
                "learn": [],
                "noise": CONFIG["corruption"]["noise"],
            },
        ),
        "corruption.rows must be at most 1000000, got 1e+12",
    ),
    "a class of deepinv": (deepinv("LinearPhysics"), "is none of deepinv's that were tried"),
    "a function of deepinv": (deepinv("os.system"), "os.system is none of deepinv's that were tr"),
    "a matrix of deepinv": (
        deepinv("CompressedSensing", m=10**6),
        "corruption.arguments: m must be a number in [-4096, 4096], got 1000000",
    ),
    "an argument of deepinv": (deepinv("Blur", device="cuda"), "Blur may be given padding, use"),
    "steps": (change("sampler", "steps", to=10**18), "sampler.steps must be a whole number of"),
    "a precision": (change("trainer", "precision", to="64"), "trainer.precision must be one of"),
    "chunks": (change("em", "chunk_size", to=0), "em.chunk_size must be a whole number of at"),
    "a seed": (change("seed", to="0"), "seed must be a whole number, got '0'"),
    "no posterior": (change("method", to={}), "the settings have no method.posterior"),
    "a text": (change("method", "posterior", to="x"), "method.posterior must be a part with a _t"),
    "no target": (change("sampler", to={"a": 1}), "sampler must be a part with a _target_"),
    "a number": (change("corruption", "noise", to=5), "corruption.noise must be a part with a _t"),
    "a number below": (
        change("method", "posterior", "condition", to=5),
        "method.posterior.condition must be a part with a _target_",
    ),
    "what to learn": (change("corruption", "learn", to=5), "a list of what to learn"),
    "steps of text": (change("sampler", "steps", to="a"), "sampler.steps must be a whole number"),
    "no network": (remove("network"), "the settings have no network"),
    "a list": (change("trainer", to=[]), "the settings have no trainer"),
    "nesting": (change("x", to=nested(400)), "is nested more than 50 deep"),
    "values": (change("x", to=[0] * 10**5), "more than 20000 values"),
}  # fmt: skip
ABOUT = {
    "no settings": ({"config": 3}, "the settings must be a mapping, got int"),
    "channels": ({"cond_channels": 10**12}, "cond_channels must be a whole number of at most"),
    "no channels": ({"cond_channels": "3"}, "cond_channels must be a whole number"),
    "a scale": ({"scale": [0, 1, 2]}, "scale must be two numbers"),
    "an infinite scale": ({"scale": [0, float("inf")]}, "scale must be two numbers"),
    "estimates": ({"estimates": {"noise": "1"}}, "estimates must be numbers by name"),
    "unknown estimates": ({"estimates": {"x": 1.0}}, "the channel has no x that was learned"),
    "a format": ({"format": {"suffix": "/etc"}}, "format must have suffix, dtype, channel_axis"),
    "removed": ({"removed": 2}, "removed must be a number in [0, 1)"),
    "a round": ({"round": -1}, "round must be a whole number of at least 0"),
    "a size": ({"size": 1.5}, "size must be a whole number of at least 0"),
}


def refused(run: Path, sentence: str) -> None:
    """Loads a run, which is refused in one sentence, in time and with little memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError) as error:
        diffem.load(run, device="cpu")
    text = str(error.value)
    assert sentence in text and "\n" not in text and len(text) < 1500
    assert time.monotonic() < started + 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # KiB


@pytest.mark.parametrize("name", SETTINGS)
def test_hostile_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    break_it, sentence = SETTINGS[name]
    config = copy.deepcopy(CONFIG)
    break_it(config)
    refused(saved(tmp_path / "run", config), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ABOUT)
def test_hostile_descriptions(name: str, tmp_path: Path) -> None:
    given, sentence = ABOUT[name]
    about = {"config": CONFIG, **given}
    refused(saved(tmp_path / "run", about.pop("config"), **about), sentence)


def file_of(tmp_path: Path, description: str, *, size: int = 4) -> Path:
    """Writes a file of weights by hand; its one tensor is a hole."""
    header = json.dumps(
        {
            "__metadata__": {"diffem": description},
            "a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
        }
    ).encode()
    file = tmp_path / "run" / "checkpoints" / "posterior.safetensors"
    file.parent.mkdir(parents=True)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + size)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "description",
    ["[" * 10**5, '{"a":' * 10**5, "9" * 10**4, "null", "[]", '{"version": 1}', '{"x": ' + "1}"],
    ids=range(7),
)
def test_descriptions_that_are_none(description: str, tmp_path: Path) -> None:
    refused(file_of(tmp_path, description), "its description is damaged")


def test_a_file_that_is_a_hole(tmp_path: Path) -> None:
    """Of 4 TB by its own account: it is not read before its settings."""
    about = {"version": __version__, "config": CONFIG, "cond_channels": 3}
    refused(file_of(tmp_path, json.dumps(about), size=2**42), "run")


def test_trust_is_none_of_a_file_s(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", {**CONFIG, "trust": ["evil"]})
    assert "trust" in read_weights(run / "checkpoints" / "posterior.safetensors").about.config
    diffem.load(run, device="cpu")  # it is data, and trusts nobody
