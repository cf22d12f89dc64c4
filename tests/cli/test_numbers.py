"""Numbers that mean little are said or refused, and what is written is strict JSON.

Issue 11, D: a measurement of which nothing was measured, one held-out image, noise far below what
sampling leaves, more levels than the grid has.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from in_process import run_here

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.metric import Evaluation, PixelFeatures
from diffem.runtime.errors import UserError
from diffem.storage.strict_json import to_json

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")


def strict(path: Path) -> list[Any]:
    """Returns the JSON in a file, or in each of its lines; NaN and infinity are refused."""

    def refuse(constant: str) -> NoReturn:
        pytest.fail(f"{path} holds {constant}")

    text = path.read_text(encoding="utf-8")
    parts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(part, parse_constant=refuse) for part in parts]


def test_strict_json_has_null_for_what_is_no_number() -> None:
    value = {"a": float("nan"), "b": [1.5, float("-inf"), (2, None)], "c": {"d": "NaN"}}
    assert to_json(value) == '{"a": null, "b": [1.5, null, [2, null]], "c": {"d": "NaN"}}'


def test_measurements_that_measure_nothing_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, D 1, with more of them than 0.9 gives."""
    run_dir = run_here(tmp_path / "run", "corruption=mask", "corruption.rho=0.98")
    for file in [*run_dir.rglob("*.json"), *run_dir.rglob("*.jsonl")]:
        strict(file)
    channel = make_channel(Mask((1, 8, 8), rho=0.98), GaussianNoise(0.3))
    data = Digits([1, 8, 8], train=60).load()
    empty = {}
    for split, x in zip(("train", "heldout"), data, strict=True):
        drawn = simulate_measurements(x, channel, seed=0, split=split).select(slice(None))
        empty[split] = drawn.operator.flatten(1).sum(dim=1) == 0
    (summary,) = strict(run_dir / "summary.json")
    counts = {"residual_chi2": int(empty["train"].sum())}
    assert counts["residual_chi2"] > 0
    assert [row["left_out"] for row in summary["rounds"]] == 2 * [counts]
    assert summary["rounds"][0]["residual_chi2"] > 0
    heldout = int(empty["heldout"][:8].sum())
    assert summary["final"].get("left_out", {}) == ({"residual_chi2": heldout} if heldout else {})
    assert f"not defined for {counts['residual_chi2']} reconstructions" in capsys.readouterr().out


def test_a_score_of_nothing_is_null(tmp_path: Path) -> None:
    """Each of two held-out measurements measures nothing (checked below)."""
    overrides = ("corruption=mask", "corruption.rho=0.995", "metric.heldout=2", "seed=1")
    run_dir = run_here(tmp_path / "run", *overrides, "init=measurement")
    (summary,) = strict(run_dir / "summary.json")
    assert summary["final"]["left_out"] == {"residual_chi2": 2}
    assert summary["final"]["residual_chi2"] is None


def test_where_nothing_at_all_was_measured_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing was measured in the first 60") as error:
        run_here(tmp_path / "run", "corruption=mask", "corruption.rho=0.9999999")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "part"), [(1796, "there is 1 held-out image"), (1, "there is 1 training image")]
)
def test_scores_that_need_more_images_are_left_out_with_a_warning(
    train: int, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, D 2: it was a traceback after the training."""
    few = (f"dataset.train={train}", "metric.prior=4", "em.chunk_size=600")
    run_dir = run_here(tmp_path / "run", *few, "prior={steps:2}")
    told = capsys.readouterr().err
    assert told.count("is left out") == 1 and f"each needs 2 images, and {part}" in told
    (summary,) = strict(run_dir / "summary.json")
    assert ("diversity" in summary["final"]) == (train == 1)
    assert ("diversity" in summary["rounds"][-1]) == (train > 1)
    assert summary["final"]["prior"].keys() == {"samples", "nearest", "nearest_heldout"}


def test_a_feature_space_of_one_image_is_refused_before_the_training() -> None:
    evaluation = Evaluation(2, 2, 2, 2, features=[PixelFeatures((1, 8, 8))])
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.3))
    with pytest.raises(
        UserError, match=r"metric\.features: pixels needs 2 images, and there is 1"
    ):
        evaluation.fitting(channel, train=60, heldout=1)


def test_noise_far_below_what_sampling_leaves_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, D 3; what the warning advises brings χ² to the order of 1."""
    noise = "corruption.noise.std=1e-6"
    run_here(tmp_path / "fused", noise, "sampler=sde", "sampler.steps=4")
    assert "sigma_min" not in capsys.readouterr().err
    (fused,) = strict(tmp_path / "fused" / "summary.json")
    assert fused["rounds"][1]["residual_chi2"] < 10
    after = ("corruption=multicoil", "corruption.acceleration=2")  # y is fused after the network
    run_here(tmp_path / "coils", noise, "sampler=sde", "sampler.steps=4", *after)
    assert "set schedule.sigma_min=3.33e-07" in capsys.readouterr().err
    left = ("sampler=ddpm", noise)
    run_here(tmp_path / "weak", *left)
    told = capsys.readouterr().err
    advice = told.partition("; set ")[2].split()[0]
    assert told.count("schedule.sigma_min") == 2 and advice == "schedule.sigma_min=3.33e-07"
    (weak,) = strict(tmp_path / "weak" / "summary.json")
    assert weak["rounds"][1]["residual_chi2"] > 1e6
    run_here(tmp_path / "good", *left, advice)
    assert "sigma_min" not in capsys.readouterr().err
    (good,) = strict(tmp_path / "good" / "summary.json")
    assert good["rounds"][1]["residual_chi2"] < 10


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["corruption.noise.std=0"], "got 0; without noise, give about 1e-3 of the"),
        (["corruption.noise.std=1e300"], "corruption.noise.std must be in [1e-30, 1e+30]"),
        (["corruption.noise.std=1e20"], "on the scale of [-1, 1], must be in [1e-12, 1e+12]"),
        (["corruption=blur", "corruption.sigma=1e300"], "corruption.sigma must be in [0.001, 10"),
        (["sampler=ddim", "sampler.eta=-1"], "sampler.eta must be a number in [0, 1], got -1"),
        (["sampler=ddim", "sampler.eta=1e9"], "sampler.eta must be a number in [0, 1]"),
        (["sampler.steps=1180591620717411303424"], "sampler.steps must be a whole number of at"),
        (["em.chunk_size=1180591620717411303424"], "em.chunk_size must be a whole number of at"),
        (
            ["em.batch_size=1e9"],
            "em.batch_size must be a whole number of at least 1, got 1000000000.0",
        ),
        (["em.batch_size=1000000000"], "em.batch_size must be a whole number of at most 1048576"),
        (["dataset.shape=[1,100000,100000]"], "and at most 67108864 are allowed"),
        (["objective=''"], "objective must be a score of this run, got ''; it has"),
        (["objective=fid"], "objective must be a score of this run, got 'fid'; it has psnr"),
        (["m_step.optimizer.lr=0"], "m_step.optimizer.lr must be a positive number, got 0"),
        (["trainer.gradient_clip_val=1e-300"], "trainer.gradient_clip_val must be in [1e-18, 1e"),
        (["sampler=multistep", "sampler.order=1e9"], "sampler.order must be a whole number of at"),
        (["sampler=multistep", "sampler.order=9"], "sampler.order must be a whole number of at"),
        (
            ["network.channels=[16,16,16,16,16]", "network.blocks=[1,1,1,1,1]"],
            "one pixel at level 4; leave out the last of network.channels and network.blocks, as "
            "in network.channels=[16, 16, 16, 16] network.blocks=[1, 1, 1, 1]",
        ),
    ],
)
def test_values_without_a_meaning_are_refused(
    overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    """Issue 11, D 3 to D 5."""
    with pytest.raises(UserError) as error:
        run_here(tmp_path / "run", *overrides)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.*"))


def test_as_many_levels_as_the_message_allows_train(tmp_path: Path) -> None:
    four = ("network.channels=[16,16,16,16]", "network.blocks=[1,1,1,1]")
    run_here(tmp_path / "run", *four, "trainer.precision=bf16-mixed")
    assert strict(tmp_path / "run" / "summary.json")[0]["final"]["residual_chi2"] > 0
