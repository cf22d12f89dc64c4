"""`diffem export`: what is written is what the run learned, and is read as the run is."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import onnxruntime  # type: ignore[import-not-found]
import pytest
import torch
import yaml
from azula.noise import VESchedule
from in_process import run_here
from PIL import Image
from sklearn.datasets import load_digits

import diffem
from diffem.cli import export as command
from diffem.corruption import Blur, Downsample, GaussianNoise, LinearOperator, Radon, make_channel
from diffem.denoiser import Conditioning, Denoiser
from diffem.network import UNet
from diffem.posterior import Conditional
from diffem.posterior.ambient import MaskedDenoiser
from diffem.posterior.posterior import DenoiserPosterior
from diffem.result import onnx_graph
from diffem.result.card import _files
from diffem.result.export import export_run, write_array, write_dataset
from diffem.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("white_figures")
TINY = (
    *("em.steps_per_round=4", "em.chunk_size=16", "network.channels=[16]", "network.blocks=[1]"),
    *("sampler.steps=4", "prior.steps=3", "metric.prior=8", "metric.samples=2"),
    *("init.iterations=1", "init.components=2"),
)
LOW, HIGH = 100.0, 1000.0


def masked(n: int) -> np.ndarray:
    """Returns noisy digits of which 40 % of the pixels are NaN, (n, 8, 8)."""
    rng = np.random.default_rng(0)
    y = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)[:n] / 16 * (HIGH - LOW) + LOW
    y += 20 * rng.standard_normal(y.shape)
    y[rng.random(y.shape) < 0.4] = np.nan
    return y


def fit(run_dir: Path, *overrides: str, corruption: str = "mask", n: int = 60) -> diffem.Result:
    y = masked(n)
    return diffem.fit(
        y if corruption == "mask" else np.nan_to_num(y, nan=LOW),
        corruption=corruption,
        noise=20.0,
        rounds=1,
        run_dir=run_dir,
        overrides=[*TINY, f"dataset.range=[{LOW},{HIGH}]", *overrides],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> diffem.Result:
    """A run of one round on masked digits."""
    return fit(tmp_path_factory.mktemp("runs") / "mine")


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([(1, 1.0), (2, 1.0)], "made of 2 samples of p(x | y) (`em.relax`) for"),
        ([(2, 1.0), (1, 1.0)], "a sample of p(x | y) for"),
        ([(2, 1.0), (1, 0.0)], "made of 2 samples of p(x | y) (`em.relax`) for"),
        ([(2, 1.0), (None, None)], "a sample of p(x | y) for"),  # numbers that were not finite
        ([(2, 1.0), (1, 0.5)], "a sample of p(x | y), or made of 2 samples of p(x | y) (`em"),
    ],
)
def test_the_card_says_of_how_many_draws_reconstructions_are(
    rows: list[tuple[int | None, float | None]], drawn: str
) -> None:
    rounds = [{"draws": draws, "redrawn": redrawn} for draws, redrawn in rows]
    table = _files({"rounds": rounds}, ["reconstructions"])
    assert f"| reconstructions | {drawn}" in table.replace(r"\|", "|")


def last_round(result: diffem.Result) -> np.ndarray:
    """Returns the reconstructions of a run's last round in the data's units, float64."""
    chunks = sorted((result.path / "reconstructions" / "round_001").glob("*.npy"))
    x = np.concatenate([np.load(chunk) for chunk in chunks]).astype(np.float64)
    return x / (2 / (HIGH - LOW)) + (LOW + HIGH) / 2


def assert_same(exported: Path, result: diffem.Result, y: np.ndarray) -> None:
    loaded = diffem.load(exported, device="cpu")
    assert torch.equal(loaded.posterior.sample(y, n=2), result.posterior.sample(y, n=2))
    assert loaded.prior is not None and result.prior is not None
    assert torch.equal(loaded.prior.sample(3), result.prior.sample(3))
    assert loaded.summary == diffem.load(result.path).summary


def test_load_reads_what_was_exported(run: diffem.Result, tmp_path: Path) -> None:
    written = export_run(run.path, tmp_path / "out", reconstructions=None)
    moved = (tmp_path / "out").rename(tmp_path / "another place")
    assert_same(moved, run, masked(4))
    assert {*written} == {path.name for path in moved.iterdir()}
    # Also each file of weights alone, as that of a run.
    alone = shutil.copy(moved / "posterior.safetensors", tmp_path / "weights.safetensors")
    assert torch.equal(
        diffem.load(alone).posterior.sample(masked(2)), run.posterior.sample(masked(2))
    )
    drawn = diffem.load(moved).channel.draw(torch.zeros(8, 1, 8, 8), torch.Generator())
    assert {*drawn.operator.unique().tolist()} == {0.0, 1.0}  # masks of the measurements


def test_a_posterior_that_takes_moments_carries_them(tmp_path: Path) -> None:
    result = fit(
        tmp_path / "run", "method=em_mmps_cov_x", "method.posterior.covariance.rank=4", n=40
    )
    export_run(result.path, tmp_path / "out", reconstructions=None)
    shutil.rmtree(result.path / "reconstructions")
    loaded = diffem.load(tmp_path / "out" / "posterior.safetensors")
    assert torch.equal(loaded.posterior.sample(masked(2)), result.posterior.sample(masked(2)))


def test_reconstructions(run: diffem.Result, tmp_path: Path) -> None:
    expected = last_round(run)[:, 0]  # grey, as the measurements were
    export_run(run.path, tmp_path / "input")
    np.testing.assert_array_equal(
        np.load(tmp_path / "input" / "reconstructions" / "reconstructions.npz")["reconstructions"],
        expected,
    )
    export_run(run.path, tmp_path / "npy", reconstructions=write_array)
    held = np.load(tmp_path / "npy" / "reconstructions" / "reconstructions.npy")
    np.testing.assert_array_equal(held, expected.astype(held.dtype))


def test_reconstructions_as_a_data_set(
    run: diffem.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffem.result.export.ROWS", 25)  # several files
    export_run(run.path, tmp_path / "out", reconstructions=write_dataset)
    folder = tmp_path / "out" / "reconstructions"
    assert len(list(folder.glob("train-0000?-of-00003.parquet"))) == 3
    data = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.array(data[:]["x"]), last_round(run))
    assert data.features == {"x": datasets.Array3D((1, 8, 8), "float64")}


def test_images_come_back_as_images(tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    y = np.nan_to_num(masked(20), nan=LOW).clip(0, None).astype(np.uint16)
    for i, image in enumerate(y):
        Image.fromarray(image).save(tmp_path / "crops" / f"{i:03d}.png")
    path = f"dataset.path={tmp_path / 'crops'}"
    run_here(tmp_path / "run", "dataset=measurements", path, f"dataset.range=[{LOW},{HIGH}]")
    export_run(tmp_path / "run", tmp_path / "out")
    files = sorted((tmp_path / "out" / "reconstructions").iterdir())
    assert [f.name for f in files[:2]] == [
        "reconstructions_00000.png",
        "reconstructions_00001.png",
    ]
    assert len(files) == 18  # a tenth is held out
    image = np.asarray(Image.open(files[0]))
    assert image.dtype == np.uint16 and image.shape == (8, 8)


def test_the_card_says_what_it_is(run: diffem.Result, tmp_path: Path) -> None:
    written = export_run(run.path, tmp_path / "digits")
    card = (tmp_path / "digits" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "diffem"
    assert "from corrupted images alone" in text and "Recorded" not in text
    assert "| clean images seen | none |" in text and "100 and 1000 are −1 and 1" in text
    channel = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert channel["noise"]["std"] == 20.0 and channel["_target_"].endswith("Mask")
    assert run.summary is not None
    chi2 = run.summary["final"]["residual_chi2"]
    assert f"| `residual_chi2` | {chi2:.4g} |" in text
    for name in written:
        assert f"| {name} | " in text
    for line in text.splitlines():  # a | inside a cell would end it
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) == 3
    (block,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    names: dict[str, Any] = {"y": masked(2)}
    exec(compile(block.replace('"digits"', repr(str(tmp_path / "digits"))), "card", "exec"), names)
    assert names["x"].shape == (16, 2, 8, 8)


@pytest.mark.parametrize("method", ["diffem", "ambient"])
def test_onnx_gives_what_torch_gives(run: diffem.Result, tmp_path: Path, method: str) -> None:
    """Each file, at inputs that it was not checked with."""
    result = run if method == "diffem" else fit(tmp_path / "run", f"method={method}", n=40)
    export_run(result.path, tmp_path / "out", reconstructions=None, onnx=True)
    result = diffem.load(tmp_path / "out", device="cpu")
    posterior = result.posterior.posterior
    assert isinstance(posterior, DenoiserPosterior) and result.prior is not None
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(7, 1, 8, 8, generator=generator) * 2 - 1
    x_t, t = x + 2 * torch.randn(x.shape, generator=generator), torch.rand(7, generator=generator)
    measurement, mask = result.channel.draw(x, generator), (x > 0).float()
    given = {**measurement._asdict(), "x_t": x_t, "t": t, "mask": mask}
    denoiser, prior = posterior.denoiser, result.prior.prior.denoiser
    with torch.no_grad():
        if isinstance(posterior, Conditional):
            condition = posterior.condition(result.channel, measurement)
            expected = [denoiser(x_t, t, condition).mean, prior(x_t, t).mean]
            inputs = [["x_t", "t", "y", "operator"], ["x_t", "t"]]
        else:
            expected = [MaskedDenoiser(d, mask)(x_t, t).mean for d in (denoiser, prior)]
            inputs = [["x_t", "t", "mask"]] * 2
    card = (tmp_path / "out" / "README.md").read_text()
    for name, names, wanted in zip(("posterior", "prior"), inputs, expected, strict=True):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
        assert [node.name for node in session.get_inputs()] == names
        assert f"| `{name}.onnx` | {', '.join(f'`{i}`' for i in names)} |" in card
        (found,) = session.run(None, {key: given[key].numpy() for key in names})
        np.testing.assert_allclose(np.asarray(found), wanted.numpy(), rtol=0, atol=1e-4)


def graph_of(operator: LinearOperator, std: float | tuple[float, float]) -> onnx_graph.Conditioned:
    """Returns the graph of a network that was not trained."""
    channel, condition = make_channel(operator, GaussianNoise(std)), Conditioning()
    size = condition.channels(channel)
    network = UNet((1, 8, 8), size, channels=[16], blocks=[1], attention=[0])
    return onnx_graph.Conditioned(
        Denoiser(network, VESchedule(0.02, 20.0)).eval(), channel, condition
    ).eval()


@pytest.mark.parametrize(
    ("operator", "std", "inputs"),
    [
        (Blur((1, 8, 8), sigma=1.0, kernel_size=5), 0.1, ("y",)),
        (Downsample((1, 8, 8), factor=2), (0.05, 0.1), ("y", "noise")),
    ],
)
def test_onnx_of_channels(
    tmp_path: Path, operator: LinearOperator, std: Any, inputs: tuple[str, ...]
) -> None:
    """What the channel has the same for all measurements is no input; it is checked as written."""
    graph = graph_of(operator, std)
    assert graph.inputs == ("x_t", "t", *inputs)
    onnx_graph.write_graph(tmp_path / "x.onnx", graph, graph.channel)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (Blur((1, 8, 8), sigma=(0.5, 1.0), kernel_size=3), "eigh"),  # of each sample's own width
        (Radon((1, 8, 8), angles=6), "fftfreq"),
    ],
)
def test_what_onnx_cannot_express_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: LinearOperator, reason: str
) -> None:
    """And is said before the tracing, which takes up to a minute."""
    graph = graph_of(operator, 0.1)
    monkeypatch.setattr(torch.export, "export", Mock(side_effect=AssertionError("traced")))
    with pytest.raises(UserError, match=rf"x.onnx cannot be made: .*{reason}.*; leave out") as e:
        onnx_graph.write_graph(tmp_path / "x.onnx", graph, graph.channel)
    assert "\n" not in str(e.value)


def test_what_torch_cannot_trace_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of operations that are not known to have no form too."""
    monkeypatch.setattr(onnx_graph, "WITHOUT_FORM", set())
    graph = graph_of(Blur((1, 8, 8), sigma=(0.5, 1.0), kernel_size=3), 0.1)
    with pytest.raises(UserError, match=r"x.onnx cannot be made: .*eigh.*; leave out --onnx") as e:
        onnx_graph.write_graph(tmp_path / "x.onnx", graph, graph.channel)
    assert "\n" not in str(e.value)


def test_a_graph_that_differs_is_not_written(
    run: diffem.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made of it does not matter then, and takes ten seconds."""
    monkeypatch.setattr(torch.export, "export", Mock())
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Mock(save=Path.touch))
    monkeypatch.setattr(onnx_graph, "_difference", lambda *_: 2e-4)
    with pytest.raises(
        UserError, match=r"posterior.onnx differs from torch by 0.0002 on \[-1, 1\]"
    ):
        export_run(run.path, tmp_path / "out", onnx=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_sentence(
    run: diffem.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"--onnx needs the package {package}, .*diffem.onnx."):
        export_run(run.path, tmp_path / "out", onnx=True)
    assert not list(tmp_path.iterdir())


def test_a_data_set_needs_its_package(
    run: diffem.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="--reconstructions dataset needs the package datasets"):
        export_run(run.path, tmp_path / "out", reconstructions=write_dataset)
    assert not list(tmp_path.iterdir())


def test_what_is_refused(run: diffem.Result, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises(UserError, match="exists and is not empty; give another folder"):
        export_run(run.path, tmp_path / "full")
    with pytest.raises(UserError, match="holds no run"):
        export_run(tmp_path / "full", tmp_path / "out")
    with pytest.raises(UserError, match="is a file; give the run directory"):
        export_run(run.path / "checkpoints" / "posterior.safetensors", tmp_path / "out")
    damaged = tmp_path / "damaged"
    shutil.copytree(run.path, damaged)
    chunk = next((damaged / "reconstructions" / "round_001").glob("*.npy"))
    chunk.write_bytes(chunk.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match=r"chunk_\d+.npy is missing or damaged; move"):
        export_run(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_run(damaged, tmp_path / "out", reconstructions=None)  # which are not needed then


def test_the_command(
    run: diffem.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command.main([str(run.path), "--out", str(out), "--reconstructions", "none"])
    said = " ".join(capsys.readouterr().err.split())
    assert f"wrote {out}: README.md, figures, posterior.safetensors, prior.safetensors, su" in said
    assert said.endswith(f'read it by diffem.load("{out}")')
    with pytest.raises(SystemExit) as stop:
        command.main([str(run.path), "--out", str(out)])
    assert stop.value.code == 1
    assert "exists and is not empty" in capsys.readouterr().err
