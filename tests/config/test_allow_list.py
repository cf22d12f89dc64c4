"""No way in: nothing outside the allow list is imported, called or unpickled."""

import inspect
import os
import pickle
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from azula.sample import Sampler
from command import ROOT
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from diffem.cli.compose import check_arguments
from diffem.cli.composition import CONF
from diffem.config.allow_list import ALLOWED, PARTIAL, check_targets
from diffem.config.hydra_node import FROM_COMMAND_LINE, FROM_FILES, TARGETS
from diffem.em.checkpoint_io import AtomicCheckpointIO
from diffem.em.init import FromCheckpoint
from diffem.runtime.errors import UserError
from diffem.storage.atomic import load_plain, sha256
from diffem.storage.checkpoint import load_checkpoint, record_digest

FORBIDDEN = [
    "builtins.open",
    "builtins.eval",
    "os.system",
    "torch.load",
    "torch.hub.load",
    "pathlib.Path.write_text",
    "subprocess.run",
    "importlib.import_module",
    "diffem.storage.reconstructions.shutil.rmtree",  # by the dots of an allowed module
    "diffem.storage.reconstructions.write_record",
    "diffem.logging.upload.os.system",
    "diffem.storage.checkpoint.sha256",
    "torch.optim.adam.torch.load",
    "diffem.runtime.process.subprocess.run",
    "diffem.cli.launch.os.system",
    "hydra.utils.call",
    "${oc.env:HOME}",
    "lightning.Trainer.fit.__globals__",
]


def tell(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return stop.value.code


@pytest.mark.parametrize("target", FORBIDDEN)
def test_forbidden_targets(target: str) -> None:
    with pytest.raises(UserError, match=r"sampler\._target_=.* is not allowed"):
        check_targets({"sampler": {"_target_": target}})


def test_what_is_allowed_in_one_place_is_not_in_another() -> None:
    mask = {"_target_": "diffem.corruption.Mask"}
    noise = {"_target_": "diffem.corruption.GaussianNoise"}
    check_targets({"corruption": {**mask, "noise": noise}})
    for config, sentence in (
        ({"sampler": mask}, r"sampler\._target_=.*Mask is not allowed; allowed: az"),
        (
            {"sampler": {"x": mask}},
            r"sampler\.x\._target_=.*Mask is not .* nothing is built there",
        ),
        (
            {"corruption": noise},
            r"corruption\._target_=.*GaussianNoise is not allowed; allowed: di",
        ),
        (
            {"corruption": {**mask, "noise": mask}},
            r"corruption\.noise\._target_=.*Mask is not all",
        ),
        ({"assumed": noise}, r"assumed\._target_=.*GaussianNoise is not allowed"),
        ({"note": [mask]}, r"note\.0\._target_=.*Mask is not allowed.* nothing is built there"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_targets(config)


SAMPLER = {"_target_": "azula.sample.DDPMSampler", "_partial_": True, "steps": 5}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"sampler": SAMPLER | {"foo": 1}},
            "sampler.foo is not a key of azula.sample.DDPMSampler",
        ),
        ({"sampler": SAMPLER | {"_args_": [1]}}, "sampler._args_ is not allowed; leave it out"),
        ({"sampler": SAMPLER | {"_convert_": "all"}}, "sampler._convert_ is not allowed"),
        ({"note": [{"_recursive_": False}]}, "note.0._recursive_ is not allowed"),
        ({"sampler": SAMPLER | {"_partial_": False}}, "sampler._partial_=false is not allowed"),
        ({"sampler": SAMPLER | {"_partial_": 1}}, "sampler._partial_ must be true or false, got"),
        (
            {"network": {"_target_": "diffem.network.UNet", "_partial_": True}},
            "network._partial_=true is not allowed here; leave it out",
        ),
        ({"network": {"_partial_": True}}, "network._partial_ has no effect without a _target_"),
        ({"prior": {"steps": 1, "x": 2}}, "prior.x is not a key of prior, which has steps"),
        ({"method": {"sampler": SAMPLER}}, "method.sampler is not a key of method, which has c"),
    ],
)
def test_keys_that_a_choice_does_not_have(config: dict, sentence: str) -> None:
    """Issue 11, A 1: no extra keys, and none of those that change how something is built."""
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_targets(config)


NAMES = sorted({name for names in ALLOWED.values() for name in names})


@pytest.mark.parametrize("name", NAMES)
def test_allowed_names_are_classes_of_a_module(name: str) -> None:
    """Not methods, and not what a module has imported from another package."""
    found = get_object(name)
    assert inspect.isclass(found)
    assert inspect.ismodule(get_object(name.rpartition(".")[0]))
    assert found.__module__.partition(".")[0] == name.partition(".")[0]


GIVEN = {"cond_channels", "denoiser", "channel", "sampler", "params", "shape", "silent", "start"}
"""Arguments that the program gives; `shape` is a data set's own."""
HANDED_ON = {"azula.sample.": Sampler, "lightning.pytorch.strategies.": DistributedDataParallel}
"""The classes that **kwargs are of."""


@pytest.mark.parametrize("name", NAMES)
def test_allowed_keys_are_arguments(name: str) -> None:
    """All of those of diffem's own classes."""
    # They stand beside those of an operator and of a sampler, in its node.
    beside = {"noise", "learn", "bounds"}
    places = [{*names[name]} - beside for names in ALLOWED.values() if name in names]
    keys = places[0]
    assert all(other == keys for other in places)
    if keys == {"parts"}:  # what a composition is made of
        keys = {"operators"}
    known = {*inspect.signature(get_object(name)).parameters}
    for module, inner in HANDED_ON.items():
        known |= {*inspect.signature(inner).parameters} if name.startswith(module) else set()
    if "noise" in known:  # of a channel that is made of no operator
        keys = keys | {"noise"}
    assert keys <= known
    if name.startswith("diffem.") and name != "diffem.em.MStep":
        assert known - keys <= GIVEN


def test_tables_are_sorted_and_cover_the_configuration() -> None:
    for names in (*ALLOWED.values(), TARGETS, FROM_FILES, FROM_COMMAND_LINE, PARTIAL):
        assert list(names) == sorted(names)
    assert list(ALLOWED) == sorted(ALLOWED)
    for path in CONF.glob("*/*.yaml"):
        group, config = path.parent.name, OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(config, dict)
        config.pop("defaults", None)
        nested = {"experiment": config, "strategy": {"trainer": config}}
        check_targets(nested.get(group, {group: config}))


@pytest.mark.parametrize(
    "override",
    [
        "sampler._target_=pathlib.Path.touch",
        "+em.extra._target_=pathlib.Path.touch",
        "+hydra.callbacks.evil._target_=pathlib.Path.touch",
        "hydra.launcher._target_=pathlib.Path.touch",
    ],
)
def test_on_the_command_line(
    override: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tell(monkeypatch, override, f"run_dir={tmp_path / 'run'}") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_in_the_later_values_of_a_sweep(tmp_path: Path) -> None:
    arguments = ["-m", "seed=0,1", "sampler._target_=azula.sample.DDPMSampler,os.system"]
    with pytest.raises(UserError, match=r"sampler\._target_=os\.system is not allowed"):
        check_arguments(arguments)
    check_arguments(["-m", "seed=0,1", "sampler=ddpm,heun"])


@pytest.mark.parametrize(
    "choice",
    [
        "hydra/launcher=joblib",
        "hydra/launcher=submitit_local",
        "hydra/launcher=submitit_slurm",
        "hydra/sweeper=optuna",
    ],
)
@pytest.mark.filterwarnings("ignore:Deprecated API features")  # optuna's, of SQLAlchemy
def test_launchers_and_sweepers_that_are_extras(choice: str) -> None:
    kind, name = choice.removeprefix("hydra/").split("=")
    pytest.importorskip(f"hydra_plugins.hydra_{name.split('_')[0]}_{kind}")
    lr = "m_step.optimizer.lr=1e-3" if kind == "launcher" else "m_step.optimizer.lr=interval(0,1)"
    check_arguments(["-m", choice, lr])


@pytest.mark.parametrize("count", ["0", "-3"])
@pytest.mark.parametrize(
    ("choice", "key", "default"),
    [("launcher=joblib", "launcher.n_jobs", -1), ("sweeper=optuna", "sweeper.n_trials", 20)],
)
@pytest.mark.filterwarnings("ignore:Deprecated API features")
def test_counts_of_launchers_and_sweepers(choice: str, key: str, default: int, count: str) -> None:
    """joblib ended with a traceback, after the sweep had begun."""
    kind, name = choice.split("=")
    pytest.importorskip(f"hydra_plugins.hydra_{name}_{kind}")
    sentence = rf"hydra\.{key} must be a whole number of at least 1, or its default {default}, got"
    with pytest.raises(UserError, match=sentence):
        check_arguments(["-m", f"hydra/{choice}", f"hydra.{key}={count}", "seed=0,1"])
    for right in (default, 2):
        check_arguments(["-m", f"hydra/{choice}", f"hydra.{key}={right}", "seed=0,1"])


@pytest.mark.parametrize(
    "flag", ["--experimental-rerun=x.pickle", "--config-dir=/tmp", "-cd", "--config-name=evil"]
)
def test_flags_that_read_other_files(flag: str) -> None:
    with pytest.raises(UserError, match="is not a flag of this command"):
        check_arguments([flag])


def test_in_an_experiment_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that came from elsewhere, with a callback that Hydra would call before main."""
    marker = tmp_path / "marker"
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    call = f"{{_target_: pathlib.Path.touch, self: {marker}}}"
    head = "# @package _global_\n"
    (folder / "a.yaml").write_text(f"{head}hydra: {{callbacks: {{evil: {call}}}}}\n")
    (folder / "b.yaml").write_text(f"{head}sampler: {call}\n")
    for name in ("a", "b"):
        path = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
        code = tell(monkeypatch, path, f"experiment={name}", f"run_dir={tmp_path / 'run'}")
        assert code == 1
        assert "_target_=pathlib.Path.touch is not allowed" in capsys.readouterr().err
    assert not marker.exists()


def test_in_a_saved_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run directory was given goes through the same check."""
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text("- sampler._target_=os.system\n")
    assert tell(monkeypatch, f"resume={tmp_path / 'run'}") == 1
    assert "sampler._target_=os.system is not allowed" in capsys.readouterr().err


class Evil:
    """Makes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    """A pickle checkpoint with a right digest, and the marker that it would make."""
    path, marker = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "marker"
    path.parent.mkdir()
    torch.save({"state_dict": Evil(marker)}, path)
    record_digest(path, sha256(path))
    return path, marker


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_a_pickle_is_not_executed(
    variable: str | None, evil: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, marker = evil
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError, match="holds more than tensors and plain types"):
        load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        load_plain(path)
    assert not marker.exists()
    assert variable is None or os.environ[variable] == "1"


def test_the_marker_would_be_made(evil: tuple[Path, Path]) -> None:
    """The same file does execute where it is let."""
    path, marker = evil
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("url", ["http://example.org/last.ckpt", "s3://bucket/last.ckpt"])
def test_checkpoints_are_local(url: str) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        FromCheckpoint(url).read(Path("init.ckpt"), otherwise="leave it out")
    for access in (AtomicCheckpointIO().load_checkpoint, AtomicCheckpointIO().remove_checkpoint):
        with pytest.raises(UserError, match=f"read from local files alone, got {url}"):
            access(url)
