"""Issue 11, A: each attack that got in, from the command line and from another's run directory."""

import contextlib
import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import ROOT
from lightning import Trainer
from omegaconf import OmegaConf

from diffem import __version__
from diffem.cli import main as commands
from diffem.config.interpolation import VALUES, check_interpolations, expanded
from diffem.config.yaml_file import LARGEST, check_yaml
from diffem.runtime.errors import UserError
from diffem.storage.atomic import sha256
from diffem.storage.checkpoint import record_digest
from diffem.storage.run_dir import resumed_arguments

SECONDS = 20.0  # for any refusal, on a busy machine; a bomb would take hours


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


class Place:
    """A stranger's run directory, and beside it files of the user's that must stay.

    Attributes:
        run: The stranger's run directory, with a pickle for a checkpoint.
        thesis: A file that must stay as it is.
        folder: A folder of another run's rounds, which must stay too.
        marker: What the pickle would make.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "run"
        self.thesis, self.folder, self.marker = (
            root / "thesis.tex",
            root / "other",
            root / "marker",
        )
        self.thesis.write_text("precious")
        (self.folder / "round_000").mkdir(parents=True)
        (self.folder / "round_000" / "chunk_00000.npy").write_bytes(b"precious")
        (self.run / "checkpoints").mkdir(parents=True)
        (self.run / ".hydra").mkdir()
        self.checkpoint = self.run / "checkpoints" / "last.ckpt"
        torch.save({"state_dict": Evil(self.marker)}, self.checkpoint)
        record_digest(self.checkpoint, sha256(self.checkpoint))
        self.save("config.yaml", "seed: 0\n")

    def save(self, name: str, text: str) -> None:
        """Writes a file of the stranger's configuration."""
        (self.run / ".hydra" / name).write_text(f"# diffem {__version__}\n{text}")

    def state(self) -> dict[str, bytes | None]:
        """Returns everything that is there, but what a run may write into a new directory."""
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
            if not path.is_relative_to(self.root / "new")
        }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def tell(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> object:
    """Runs a command in this process, without training, and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["diffem", *arguments])
    monkeypatch.setattr(Trainer, "fit", None)
    with pytest.raises(SystemExit) as stop:
        commands.run(command)
    return stop.value.code


STRATEGY = "lightning.pytorch.strategies.SingleDeviceStrategy"
STORE = (
    "{_target_: diffem.storage.reconstructions.ReconstructionStore, path: OTHER, size: 1, "
    "chunk_size: 1, config_hash: x}"
)
CHECKPOINT_IO = "diffem.em.checkpoint_io.AtomicCheckpointIO"
ATTACKS = {  # RUN, OTHER, THESIS and MARKER stand for paths
    # A 1: methods of allowed classes
    "a pickle by Strategy.load_checkpoint": (
        "+em.x={_target_: lightning.pytorch.strategies.Strategy.load_checkpoint, "
        f"self: {{_target_: {STRATEGY}}}, checkpoint_path: RUN/checkpoints/last.ckpt, "
        "weights_only: false}"
    ),
    "a folder by Strategy.remove_checkpoint": (
        "+em.x={_target_: lightning.pytorch.strategies.Strategy.remove_checkpoint, "
        f"self: {{_target_: {STRATEGY}}}, filepath: OTHER}}"
    ),
    "a file by remove_checkpoint": (
        f"+em.x={{_target_: {CHECKPOINT_IO}.remove_checkpoint, self: {{_target_: "
        f"{CHECKPOINT_IO}}}, path: THESIS}}"
    ),
    "rounds by prune": (
        "+em.x={_target_: diffem.storage.reconstructions.ReconstructionStore.prune, "
        f"self: {STORE}, round: 9, keep: 0}}"
    ),
    "rounds by begin": (
        "+em.x={_target_: diffem.storage.reconstructions.ReconstructionStore.begin, "
        f"self: {STORE}, round: 0}}"
    ),
    "a function of the package": "+em.x={_target_: diffem.storage.atomic.load_plain, path: RUN}",
    "at a trainer's place": (
        "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, checkpoint_io: "
        f"{{_target_: {CHECKPOINT_IO}}}}}"
    ),
    "a logger that writes elsewhere": (
        "+logger.x={_target_: lightning.pytorch.loggers.MLFlowLogger, tracking_uri: OTHER}"
    ),
    # A 1: keys and places
    "a sampler for a schedule": "schedule={_target_: azula.sample.DDPMSampler, steps: 3}",
    "a noise model for an operator": "corruption._target_=diffem.corruption.GaussianNoise",
    "an extra key": "+sampler.foo=1",
    "a part of a network": "+network._partial_=true",
    "arguments by position": "+network._args_=[1]",
    "another conversion": "+network._convert_=object",
    "no recursion": "+network._recursive_=false",
    "a part that is not one": "sampler._partial_=false",
    "one place by the other": "sampler=${network}",
    "one place by the other, twice removed": ("+note=${network}", "schedule=${note}"),
    "the channel by what is assumed": "+assumed._target_=diffem.corruption.GaussianNoise",
    # A 2: resolvers
    "oc.create": "+em.x='${oc.create:{_target_:os.mkdir,path:MARKER}}'",
    "oc.create of a sampler": "sampler='${oc.create:{_target_:os.mkdir,path:MARKER}}'",
    "oc.decode": "+note.x='${oc.decode:\"{_target_: os.mkdir}\"}'",
    "oc.select": "+note.x=${oc.select:hydra.launcher}",
    "a resolver in oc.env": "+note.x='${oc.env:ABSENT,${oc.create:{a:1}}}'",
    "a resolver by another": "+note.x='${${note.y}:{a:1}}'",
    "a resolver with spaces": "+note.x='${ oc.create :{a:1}}'",
    "a resolver for a choice": "dataset='${oc.create:digits}'",
    "Hydra's node": "+note.x=${hydra:launcher}",
    # A 4: files outside the run
    "a logger's path": "logger.jsonl.path=THESIS",
    "a logger's path by dots": "'logger.jsonl.path=${run_dir}/../thesis.tex'",
    "no path": "logger.jsonl.path=''",
    "a logger's folder": ("logger=csv", "logger.csv.save_dir=OTHER"),
    "a logger's name": ("logger=csv", "logger.csv.name=../../other"),
    "a logger's version": ("logger=tensorboard", "logger.tensorboard.version=OTHER"),
    "W&B's folder": ("logger=wandb", "logger.wandb.save_dir=OTHER"),
    "weights by file://": (
        "metric.features=[{_target_: diffem.metric.weights.weights_file, weights: null, url: "
        "file://THESIS}]"
    ),
    "weights that are an address": (
        "metric.features=[{_target_: diffem.metric.Inception, weights: 'file://THESIS'}]"
    ),
    # A 5: their cost
    "nesting": f"+note.x={'[' * 5000}{']' * 5000}",
    "nesting of keys": f"+note.x={'{a:' * 200}1{'}' * 200}",
    "interpolations of interpolations": (
        "+a0=1",
        *(f"+a{i + 1}=[{','.join([f'${{a{i}}}'] * 10)}]" for i in range(12)),
    ),
    "texts of texts": (
        "+a0=aaaaaaaa",
        *(f"+a{i + 1}='{''.join([f'${{a{i}}}'] * 10)}'" for i in range(9)),
    ),
    "a circle": ("+a=${b}", "+b=${a}"),
    "a number of many digits": f"+note.x={'9' * 5000}",
    "a choice elsewhere": "dataset=../../../other",
    "a pickle for an init": ("init=checkpoint", "init.path=RUN"),
}  # fmt: skip
SAVED = {  # what is refused in a saved run, though a command line may say it
    "Hydra's environment": "hydra.job.env_set.PYTHONPATH=/evil",  # A 3
    "Hydra's environment, added": "+hydra.job.env_set.PYTHONPATH=/evil",
    "Hydra's shell lines": "hydra.launcher.setup=[touch x]",
    "Hydra's search path": "hydra.searchpath=[pkg://evil]",
    "a launcher": "hydra/launcher=submitit_slurm",
    "a sweep": "-m",
    "another folder of choices": "--config-dir=/evil",
    "another Hydra": "--experimental-rerun=x.pickle",
    "a trusted package": "trust=[evil]",
}


def filled(attack: str | tuple[str, ...], place: Place) -> list[str]:
    """Returns the overrides of an attack on a place."""
    paths = {"RUN": place.run, "OTHER": place.folder, "THESIS": place.thesis}
    filled = []
    for override in [attack] if isinstance(attack, str) else attack:
        for name, path in {**paths, "MARKER": place.marker}.items():
            override = override.replace(name, str(path))
        filled.append(override.strip("'") if override.startswith("'logger") else override)
    return filled


def assert_refused(
    code: object, error: str, before: dict[str, bytes | None], place: Place
) -> None:
    """Asserts one sentence, and that nothing was read, written or removed."""
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert "Error(" not in error and len(error) < 1500, error
    assert place.state() == before and not place.marker.exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_from_the_command_line(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, started = place.state(), time.monotonic()
    code = tell(monkeypatch, "train", "run_dir=new", *filled(ATTACKS[name], place))
    assert_refused(code, capsys.readouterr().err, before, place)
    assert time.monotonic() < started + SECONDS
    assert not list(place.root.glob("new/*"))


@pytest.mark.parametrize("name", {**ATTACKS, **SAVED})
def test_from_another_s_run_directory(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = filled({**ATTACKS, **SAVED}[name], place)
    place.save("overrides.yaml", "".join(f"- {json.dumps(o)}\n" for o in overrides))
    before, started = place.state(), time.monotonic()
    code = tell(monkeypatch, "train", f"resume={place.run}")
    assert_refused(code, capsys.readouterr().err, before, place)
    assert time.monotonic() < started + SECONDS


HANDLER = "{class: logging.FileHandler, filename: THESIS, mode: w}"
LOGGING = f"{{version: 1, handlers: {{x: {HANDLER}}}, root: {{handlers: [x]}}}}"
FILES = {  # A 3: an experiment file, and a word of the sentence that refuses it
    "job_logging": (f"hydra: {{job_logging: {LOGGING}}}", "hydra.job_logging"),
    "hydra_logging": (f"hydra: {{hydra_logging: {LOGGING}}}", "hydra.hydra_logging"),
    "environment": ("hydra: {job: {env_set: {PYTHONPATH: /evil}}}", "env_set is taken from"),
    "copied environment": ("hydra: {job: {env_copy: [HOME]}}", "hydra.job.env_copy"),
    "copied environment that is not there": ("hydra: {job: {env_copy: [ABSENT]}}", "ABSENT"),
    "directory": ("hydra: {run: {dir: /evil}}", "hydra.run.dir is taken from the command line"),
    "working directory": ("hydra: {job: {chdir: true}}", "hydra.job.chdir may not be set"),
    "sweep": ("hydra: {sweep: {dir: /evil}}", "hydra.sweep.dir may not be set"),
    "mode": ("hydra: {mode: MULTIRUN}", "hydra.mode may not be set"),
    "overrides": ("hydra: {overrides: {task: ['trust=[evil]']}}", "hydra.overrides is what"),
    "callback": ("hydra: {callbacks: {x: {_target_: os.system}}}", "x._target_=os.system is not"),
    "launcher": ("hydra: {launcher: {_target_: os.system}}", "launcher._target_=os.system is not"),
    "choice of a launcher": (
        "defaults: [{override /hydra/launcher: joblib}]",
        "hydra.launcher.",
    ),
    "parameters of a sweep": (
        "hydra: {sweeper: {params: {hydra.job.env_set.X: '1'}}}",
        "hydra.sweeper.params",
    ),
    "oc.create": ("sampler: '${oc.create:{_target_: os.mkdir}}'", "not allowed; allowed are"),
    "oc.create for a choice": (
        "defaults: [{override /dataset: '${oc.create:digits}'}]",
        "holds an interpolation that is not allowed",
    ),
    "a file elsewhere": ("defaults: [../../evil]", "leads out of the folder of choices"),
    "trust": ("trust: [evil]", "trust=['evil'] is in a file"),
    "anchors": (
        "a0: &a0 [1]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20)),
        f"holds more than {VALUES} values",
    ),
    "an anchor in itself": ("a: &a [*a]", "*a is in itself"),
    "nesting": (f"a: {'[' * 5000}{']' * 5000}", "nest"),
    "size": ("a: " + "b" * LARGEST, f"has more than {LARGEST} bytes"),
    "no YAML": ("a: [", "is damaged"),
    "a number of many digits": (f"a: {'9' * 5000}", "cannot be composed (ValueError"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        *((name, []) for name in FILES),
        # What is shown is composed too, and configures Hydra's loggers.
        *((name, ["--help"]) for name in ("job_logging", "hydra_logging", "anchors")),
        *((name, ["--cfg", "job"]) for name in ("job_logging", "hydra_logging", "anchors")),
    ],
)
def test_from_an_experiment_file(
    name: str,
    flags: list[str],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, sentence = FILES[name]
    folder = place.root / "conf" / "experiment"
    folder.mkdir(parents=True)
    (place.root / "evil.yaml").write_text("a: 1\n")
    (folder / "x.yaml").write_text(
        f"# @package _global_\n{text.replace('THESIS', str(place.thesis))}\n"
    )
    before, started = place.state(), time.monotonic()
    search = f"hydra.searchpath=['file://{place.root / 'conf'}']"
    code = tell(monkeypatch, "train", "run_dir=new", search, "experiment=x", *flags)
    error = capsys.readouterr().err
    assert_refused(code, error, before, place)
    assert sentence in error and time.monotonic() < started + SECONDS


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Opens a scope of at most SECONDS and 300 MB of memory more."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() < started + SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000


BOMBS = {
    "anchors": "a0: &a0 [1]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20)),
    "nesting": f"a: {'[' * 5000}{']' * 5000}",
    "nested keys": "\n".join(" " * i + "a:" for i in range(1000)),
    "many values": f"a: [{','.join('1' * (VALUES + 1))}]",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_a_saved_configuration_is_measured_before_it_is_built(
    name: str,
    bomb: str,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Issue 11, A 5: anchors gave no answer in 60 s, a nesting of 5,000 a traceback."""
    place.save("overrides.yaml", "- seed=0\n")
    place.save(name, BOMBS[bomb])
    before = place.state()
    with bounded():
        code = tell(monkeypatch, "train", f"resume={place.run}")
    assert_refused(code, capsys.readouterr().err, before, place)


PIPE = [".lock", ".hydra/x", "metrics.jsonl", "summary.json", "reconstructions/round_000/x.npy"]
LINKED = [
    *(".lock", "summary.json", "metrics.jsonl", "figures", "checkpoints/last.ckpt", ".hydra/x"),
    *("reconstructions", "csv", "csv/version_0", "tensorboard", "wandb", "wandb/x"),
]


@pytest.mark.parametrize("where", PIPE)
def test_a_pipe_does_not_hang(
    where: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, A 5: a `.lock` that is a FIFO hung."""
    place.save("overrides.yaml", "- seed=0\n")
    (place.run / where).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place.run / where)
    for command, given in (
        ("train", [f"resume={place.run}"]),
        ("train", [f"run_dir={place.run}"]),
        ("evaluate", [str(place.run)]),
        ("sample", [str(place.run), "--input", str(place.run), "--out", "new"]),
    ):
        with bounded():
            code = tell(monkeypatch, command, *given)
        error = capsys.readouterr().err
        assert code == 1 and error.startswith("error: ") and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("train", ["run_dir=new", "init=checkpoint", "init.path=RUN"]),
        ("train", ["run_dir=new", "init=checkpoint", "init.path=RUN/checkpoints/last.ckpt"]),
        ("train", ["run_dir=new", "metric=classifier", "metric.features.0.path=CHECKPOINT"]),
        ("sample", ["RUN", "--input", "RUN", "--out", "new"]),
        ("generate", ["RUN", "--out", "new"]),
    ],
    ids=lambda given: given if isinstance(given, str) else given[-1],
)
def test_a_pipe_in_place_of_weights_does_not_hang(
    command: str,
    given: list[str],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Issue 11, A 5: the roads `init.path=` and `diffem sample`."""
    place.checkpoint.unlink()
    for name in ("last.ckpt", "posterior.safetensors", "prior.safetensors"):
        os.mkfifo(place.run / "checkpoints" / name)
    paths = {"RUN": str(place.run), "CHECKPOINT": str(place.checkpoint)}
    for name, path in paths.items():
        given = [argument.replace(name, path) for argument in given]
    before = place.state()
    with bounded():
        code = tell(monkeypatch, command, *given)
    assert_refused(code, capsys.readouterr().err, before, place)


@pytest.mark.parametrize("where", LINKED)
def test_no_link_is_followed_for_writing(
    where: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, A 4: the target of a `.lock` that was a link was truncated."""
    link = place.run / where
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(place.folder if "." not in where else place.thesis)
    place.save("overrides.yaml", "- seed=0\n")
    (place.run / ".hydra" / "config.yaml").unlink()  # a run that has just begun
    before = place.state()
    for command, given in (
        ("train", [f"run_dir={place.run}", "init=measurement", "prior=null"]),
        ("evaluate", [str(place.run)]),
    ):
        code = tell(monkeypatch, command, *given)
        error = capsys.readouterr().err
        assert_refused(code, error, before, place)
        assert f"{link} is a" in error


def test_a_sweep_does_not_save_an_experiment_s_secret(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 11, A 6: a token in an experiment file stood in multirun.yaml."""
    folder = place.root / "conf" / "experiment"
    folder.mkdir(parents=True)
    secret = "hub: {token: canary-1, auth: canary-2, url: 'https://me:canary-3@host'}"
    (folder / "x.yaml").write_text(f"# @package _global_\n{secret}\n")
    search = f"hydra.searchpath=['file://{place.root / 'conf'}']"
    # The job itself ends at once.
    code = tell(monkeypatch, "train", "-m", "run_dir=new", search, "experiment=x", "seed=1.5")
    assert code == 1 and (place.root / "new" / "multirun.yaml").is_file()
    files = [path for path in (place.root / "new").rglob("*") if path.is_file()]
    assert [path for path in files if b"canary" in path.read_bytes()] == []


def test_wandb_s_own_links_stay(place: Place) -> None:
    from diffem.storage.entries import check_entries

    (place.run / "wandb" / "offline-run-1").mkdir(parents=True)
    (place.run / "wandb" / "latest-run").symlink_to("offline-run-1")
    check_entries(place.run, writing=True)
    (place.run / "wandb" / "x").symlink_to("../checkpoints")
    with pytest.raises(UserError, match="wandb/x is a symbolic link"):
        check_entries(place.run, writing=True)
    check_entries(place.run, writing=False)


def test_what_is_not_an_attack_stays() -> None:
    """Interpolations of keys, of the environment and of the time; keys that lead to parts."""
    config = {
        "a": {"b": 1, "c": [{"d": "${a.b}"}]},
        "e": "${a.c[0].d} ${now:%Y-%m-%d_%H-%M-%S} ${oc.env:HOME} ${oc.env:ABSENT,no}",
        "f": ["${a}", "${hydra:runtime.choices.corruption/noise}"],
        "g": {"h": 2, "i": "${.h}", "j": "${..a.b}"},
    }
    check_interpolations(config)
    assert expanded(config)["f"][0] == {"b": 1, "c": [{"d": 1}]}
    assert expanded(config)["g"] == {"h": 2, "i": 2, "j": 1}
    assert OmegaConf.to_container(OmegaConf.create({**config, "e": 0, "f": 0}), resolve=True) == {
        **expanded(config),
        "e": 0,
        "f": 0,
    }
    assert expanded(config)["e"] == config["e"]


def test_a_file_of_many_anchors_is_measured_as_it_would_be_built(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: &a {x: 1, y: [2, 3]}\nb: *a\nc: {<<: *a, z: 4}\n")
    check_yaml(file)
    with pytest.raises(UserError, match="is damaged: while parsing"):
        check_yaml(write(file, "a: [1\n"))
    with pytest.raises(UserError, match=f"more than {LARGEST} bytes"):
        check_yaml(write(file, "#" * (LARGEST + 1)))


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_saved_overrides_of_any_run_are_settings(place: Place) -> None:
    kept = [
        "seed=1",
        "+assumed.noise.std=0.1",
        "~prior",
        "corruption/noise=poisson",
        "a.0.b='é, x'",
    ]
    place.save("overrides.yaml", json.dumps(kept))
    *given, run_dir, _ = resumed_arguments([f"resume={place.run}"])
    assert given == kept and run_dir == f"run_dir={place.run}"


def test_the_pickle_would_be_executed(place: Place) -> None:
    """Where it is let."""
    with pytest.raises((TypeError, pickle.UnpicklingError, FileExistsError, AttributeError)):
        torch.load(place.checkpoint, weights_only=False)["state_dict"].keys()
    assert place.marker.exists() and ROOT.is_dir()
