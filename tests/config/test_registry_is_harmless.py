"""Issue 11, show 3: nothing that a configuration can build reads a pickle, deletes or writes.

Every class of the registry is built with hostile values of every argument that a configuration may
give it, while Python's audit events are watched: files that are opened for writing, what is
removed, renamed or started, and what is unpickled.
"""

import ast
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ROOT, SHORT, train
from hydra.utils import get_object
from omegaconf import OmegaConf
from test_ways_in import Place

from diffem.cli.composition import CONF, compose
from diffem.config.allow_list import ALLOWED, check_targets
from diffem.config.build import build
from diffem.config.hydra_node import TARGETS
from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.result.parts import build_denoiser
from diffem.runtime.errors import UserError

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMFUL = {
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.system"),
    *("os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"),
    *("socket.connect", "urllib.Request"),
}
CACHE = "hub"  # of the hub's data sets
_watched: list[tuple[str, str]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        if "__pycache__" not in str(arguments[0]) and str(arguments[0]) != os.devnull:
            _watched.append((event, str(arguments[0])))
    elif event in HARMFUL:
        _watched.append((event, str(arguments)))


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Opens a scope whose harmful events are collected."""
    global _watched
    if _hook not in _installed:
        sys.addaudithook(_hook)
        _installed.append(_hook)
    events = _watched = []
    try:
        yield events
    finally:
        _watched = None


_installed: list[object] = []


def composed(*overrides: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(compose(overrides), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def nodes(config: object, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the key and the node of everything that a configuration builds."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield where, config
        for key, value in config.items():
            yield from nodes(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from nodes(value, f"{where}.{i}")


def values(place: Place) -> list[Any]:
    """Returns hostile values of an argument."""
    return [
        str(place.checkpoint),
        str(place.run),
        str(place.thesis),
        str(place.folder),
        f"file://{place.thesis}",
        "http://127.0.0.1:9/x.ckpt",
        {"path": str(place.thesis)},
        [str(place.thesis)],
        10**30,
        "../../thesis.tex",
    ]


NODES = {
    target: (place, keys) for place, names in ALLOWED.items() for target, keys in names.items()
}
GIVEN = {  # what the program gives, besides the configuration
    "corruption": {"shape": (1, 8, 8)},
    "network": {"shape": (1, 8, 8), "cond_channels": 3},
    "m_step": {"steps": 5},
}


@pytest.fixture(scope="module")
def defaults() -> dict[str, dict[str, Any]]:
    """The arguments of each class in the files of choices."""
    found: dict[str, dict[str, Any]] = {}
    for file in CONF.glob("*/*.yaml"):
        if file.parent.name in ("study", "experiment"):
            continue
        for _, node in nodes(composed(f"{file.parent.name}={file.stem}")):
            found.setdefault(node["_target_"], {k: v for k, v in node.items() if k[0] != "_"})
    for node in (*composed("corruption/noise=poisson").values(),):
        for _, inner in nodes(node):
            found.setdefault(inner["_target_"], {k: v for k, v in inner.items() if k[0] != "_"})
    return found


def use(built: Any, place: str) -> None:
    """Does what the program does first with what it has built."""
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    network = {"_target_": "diffem.network.UNet", "channels": [16], "blocks": [1]}
    schedule = {"_target_": "azula.noise.VESchedule"}
    config = {"network": network, "schedule": schedule, "dataset": {"shape": [1, 8, 8]}}
    if place == "sampler":
        built(denoiser=build_denoiser(config, cond_channels=0), silent=True)
    elif place == "method.posterior":
        sampler = build({"_target_": "azula.sample.DDPMSampler", "_partial_": True}, "sampler")
        built(build_denoiser(config, cond_channels=0), channel, sampler=sampler)
    elif place == "m_step.optimizer":
        built(torch.nn.Linear(2, 2).parameters())
    elif place == "dataset" and not hasattr(built, "heldout"):
        built.load()


@pytest.mark.filterwarnings("ignore")  # of libraries, on hostile values
@pytest.mark.parametrize("target", sorted(NODES))
def test_building_does_no_harm(
    target: str,
    defaults: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of what is imported at last
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / CACHE)
    place = Place(tmp_path)
    where, keys = NODES[target]
    before = place.state()
    get_object(target)  # imports may write caches of their own
    for key in keys:
        for value in values(place):
            arguments = {k: v for k, v in defaults.get(target, {}).items() if k in keys}
            inner = {k: v for k, v in arguments.items() if not _builds(v)}
            inner.pop("bounds", None)  # of a sampler: no argument of its class
            if where.startswith("metric.") and "weights" in keys:
                inner["weights"] = str(place.thesis)  # null would download them
            if "model" in inner:
                inner["model"] = "vit_tiny_patch16_224"  # is built at once
            node = {**inner, key: value}
            node |= {"_partial_": True} if where in ("m_step.optimizer",) else {}
            given = {**GIVEN.get(where, {})}
            with watched() as events:
                try:
                    node = {k: v for k, v in node.items() if k not in given}
                    use(build({"_target_": target, **node}, where, **given), where)
                except (Exception, RecursionError):
                    pass
            events = [e for e in events if not _is_own(e, tmp_path)]
            assert not events, (key, value)
    assert {k: v for k, v in place.state().items() if f"/{CACHE}" not in k} == before
    assert not place.marker.exists()


def _builds(value: object) -> bool:
    return isinstance(value, Mapping | list) and bool(list(nodes(value)))


def _is_own(event: tuple[str, str], tmp_path: Path) -> bool:
    """Returns whether an event is in the hub's own cache."""
    return str(tmp_path / CACHE) in event[1]


def test_the_watch_sees_harm(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with watched() as events:
        torch.load(place.checkpoint, weights_only=False)
        place.thesis.write_text("")
        place.thesis.unlink()
    seen = [event for event, _ in events]
    assert {"pickle.find_class", "open", "os.mkdir", "os.remove"} <= {*seen}
    with watched() as events:
        place.folder.read_bytes if place.folder.is_file() else place.checkpoint.read_bytes()
    assert not events


METHODS = ["load_checkpoint", "remove_checkpoint", "__init__", "__call__", "__reduce__", "load"]


@pytest.mark.parametrize("target", sorted({*NODES, *TARGETS}))
def test_no_method_of_a_class_is_in_the_registry(target: str) -> None:
    """Nor one that a name leads through, at any place."""
    for place in {p.partition(".")[0] for p in ALLOWED}:
        for method in METHODS:
            with pytest.raises(UserError, match="is not allowed"):
                check_targets({place: {"_target_": f"{target}.{method}"}})


BUILT_IN = ("eval", "exec")  # network.eval() is none of these
EXECUTES = {  # calls that can run code, by the only files of the package that may make them
    "torch.load": {"storage/atomic.py"},  # load_plain: weights_only=True
    "import_module": {"__init__.py", "cli/main.py", "config/build.py", "data/reader.py"},
    "Popen": {"logging/upload.py", "runtime/process.py"},
    "eval": set(),
    "exec": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
    "os.system": set(),
    "subprocess.run": set(),
    "yaml.load": set(),
    "joblib.load": set(),
}


def called(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yields the dotted name and the node of every call in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_code_is_run_in_few_places() -> None:
    for file in (ROOT / "diffem").rglob("*.py"):
        name = str(file.relative_to(ROOT / "diffem"))
        for call, node in called(file):
            for risky, files in EXECUTES.items():
                if call == risky or (call.endswith(f".{risky}") and risky not in BUILT_IN):
                    assert name in files, f"{file}:{node.lineno}: {call}"
            if call == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords)
            if call in ("np.load", "numpy.load"):
                pickles = [k.value for k in node.keywords if k.arg == "allow_pickle"]
                assert pickles and ast.literal_eval(pickles[0]) is False, f"{file}:{node.lineno}"


# Found by Python in the processes that it is given to: prints what they write or remove.
LOG = """
import os, sys

def hook(event, arguments, log=os.open(LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
    flags = arguments[2] if event == "open" else 0
    if event in EVENTS or (isinstance(flags, int) and flags & WRITING):
        below = arguments[-1]  # the open folder that a path of shutil.rmtree is in
        root = f"/proc/self/fd/{below}" if event != "open" and below in range(1, 9999) else "."
        for path in arguments[: 2 if event == "os.rename" else 1]:
            if isinstance(path, (str, bytes, os.PathLike)):
                path = os.path.join(os.path.realpath(root), os.fsdecode(path))
                os.write(log, f"{event} {path}\\n".encode())

sys.addaudithook(hook)
"""


@pytest.mark.slow
def test_a_run_writes_in_its_directory_alone(tmp_path: Path) -> None:
    """A whole run, with every logger that is a file's, watched from its first line to its last."""
    log, run_dir = tmp_path / "log", tmp_path / "run"
    events = {event for event in HARMFUL if event.startswith(("os.", "pickle."))}
    head = f"LOG_FILE, EVENTS, WRITING = {str(log)!r}, {events}, {WRITING}"
    (tmp_path / "sitecustomize.py").write_text(f"{head}\n{LOG}")
    loggers = ("logger=csv", f"+logger.tb={{_target_: {TENSORBOARD}, save_dir: '${{run_dir}}'}}")
    short = (*SHORT, "em.rounds=1", *loggers, f"run_dir={run_dir}")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    caches = ("TMPDIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")  # of libraries
    done = train(*short, PYTHONPATH=f"{tmp_path}:{ROOT}", **dict.fromkeys(caches, str(temporary)))
    assert done.returncode == 0, done.stderr
    seen = {line.partition(" ")[::2] for line in log.read_text().splitlines()}
    outside = {
        (event, path)
        for event, path in seen
        if not any(Path(path).is_relative_to(folder) for folder in (run_dir, temporary))
        and "__pycache__" not in path
        and path not in (os.devnull, str(log))
    }
    assert ("open", f"{run_dir}/metrics.jsonl") in seen and not outside


TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
