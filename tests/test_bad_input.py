"""A user's mistake is told in one sentence, and nothing is written."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from command import ROOT

BAD = [
    (
        ["corruption=fog"],
        "corruption=fog is not a choice; corruption can be: blur, downsample, mask",
    ),
    (["em.foo=1"], "em.foo is not a key of the config; allowed: em.rounds"),
    (["foo.bar=1"], "foo.bar is not a key of the config; allowed: dataset, corruption"),
    (
        ["corruption=blur", "corruption.rho=0.5"],
        "allowed: corruption.sigma, corruption.kernel_size",
    ),
    (["corruption.rho=1.0"], "corruption.rho must be a number in [0, 1), got 1.0"),
    (["corruption=blur", "corruption.kernel_size=4"], "corruption.kernel_size must be odd"),
    (["corruption.noise.std=-1"], "corruption.noise.std must be a positive number"),
    (["em.rounds=0"], "em.rounds must be a whole number of at least 1, got 0"),
    (["em.rounds=many"], "em.rounds must be a whole number of at least 1, got 'many'"),
    (["sampler.steps=0"], "sampler.steps must be a whole number of at least 1, got 0"),
    (["prior.steps=0"], "prior.steps must be a whole number of at least 1, got 0"),
    (["trainer.accelerator=cpu", "trainer.devices=4096"], "trainer.devices must be in [1, "),
    (["trainer.accelerator=abacus"], "abacus"),
    (["trainer.accelerator=cpu", "trainer.num_nodes=2"], "started by torchrun or srun (docs/clu"),
    (
        ["dataset=fashion_mnist", "dataset.path=/nowhere"],
        "dataset.path: /nowhere has no train-images",
    ),
    (["dataset.shape=[1,9,9]"], "dataset.shape is [1, 9, 9], but the train images have shape"),
    (["dataset.train=5000"], "dataset.train must be in [1, 1796]"),
    (["init=checkpoint"], "init.path must be given: init.path=VALUE"),
    (["init=checkpoint", "init.path=/nowhere"], "init.path: no checkpoint at /nowhere"),
    (["network=mlp"], "use network=unet for images"),
    (["dataset=manifold", "corruption=projection"], "use network=mlp for vectors"),
    (["network.channels=[20,40]"], "network.channels must be multiples of 16"),
    (
        ["metric=classifier", "dataset=manifold", "corruption=projection", "network=mlp"],
        "no classifier at features/manifold.safetensors; train one with `make features",
    ),
    (["metric=inception", "metric.features.0.weights=/nowhere"], "weights: no file at /nowhere"),
    (["corruption.learn=[sigma]"], "corruption.learn can name noise of this corruption, got"),
    (
        ["corruption=blur", "corruption.learn=[sigma]", "corruption.sigma=[0.5,2]"],
        "corruption.sigma must be one number, the start, where corruption.learn names it",
    ),
    (["+assumed.sigma=2"], "assumed.sigma is not a key of the corruption; allowed: rho, noise"),
    (["+assumed.rho=1"], "corruption.rho must be a number in [0, 1), got 1"),
    (["method=ambient", "corruption=blur"], "method=ambient needs corruption=mask on images"),
    (["method=ambient", "method.objective.delta=0"], "method.objective.delta must be a number"),
    (["method.objective.p_uncond=1"], "method.objective.p_uncond must be a number in [0, 1)"),
    (["em.keep_rounds=1"], "em.keep_rounds must be a whole number of at least 2, got 1"),
    (["em.evaluations=0"], "em.evaluations must be positive or null, got 0"),
    (["init.variance=0"], "init.variance must be positive or null, got 0"),
    (["blind.widen=0.5"], "blind.widen must be at least 1, got 0.5"),
    (["run_dir"], "run_dir"),
]


def tell(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs the command in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return stop.value.code


@pytest.mark.parametrize(("overrides", "sentence"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_bad_input(
    overrides: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = tell([f"run_dir={tmp_path / 'run'}", *overrides], monkeypatch)
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert sentence in error
    assert not list(tmp_path.rglob("*.*"))  # no file was written


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tell([f"run_dir={tmp_path / 'run'}", "trainer.accelerator=gpu"], monkeypatch)
    error = capsys.readouterr().err
    assert code == 1 and error.startswith("error: trainer.accelerator=gpu, but torch finds no GPU")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "overrides", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, ["run_dir=x"], "but torchrun or srun started 2; devices are those"),
        ({"WORLD_SIZE": "2"}, ["trainer.devices=2"], "run_dir must be given where torchrun or"),
        ({"WORLD_SIZE": "2"}, ["-m", "seed=0,1", "run_dir=x"], "-m is started as one process"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, ["run_dir=x"], "process 1: error: trainer.devices=1"),
    ],
)
def test_processes_that_another_program_started(
    environment: dict[str, str],
    overrides: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("diffem.signals.die_with", lambda _: None)  # pytest is not torchrun's
    monkeypatch.chdir(tmp_path)
    assert tell(["trainer.accelerator=cpu", *overrides], monkeypatch) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_folder_with_other_files_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert tell([f"run_dir={tmp_path}"], monkeypatch) == 1
    assert "holds other files; choose an empty or new run_dir" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["thesis.tex"]
