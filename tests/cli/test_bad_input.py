"""A user error, or a bad file, is reported in one sentence, and nothing is written."""

import gzip
import math
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from command import ROOT
from lightning import Trainer
from PIL import Image

from diffem.cli.classify import Training, classify
from diffem.cli.study import read_study
from diffem.metric.classifier import ClassifierNetwork, save_classifier
from diffem.runtime.errors import UserError

Make = Callable[[Path], list[str]]
"""Makes a bad file in a folder, and returns the overrides that have it read."""

BAD = [
    (
        ["corruption=fog"],
        "corruption=fog is not a choice; corruption can be: blur, chain, deepinv",
    ),
    (["em.foo=1"], "em.foo is not a key of the config; allowed: em.rounds"),
    (["foo.bar=1"], "foo.bar is not a key of the config; allowed: dataset, corruption"),
    (
        ["corruption=blur", "corruption.rho=0.5"],
        "allowed: corruption.noise, corruption.sigma, corruption.kernel_size",
    ),
    (["corruption.rho=1.0"], "corruption.rho must be a number in [0, 1), got 1.0"),
    (["corruption=blur", "corruption.kernel_size=4"], "corruption.kernel_size must be odd"),
    (["corruption.noise.std=-1"], "corruption.noise.std must be a positive number"),
    (["em.rounds=0"], "em.rounds must be a whole number of at least 1, got 0"),
    (["em.rounds=many"], "em.rounds must be a finite number, got 'many'"),
    (["sampler.steps=0"], "sampler.steps must be a whole number of at least 1, got 0"),
    (["prior.steps=0"], "prior.steps must be a whole number of at least 1, got 0"),
    (["trainer.accelerator=cpu", "trainer.devices=4096"], "trainer.devices must be in [1, "),
    (["trainer.accelerator=abacus"], "abacus"),
    # The sentence was Lightning's, after the run directory was opened.
    (
        ["trainer.accelerator=mps"],
        "torch finds no GPU on this machine; use trainer.accelerator=cpu",
    ),
    (["trainer.accelerator=cpu", "trainer.num_nodes=2"], "started by torchrun or srun (docs/clu"),
    (
        ["dataset=fashion_mnist", "dataset.path=/nowhere"],
        "dataset.path: /nowhere has no train-images",
    ),
    (["dataset.shape=[1,9,9]"], "dataset.shape is [1, 9, 9], but the train images have shape"),
    (["dataset.train=5000"], "dataset.train must be a whole number of at most 1796"),
    (["init=checkpoint"], "init.path must be given: init.path=VALUE"),
    (["init=checkpoint", "init.path=/nowhere"], "init.path: no checkpoint at /nowhere"),
    (["network=mlp"], "use network=unet for images"),
    (["dataset=manifold", "corruption=projection"], "use network=mlp for vectors"),
    (["network.channels=[20,40]"], "network.channels must be multiples of 16"),
    (
        ["metric=classifier", "dataset=manifold", "corruption=projection", "network=mlp"],
        "no classifier at features/manifold.safetensors; train one with `diffem classify",
    ),
    (["metric=inception", "metric.features.0.weights=/nowhere"], "weights: no file at /nowhere"),
    (["corruption.learn=[sigma]"], "corruption.learn can name noise of this corruption, got"),
    (["em.guard.hidden=1e-300"], "em.guard.hidden must be in [0.001, 0.999], got"),  # hid nothing
    (
        ["corruption=gamma", "corruption.gamma=100", "corruption.noise.std=3"],
        "that are not finite; give its parameters and corruption.noise less extreme values",
    ),
    # It was told that noise can be learned, which was then refused.
    (["corruption=gamma", "corruption.learn=[gamma]"], "Gamma is none; choose corruption.learn="),
    (
        ["corruption=jpeg", "method.condition.fuse=true"],
        "that can be undone (saturation, quantisation, gamma, impulse, rician) after what scales",
    ),
    (
        ["corruption=saturation", "method=em_mmps"],
        "choose method=diffem, which takes every channel, or a corruption with a linear operator",
    ),
    (
        ["corruption=blur", "corruption.learn=[sigma]", "corruption.sigma=[0.5,2]"],
        "corruption.sigma must be one number, the start, where corruption.learn names it",
    ),
    (["+assumed.sigma=2"], "assumed.sigma is not a key of the corruption; allowed: noise, rho"),
    (["assumed.rho=0.1"], "assumed.rho is not in the config yet; add it by +assumed.rho=VALUE"),
    (
        ["+assumed.noise.photons=9"],
        "assumed.noise.photons is not a key of the corruption; allowed: std",
    ),
    (
        ["corruption=downsample", "+assumed.factor=4"],
        "assumed.factor must leave the shapes of measurement, operator and noise as they are",
    ),
    (
        ["dataset=manifold", "corruption=projection", "network=mlp", "+assumed.rows=3"],
        "assumed.rows must leave the shapes of measurement, operator and noise as they are",
    ),
    (["+assumed.noise.std=[0.01,0.02]"], "assumed.noise.std must be one number, as corruption"),
    (
        ["dataset=manifold", "corruption=denoising", "corruption/noise=poisson", "network=mlp"],
        "corruption.noise=PoissonNoise needs images in [-1, 1], where -1 is dark, and the data go",
    ),
    (["prior=null", "prior.steps=5"], "prior.steps has no effect, since prior is null here"),
    (["+assumed.rho=1"], "corruption.rho must be a number in [0, 1), got 1"),
    (["method=ambient", "corruption=blur"], "method=ambient needs corruption=mask on images"),
    (["method=ambient", "method.objective.delta=0"], "method.objective.delta must be a number"),
    (["method.objective.p_uncond=1"], "method.objective.p_uncond must be a number in [0, 1)"),
    (["em.keep_rounds=1"], "em.keep_rounds must be a whole number of at least 2, got 1"),
    (["em.nfe=0"], "em.nfe must be a positive number, got 0"),
    (["init.variance=0"], "init.variance must be a positive number, got 0"),
    (["blind.widen=0.5"], "blind.widen must be in [1, 1000], got 0.5"),
    (["run_dir"], "run_dir"),
    (["dataset=1"], "dataset=1 is not a choice; dataset can be: celeba, cifar10, digits"),
    (["corruption.noise=3"], "corruption.noise must be a part with keys of its own"),
    (["network.channels=32"], "network.channels must be a list, got 32"),
    (["network.heads=0"], "network.heads must be a whole number of at least 1, got 0"),
    (["method.supervised=perhaps"], "method.supervised must be true or false, got 'perhaps'"),
    (["sampler._partial_=1"], "sampler._partial_ must be true or false, got 1"),
    (["em.rounds=null"], "em.rounds must be a finite number, got None"),
    (["+logger.paper=1"], "logger.paper must have a _target_, got 1"),
    (["seed=1.5"], "seed must be a whole number, got 1.5"),
    (["schedule.sigma_max=nan"], "schedule.sigma_max must be a finite number, got nan"),
    (["schedule.sigma_min=30"], "schedule.sigma_min must be below schedule.sigma_max, got [30.0"),
    (["m_step.optimizer.lr=-1"], "m_step.optimizer.lr must be a positive number, got -1"),
    (
        ["+m_step.optimizer.betas=[0.9,1]"],
        "betas: each must be a number in [0, 1), got 1",
    ),
    (["sampler=pc", "sampler.delta=0"], "without effect: choose sampler=ddim"),
    (
        ["logger=csv", "+logger.csv.flush_logs_every_n_steps=0"],
        "must be a whole number of at",
    ),
    (["m_step.schedule.warmup=1"], "m_step.schedule.warmup must be a number in [0, 1), got 1"),
    (["m_step.rollbacks=-1"], "m_step.rollbacks must be a whole number of at least 0, got -1"),
    (["m_step.augment=flip"], "m_step.augment must be null or an Augment, got 'flip'"),
    (["m_step.clean=images"], "path: clean}, got 'images'"),
    (["m_step.clean=[]"], "m_step.clean must be null or a CleanShare"),
    (["metric.features=[1]"], "metric.features must be a list of feature spaces"),
    (["method=em_mmps", "method.posterior.solver=lu"], "solver must be gmres or cg, got 'lu'"),
    (["em.relax=1"], "em.relax must be"),
    (["em.warm_start=1.0"], "em.warm_start must be a number in (0, 1), got 1.0"),
    (["method=em_pnp", "em.warm_start=0.5"], "method.posterior=SplitGibbs draws from noise alone"),
    (["method=em_dps", "method.posterior.zeta=0"], "zeta must be a positive number, got 0"),
    (
        ["corruption=chain", "corruption.parts={a: 1}"],
        "corruption.parts must be a list of operators and distortions, as in [{_target_: ",
    ),
    (["corruption=chain", "corruption.parts=blur"], "must be a list of operators and distortions"),
    (["network.channels={a: 1}"], "network.channels must be a list, got {a: 1}"),
    (["corruption.noise=[1]"], "corruption.noise must be a part with keys of its own"),
    (
        ["network.channels.9=3"],
        "changes no entry of the list network.channels, which has 2; change one by",
    ),
    (["corruption=chain", "+corruption.parts.a=1"], "give the whole list, corruption.parts=[…]"),
    (
        ["+corruption.learn.0=noise"],
        "corruption.learn, which has 0; give the whole list, corruption.learn=[…]",
    ),
    (["metric.shape=[1,2]"], "metric.shape is not a key of the config; allowed: metric.metrics"),
    (["objective=''"], "objective must be a score of this run, got ''"),
    (["trainer.devices=two"], "or auto, got 'two'"),
    (["trainer.precision=64-true"], "trainer.precision must be one of auto, 32-true, bf16-mixed"),
    (["+trainer.accumulate_grad_batches=2"], "accumulate_grad_batches is missing, or not known"),
    (["+trainer.max_epochs=3"], "trainer.max_epochs is missing, or not known to keep"),
    (
        ["trainer.strategy=fsdp"],
        "trainer.strategy must be one of auto, ddp or a lightning.pytorch",
    ),
    (
        ["trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}"],
        "got 'lightning.pytorch.strategies.FSDPStrategy': FSDP and others",
    ),
]


def tell(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs the command in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    monkeypatch.setattr(Trainer, "fit", None)  # what is bad ends here, and not after minutes
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


def idx(*size: int, data: bytes | None = None, code: int = 8) -> bytes:
    """Returns an idx file that announces a size; by default it holds as many zeros."""
    header = bytes([0, 0, code, len(size)]) + np.array(size, ">u4").tobytes()
    return header + (bytes(math.prod(size)) if data is None else data)


def images(train: bytes, *, name: str = "train-images-idx3-ubyte") -> Make:
    """Makes a folder of idx files, of which one is bad."""

    def make(folder: Path) -> list[str]:
        (folder / "train-images-idx3-ubyte").write_bytes(idx(3, 4, 5))
        (folder / "t10k-images-idx3-ubyte").write_bytes(idx(2, 4, 5))
        (folder / name).write_bytes(train)
        return ["dataset=fashion_mnist", f"dataset.path={folder}", "dataset.shape=[1,4,5]"]

    return make


def linked(folder: Path) -> list[str]:
    """Makes a folder with a link to a file that is none of its own."""
    overrides = images(idx(3, 4, 5))(folder)
    secret = folder.with_name("secret")
    (folder / "t10k-images-idx3-ubyte").rename(secret)
    (folder / "t10k-images-idx3-ubyte").symlink_to(secret)
    return overrides


def pictures(break_it: Callable[[Path], object]) -> Make:
    """Makes a local folder of the hub's layout, of which the first image is bad."""

    def make(folder: Path) -> list[str]:
        for split in ("train", "test"):
            (folder / split).mkdir()
            for i in range(2):
                noise = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(noise).save(folder / split / f"{i}.png")
        break_it(folder / "train" / "0.png")
        return [
            "dataset=cifar10", f"dataset.path={folder}", "dataset.shape=[1,8,8]",
            "dataset.column=image",
        ]  # fmt: skip

    return make


def patterned(folder: Path) -> list[str]:
    """Makes a local folder of the hub's layout whose name `datasets` would read as a pattern."""
    (folder / "[a]").mkdir()
    return pictures(lambda _: None)(folder / "[a]")


def elsewhere(image: Path) -> None:
    """Moves an image out of the folder and links to it."""
    image.rename(image.parents[2] / "secret.png")
    image.symlink_to(image.parents[2] / "secret.png")


def weights(write: Callable[[Path], object], *overrides: str, suffix: str = "") -> Make:
    """Makes a file of weights; FILE stands for its path."""

    def make(folder: Path) -> list[str]:
        file = folder / f"file{suffix}"
        write(file)
        return [override.replace("FILE", str(file)) for override in overrides]

    return make


def classifier(shape: Sequence[int], value: float = 0.0) -> Callable[[Path], None]:
    network = ClassifierNetwork(shape, 10)
    with torch.no_grad():
        network.get_parameter("head.1.bias").fill_(value)
    return lambda file: save_classifier(file, network, {"shape": shape, "labels": 10})


def evil(file: Path) -> None:
    """Writes a pickle that would make a folder where it is unpickled."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(file.with_name("executed")),)

    torch.save({"state_dict": Evil()}, file)


def saved(name: str, text: str) -> Make:
    """Makes a run directory with a damaged file of its configuration."""

    def make(folder: Path) -> list[str]:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / name).write_text(text)
        return [f"run_dir={folder}" if name == "config.yaml" else f"resume={folder}"]

    return make


def measured(*overrides: str) -> Make:
    """Makes a file of measurements without clean images."""

    def make(folder: Path) -> list[str]:
        np.savez(folder / "y.npz", y=np.random.default_rng(0).normal(100, 20, (20, 8, 8)))
        own = ["dataset=measurements", f"dataset.path={folder / 'y.npz'}", "corruption=denoising"]
        return [*own, "corruption.noise.std=5", "dataset.range=[0,200]", *overrides]

    return make


def cut(file: Path, write: Callable[[Path], object]) -> None:
    write(file)
    file.write_bytes(file.read_bytes()[:-99])


CLASSIFIER = ("metric=classifier", "metric.features.0.path=FILE")
INCEPTION = ("metric=inception", "metric.features.0.weights=FILE")
GZ = "train-images-idx3-ubyte.gz"  # is read in place of the plain one
NAN = np.full((3, 4, 5), np.nan, ">f4").tobytes()

DATA: dict[str, tuple[Make, str]] = {
    "an upper bound without clean images": (
        measured("method=supervised"),
        "method.supervised=true needs clean images, and these measurements have none",
    ),
    "an init from clean images that are not there": (
        measured("init=clean"),
        "init=clean needs clean images",
    ),
    "measurements under an unknown width": (
        measured("corruption=blur", "corruption.sigma=[0.5,2]"),
        "has no `operator`, and Blur with GaussianNoise draws its own for each measurement",
    ),
    "an assumption about one's own measurements": (
        measured("+assumed.noise.std=3"),
        "assumed has no effect on measurements of your own",
    ),
    "a range upside down": (
        measured("dataset.range=[5,1]"),
        "dataset.range must be [low, high] with low < high, got [5, 1]",
    ),
    "idx, empty": (images(b""), "is not an idx file of images (N, H, W)"),
    "idx, another magic": (images(b"\x89PNG" + bytes(99)), "is not an idx file of images"),
    "idx, labels": (images(idx(60)), "is not an idx file of images (N, H, W)"),
    "idx, no image": (images(idx(0, 4, 5)), "the train split is empty"),
    "idx, cut": (images(idx(3, 4, 5)[:-1]), "announces 3 × 4 × 5 entries but holds 59 bytes"),
    "idx, too long": (images(idx(3, 4, 5) + b"0"), "announces 3 × 4 × 5 entries but holds more"),
    "idx, absurd": (images(idx(2**31, 2**31, 2, data=b"")), "more than it can hold"),
    "idx, another shape": (images(idx(3, 5, 5)), "train images have shape [1, 5, 5]"),
    "idx, NaN": (
        images(idx(3, 4, 5, data=NAN, code=0xD)),
        "train-images-idx3-ubyte holds NaN or infinity",
    ),
    "gz, none": (images(idx(3, 4, 5), name=GZ), "cannot be read (Not a gzipped file"),
    "gz, cut": (images(gzip.compress(idx(3, 4, 5))[:-9], name=GZ), "cannot be read"),
    "gz, absurd": (
        images(gzip.compress(idx(2**31, 2**31, 2, data=b"")), name=GZ),
        "announces 2147483648 × 2147483648 × 2 entries, more than it can hold",
    ),
    "gz, a bomb": (
        images(gzip.compress(idx(3, 4, 5, data=bytes(2**27))), name=GZ),
        "announces 3 × 4 × 5 entries but holds more",
    ),
    "idx, a link out": (linked, "leads out of"),
    "image, no file": (pictures(lambda f: f.write_bytes(b"GIF89a")), "cannot be read"),
    "image, cut": (pictures(lambda f: f.write_bytes(f.read_bytes()[:50])), "cannot be read"),
    "image, large": (
        pictures(lambda f: Image.new("1", (2000, 2000)).save(f)),
        "has 2000 × 2000 pixels, more than 262144 for dataset.shape=[1, 8, 8]",
    ),
    "image, a bomb": (
        pictures(lambda f: Image.new("1", (20000, 20000)).save(f)),
        "cannot be read (Image size (400000000 pixels) exceeds limit",
    ),
    "images in a folder that is a pattern": (patterned, "must not have '*', '?' or '[' in it"),
    "image, a link out": (pictures(elsewhere), "leads out of"),
    "checkpoint, a pickle": (
        weights(evil, "init=checkpoint", "init.path=FILE"),
        "is no checkpoint of a run (UnpicklingError)",
    ),
    "checkpoint, text": (
        weights(lambda f: f.write_text("hello"), "init=checkpoint", "init.path=FILE"),
        "is no checkpoint of a run",
    ),
    "weights, a pickle": (weights(evil, *INCEPTION), "holds no weights (UnpicklingError)"),
    "weights, cut": (
        weights(lambda f: cut(f, classifier([1, 8, 8])), *CLASSIFIER, suffix=".safetensors"),
        "is no classifier's file",
    ),
    "weights, NaN": (
        weights(classifier([1, 8, 8], math.nan), *CLASSIFIER, suffix=".safetensors"),
        "holds NaN or infinity in head.1.bias",
    ),
    "weights, of another data set": (
        weights(classifier([1, 28, 28]), *CLASSIFIER, suffix=".safetensors"),
        "is for images of shape [1, 28, 28], but dataset.shape is [1, 8, 8]",
    ),
    "a saved config, no YAML": (saved("config.yaml", "a: [1"), "config.yaml is damaged"),
    "saved overrides, no list": (saved("overrides.yaml", "a: 1"), "overrides.yaml is damaged"),
}


@pytest.mark.filterwarnings("ignore")  # PIL's of the bombs that are made, and the library's own
@pytest.mark.parametrize("name", DATA)
def test_bad_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = DATA[name]
    (tmp_path / "data").mkdir()
    overrides = make(tmp_path / "data")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    run_dir = [] if name.startswith(("a saved", "saved")) else [f"run_dir={tmp_path / 'run'}"]
    code = tell([*run_dir, *overrides], monkeypatch)
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert sentence in error
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.rglob("executed"))


def test_labels_that_do_not_go_with_their_images(tmp_path: Path) -> None:
    overrides = images(idx(3, 4, 5))(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(4))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(2))
    out = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match="the train split has 3 images and 4 labels"):
        classify("fashion_mnist", out, Training(epochs=1, seed=0), overrides[1:])
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rows: [", "s.yaml: while parsing"),
        ("common: [a=1]", "a study has rows"),
        ("rows: {a: [b=1]}\nextra: 1", "a study has rows"),
        ("rows: {}", "its rows must be named"),
        ("rows: {a: b=1}", "rows.a must be a list of KEY=VALUE, got 'b=1'"),
        ("rows: {a: [b]}", "an override is KEY=VALUE, got 'b'"),
        ("rows: {a: [seed=1]}", "seed is set by --seeds"),
        ("rows: {a: [b=1]}\nseeds: [x]", "its seeds must be whole numbers"),
    ],
)
def test_bad_studies(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    monkeypatch.setattr("diffem.cli.study.STUDIES", tmp_path)
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_study("s")


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
    others = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "29500"}
    for name, value in ({"TORCHELASTIC_RUN_ID": "none"} | others | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "diffem.runtime.signals.set_parent_death_signal", lambda _: None
    )  # pytest is not torchrun's
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    assert tell(["trainer.accelerator=cpu", *overrides], monkeypatch) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    # Or torch would warn each second while it waits for a process (issue 11, B 12).
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"


def test_a_folder_with_other_files_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert tell([f"run_dir={tmp_path}"], monkeypatch) == 1
    assert "holds other files; choose an empty or new run_dir" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["thesis.tex"]
