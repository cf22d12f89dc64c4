"""The result as an object: what `diffem.load` and `diffem.fit` give is what the run learned."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from command import train
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor

import diffem
from diffem import MeasurementSet, Scale, UserError, measurement_of
from diffem.report import RunReport
from diffem.report.scorer import Scorer
from diffem.result import PosteriorSampler, read_weights
from diffem.result.result import newest_round
from diffem.runtime.rng import generator

pytestmark = pytest.mark.usefixtures("white_figures")
TINY = (
    *("em.steps_per_round=4", "em.chunk_size=16", "network.channels=[16]", "network.blocks=[1]"),
    *("sampler.steps=4", "prior.steps=3", "metric.prior=8", "metric.samples=2"),
    *("init.iterations=1", "init.components=2"),
)
LOW, HIGH = 100.0, 1000.0  # the range of the test's units


def digits(n: int) -> np.ndarray:
    """Returns clean digits in units of their own, (n, 8, 8)."""
    return load_digits(return_X_y=True)[0].reshape(-1, 8, 8)[:n] / 16 * (HIGH - LOW) + LOW


def masked(n: int, *, std: float = 20.0) -> np.ndarray:
    """Returns noisy digits of which 40 % of the pixels are NaN, (n, 8, 8)."""
    rng = np.random.default_rng(0)
    y = digits(n) + std * rng.standard_normal((n, 8, 8))
    y[rng.random(y.shape) < 0.4] = np.nan
    return y


def fit(y: np.ndarray, run_dir: Path, *overrides: str, **given: str) -> diffem.Result:
    return diffem.fit(
        y,
        corruption=given.get("corruption", "mask"),
        noise=20.0,
        rounds=1,
        run_dir=run_dir,
        overrides=[*TINY, f"dataset.range=[{LOW},{HIGH}]", *overrides],
    )


Run = tuple[diffem.Result, Tensor]


def recorded_fit(y: np.ndarray, run_dir: Path, *overrides: str) -> Run:
    """Returns a run's result, and the held-out samples that its report had."""
    seen: list[Tensor] = []
    score = Scorer.score_heldout

    def record(self: Scorer, samples: Tensor, *rest: Any) -> dict[str, Any]:
        seen.append(samples)
        return score(self, samples, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "score_heldout", record)
        return fit(y, run_dir, *overrides), seen[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one round on masked digits."""
    return recorded_fit(masked(60), tmp_path_factory.mktemp("runs") / "mine")


def heldout(n: int = 60) -> np.ndarray:
    """Returns the rows that are held out of n measurements."""
    order = torch.randperm(n, generator=generator("held-out", n))
    return order[: max(2, round(0.1 * n))].sort().values.numpy()


def test_load_draws_the_bytes_of_the_runs_own_evaluation(
    run: Run,
) -> None:
    result, seen = run
    loaded = diffem.load(result.path, device="cpu")
    samples = loaded.posterior.sample(masked(60)[heldout()], n=2)
    assert samples.shape == (2, 6, 8, 8)
    assert torch.equal(samples, loaded.scale.denormalise(seen.double()).float().squeeze(2))
    assert loaded.summary is not None and "residual_chi2" in loaded.summary["final"]
    other = loaded.posterior.sample(masked(60)[heldout()], n=2, seed=1)
    assert not torch.equal(samples, other)


def test_files_keep_the_digits_of_values_that_are_large_and_alike(run: Run) -> None:
    """Near 1e9 a float32 is one of 64 units."""
    sampler = diffem.load(run[0].path, device="cpu").posterior
    near = np.concatenate([chunk.numpy() for chunk in sampler.chunks(rows(sampler, 0.0), 1)])
    far = np.concatenate([chunk.numpy() for chunk in sampler.chunks(rows(sampler, 1e9), 1)])
    # The spacing of float64 at 1e9, and that of the network's float32 in units of the range.
    np.testing.assert_allclose(far - 1e9, near, rtol=0, atol=1.2e-7 + 1e-6 * (HIGH - LOW))


def rows(sampler: PosteriorSampler, offset: float) -> MeasurementSet:
    """Returns measurements in units that are shifted, and shifts those of a sampler."""
    sampler.scale = Scale(LOW + offset, HIGH + offset)
    measurement = measurement_of(masked(4) + offset, sampler.channel, sampler.scale)
    return MeasurementSet(measurement, sampler.channel, scale=sampler.scale)


def test_samples_are_in_the_data_s_units(run: Run) -> None:
    """Measured pixels come back near what was measured: a wrong scale misses by hundreds."""
    result, _ = run
    y = masked(60)[:8]
    error = (result.posterior.sample(y, n=4).mean(dim=0).numpy() - y)[~np.isnan(y)]
    assert np.abs(error).mean() < 60  # 3 σ_y; the range is 900
    assert result.prior is not None
    drawn = result.prior.draw(4).squeeze(1)  # on the scale of [-1, 1]
    expected = LOW + (drawn + 1) / 2 * (HIGH - LOW)
    rounding = 1e-6 * (HIGH - LOW)  # of float32
    assert torch.allclose(result.prior.sample(4), expected, rtol=1e-5, atol=rounding)
    assert (result.scale.low, result.scale.high) == (LOW, HIGH)
    with_channel = result.posterior.sample(y[:, None], n=1)
    assert with_channel.shape == (1, 8, 1, 8, 8)


def test_a_run_directory_that_was_copied_has_all_that_it_needs(run: Run, tmp_path: Path) -> None:
    result, _ = run
    copy = tmp_path / "copy é = (1)"
    shutil.copytree(result.path, copy)
    shutil.rmtree(copy / ".hydra")
    y = masked(4)
    assert torch.equal(diffem.load(copy).posterior.sample(y), result.posterior.sample(y))
    alone = tmp_path / "posterior.safetensors"
    shutil.copy(copy / "checkpoints" / alone.name, alone)
    loaded = diffem.load(alone)
    assert torch.equal(loaded.posterior.sample(y), result.posterior.sample(y))
    assert loaded.prior is None and loaded.summary is None


def test_the_channel_draws_masks_like_those_of_the_measurements(
    run: Run,
) -> None:
    result, _ = run
    drawn = result.channel.draw(torch.zeros(64, 1, 8, 8), torch.Generator().manual_seed(0))
    recorded = ~np.isnan(masked(60))
    assert all(
        (recorded == mask.bool().numpy()[0]).all(axis=(1, 2)).any() for mask in drawn.operator
    )
    # The noise on the scale of [-1, 1].
    assert torch.allclose(drawn.noise, torch.full((64, 1), 20.0 * 2 / (HIGH - LOW)))


def test_the_same_call_gives_the_same_result_and_other_measurements_are_refused(
    run: Run,
) -> None:
    result, _ = run
    y = masked(60)
    again = fit(y, result.path)
    assert torch.equal(again.posterior.sample(y[:3]), result.posterior.sample(y[:3]))
    with pytest.raises(UserError, match="holds a run on other measurements"):
        fit(y[:50], result.path)
    with pytest.raises(UserError, match=r"another config: sampler\.steps was 4"):
        fit(y, result.path, "sampler.steps=5")


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=em_mmps", "method.posterior.iterations=1"),
        ("method=em_mmps_cov_x", "method.posterior.covariance.rank=4"),  # fits moments
        ("method=ambient",),  # its prior is drawn under a mask
        ("method.objective.p_uncond=0.2",),  # one network
        ("method=reflected", "schedule.sigma_max=5"),
        ("sampler.bounds=[-1,1]",),
        ("corruption.learn=[noise]", "blind.iterations=2", "blind.samples=16"),
    ],
)
def test_every_method_is_restored(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    result, seen = recorded_fit(masked(40), tmp_path / "run", *overrides)
    samples = result.posterior.sample(masked(40)[heldout(40)], n=2)
    assert torch.equal(samples, result.scale.denormalise(seen.double()).float().squeeze(2))
    assert result.prior is not None and result.prior.sample(3).isfinite().all()


UNET = {
    "_target_": "diffem.network.UNet",
    "blocks": [1],
    "attention": [],
    "heads": 4,
    "dropout": 0.0,
}
BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("unfinished", lambda f: f.unlink(), "is not finished: .*posterior.safetensors is missing"),
    ("truncated", lambda f: f.write_bytes(f.read_bytes()[:1000]), "cannot be read"),
    ("empty", lambda f: f.write_bytes(b""), "cannot be read"),
    ("no description", lambda f: save_file(load_file(f), f), "carries no description of the run"),
    ("another version", lambda f: rewrite(f, version="0.3.1"), "was written by diffem 0.3.1"),
    ("no version", lambda f: rewrite(f, version=3), "description is damaged"),
    ("missing field", lambda f: rewrite(f, config=None), "description is damaged"),
    (
        "hostile",
        lambda f: rewrite(f, network={"_target_": "os.system", "command": "touch hostile"}),
        "network._target_=os.system is not allowed",
    ),
    (
        "another network",
        lambda f: rewrite(f, network={"_target_": "diffem.network.MLP", "width": 4}),
        "network=mlp needs vectors",
    ),
    (
        "a wider network",
        lambda f: rewrite(f, network={**UNET, "channels": [32]}),
        "the weights are of another network than its settings",
    ),
]


def rewrite(
    file: Path, *, version: object = None, round: int | None = None, **config: object
) -> None:
    """Changes the description that a file of weights carries."""
    with safetensors.safe_open(file, "pt") as held:
        about = json.loads(held.metadata()["diffem"])
    about["version"] = version or about["version"]
    about["round"] = about["round"] if round is None else round
    if config.get("config", 0) is None:
        del about["config"]
    else:
        about["config"] |= config
    save_file(load_file(file), file, {"diffem": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "sentence"), [case[1:] for case in BROKEN], ids=[c[0] for c in BROKEN]
)
def test_a_broken_file_is_refused_in_one_sentence(
    run: Run,
    tmp_path: Path,
    change: Callable[[Path], object],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run[0].path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    change(tmp_path / "run" / "checkpoints" / "posterior.safetensors")
    with pytest.raises(UserError, match=sentence):
        diffem.load(tmp_path / "run")
    assert not (tmp_path / "hostile").exists()


def test_weights_of_different_rounds_are_not_one_result(run: Run, tmp_path: Path) -> None:
    """A run that was given more rounds writes its files of weights anew one after the other."""
    path = tmp_path / "run"
    shutil.copytree(run[0].path, path)
    prior = path / "checkpoints" / "prior.safetensors"
    rewrite(prior, round=0)
    sentence = f"{prior} is of round 0, and posterior.safetensors beside it of round "
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}[0-9]+: resume the run until"):
        diffem.load(path)
    assert diffem.load(prior.with_name("posterior.safetensors")).prior is None


def test_weights_of_fewer_rounds_than_the_run_has_by_now(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(run[0].path, path)
    k = diffem.load(path).round
    assert "warning" not in capsys.readouterr().err
    held = json.loads((path / "rounds.json").read_text())
    held["rounds"].append({**held["rounds"][-1], "round": k + 1})
    (path / "rounds.json").write_text(json.dumps(held))
    assert diffem.load(path).round == k
    said = f"its weights are of round {k}, and round {k + 1} is done; resume it"
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_summary_can_be_written_again(run: Run, tmp_path: Path, content: str) -> None:
    """As it says: not by `diffem evaluate`, which reads it too."""
    path = tmp_path / "run"
    shutil.copytree(run[0].path, path)
    summary = path / "summary.json"
    summary.write_text(content)
    with pytest.raises(UserError, match=f"move it away, and `diffem train resume={path}`"):
        diffem.load(path)
    summary.unlink()
    done = train(f"resume={path}")
    assert done.returncode == 0, done.stderr
    assert diffem.load(path).summary == json.loads(summary.read_text())


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_damaged_round_of_a_finished_run_is_drawn_again(
    damage: Callable[[Path], object], run: Run, tmp_path: Path
) -> None:
    """As it says: the same command, of an export or an erasure, draws nothing."""
    path = tmp_path / "run"
    shutil.copytree(run[0].path, path)
    chunk = max((path / "reconstructions").glob("round_*")) / "chunk_00000.npy"
    before = chunk.read_bytes()
    damage(chunk)
    advice = f"move {path / 'summary.json'} away, and `diffem train resume={path}` draws"
    with pytest.raises(UserError, match=re.escape(f"{chunk} is missing or damaged; {advice}")):
        newest_round(read_weights(path / "checkpoints/posterior.safetensors").about, path)
    (path / "summary.json").unlink()
    done = train(f"resume={path}")
    assert done.returncode == 0, done.stderr
    assert chunk.read_bytes() == before


def test_what_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    result, _ = run
    for y, sentence in (
        (np.zeros((2, 9, 7)), "have shape"),
        (np.full((2, 8, 8), np.inf), "infinity"),
        (np.zeros((2, 8, 8), complex), "real numbers"),
        (np.zeros((0, 8, 8)), "no measurement"),
        (np.zeros((0, 9, 9)), "no measurement"),
    ):
        with pytest.raises(UserError, match=sentence):
            result.posterior.sample(y)
    with pytest.raises(UserError, match="n must be a whole number"):
        result.posterior.sample(masked(2), n=0)
    assert result.prior is not None
    for sampler, of in ((result.posterior.sample, masked(2)), (result.prior.sample, 2)):
        for seed in ("1", 1.0, True):
            with pytest.raises(UserError, match="seed must be a whole number"):
                sampler(of, seed=seed)  # type: ignore[operator]
        assert torch.equal(sampler(of, seed=np.int64(3)), sampler(of, seed=3))  # type: ignore[operator]
    assert result.posterior.sample(masked(2), n=np.int64(2)).shape[0] == 2  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds a prior alone; give the run directory"):
        diffem.load(result.path / "checkpoints" / "prior.safetensors")
    with pytest.raises(UserError, match=f"a part of a run; give the run directory, {result.path}"):
        diffem.load(result.path / "checkpoints")
    with pytest.raises(UserError, match="trust must be a list such as"):
        diffem.load(result.path, trust="mypackage")
    with pytest.raises(UserError, match="holds no run"):
        diffem.load(tmp_path)
    for device in ("cuda:7", "nonsense", "meta", "hpu", ""):
        with pytest.raises(UserError, match=f"device={device} is not on this machine"):
            diffem.load(result.path, device=device)
    with pytest.raises(UserError, match="corruption=nonsense is not a choice"):
        fit(masked(10), tmp_path / "new", corruption="nonsense")
    with pytest.raises(UserError, match="fit runs on one device"):
        fit(masked(10), tmp_path / "new", "trainer.devices=2")
    assert not (tmp_path / "new").exists()


def process_state() -> list[object]:
    return [
        *(signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)),
        *(
            list(sys.argv),
            random.getstate(),
            str(np.random.get_state()),
            torch.get_default_dtype(),
        ),
        *(torch.get_rng_state().tolist(), os.getcwd(), torch.is_grad_enabled()),
    ]


def test_a_fit_leaves_the_process_as_it_was(run: Run, tmp_path: Path) -> None:
    """Also in a thread, and where tensors are float64 by default: the weights are the same."""
    y, before = masked(60), process_state()
    other = fit(y, tmp_path / "again")
    assert process_state() == before
    assert torch.equal(other.posterior.sample(y[:3]), run[0].posterior.sample(y[:3]))
    found: list[Tensor] = []

    def in_a_thread() -> None:
        with torch.inference_mode():
            found.append(fit(y, tmp_path / "thread").posterior.sample(y[:3]))

    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        found.append(diffem.load(tmp_path / "thread").posterior.sample(y[:3]))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, run[0].posterior.sample(y[:3])) for x in found) and len(found) == 2


def test_a_call_that_was_refused_can_be_corrected(tmp_path: Path) -> None:
    y = masked(10)
    with pytest.raises(UserError, match="holds infinity"):
        fit(np.where(np.isnan(y), np.inf, y), tmp_path / "run")
    fit(y, tmp_path / "run")


def test_an_interrupted_fit_is_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, on_round = masked(60), RunReport.on_round
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunReport, "on_round", lambda *_: signal.raise_signal(signal.SIGINT))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            fit(y, tmp_path / "run")
        finally:
            signal.signal(signal.SIGINT, before)
    assert RunReport.on_round is on_round
    assert torch.equal(
        fit(y, tmp_path / "run").posterior.sample(y[:3]), run[0].posterior.sample(y[:3])
    )


Y = torch.ones(8, 4, 4)
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Y.to(torch.complex64), {}, "y must be real numbers"),
    (None, {}, "y must be real numbers"),
    ("y.npy", {}, "y must be real numbers"),
    ([Y[0].tolist(), Y[0, 0].tolist()], {}, "rows of one shape"),
    (np.ma.masked_less(np.arange(32.0).reshape(8, 2, 2), 3), {}, "is a masked array"),
    ({"y": Y, "mask": Y}, {}, "must hold y, and may hold operator, std, truth; got y, mask"),
    ({}, {}, "must hold y, .*; got nothing"),
    ({"y": Y, "truth": None}, {}, "truth must be real numbers"),
    (Y, {"corruption": ""}, "corruption must be the name of a choice, got ''"),
    (Y, {"corruption": ["mask"]}, "corruption must be the name of a choice"),
    (Y, {"network": "unet seed=1"}, "network must be the name of a choice"),
    (Y, {"overrides": "seed=1"}, "overrides must be a list such as"),
    (Y, {"overrides": [1]}, "overrides must be a list such as"),
    (Y, {"overrides": ["run_dir=other"]}, "run_dir=other is not for fit"),
    (Y, {"overrides": ["resume=other"]}, "resume=other is not for fit"),
    (Y, {"overrides": ["dataset=digits"]}, "dataset=digits is not for fit"),
    (Y, {"overrides": ["+dataset.path=y.npy"]}, "dataset.path=y.npy is not for fit"),
    (Y, {"overrides": ["em.rounds=3"]}, "em.rounds=3 is not for fit"),
    (Y, {"overrides": ["hydra.run.dir=x"]}, "hydra.run.dir=x is not for fit"),
    (Y, {"overrides": ["-m"]}, "-m is not for fit"),
    (Y, {"noise": 1.0, "overrides": ["corruption.noise.std=2"]}, "noise.std=2 is not for fit"),
    (Y, {"run_dir": "${seed}"}, "must be a path without"),
    (Y, {"noise": 1.0, "run_dir": "/dev/null"}, "/dev/null cannot be made"),
]


@pytest.mark.parametrize(("y", "given", "sentence"), REFUSED)
def test_what_fit_is_not_given(
    y: Any, given: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        diffem.fit(y, **{"corruption": "denoising", "run_dir": "run", **given})
    assert not list(tmp_path.iterdir())


def test_import_is_cheap_and_loading_needs_neither_hydra_nor_lightning(
    run: Run,
) -> None:
    code = (
        "import sys, diffem; assert 'torch' not in sys.modules; dir(diffem)\n"
        "run = diffem.load(sys.argv[1]); run.prior.sample(1)\n"
        "assert not {'hydra', 'lightning'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code, str(run[0].path)], check=True)
    for name in diffem.__all__:
        assert getattr(diffem, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        diffem.nonsense  # noqa: B018
