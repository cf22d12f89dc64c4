"""A run directory belongs to one configuration, is locked by one process, and can be resumed.

.hydra/config.yaml      the configuration of the newest process, without secrets; its first line
                        names the version of diffem that wrote it
.hydra/overrides.yaml   the overrides that the run was started with
.hydra/hydra.yaml       Hydra's own node
.hydra/resumed.jsonl    one line for each time that the run was resumed, with what was changed
.lock                   locked by the process that writes
"""

import fcntl
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffem import __version__
from diffem.config.paths import path_override, unquoted
from diffem.config.secrets import redact_config
from diffem.runtime.errors import UserError
from diffem.runtime.progress import say
from diffem.runtime.signals import global_rank
from diffem.storage.atomic import free_bytes, write_file
from diffem.storage.checkpoint import remove_checkpoint

MUTABLE = (  # keys whose values may differ between the processes of one run
    "run_dir",
    "resume",
    "trust",
    "logger",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "objective",
    "em.rounds",
    "em.seconds",
    "em.nfe",
    "m_step.rollbacks",
)
AUTO = "auto"
OWN = (".lock", ".hydra", "measurements.npz")  # what a new run's directory may hold
NOT_A_DIRECTORY = ("resume=auto", "resume=null")
_locks: dict[Path, IO[str]] = {}  # open as long as the run or this process lives


def open_run(cfg: DictConfig, hydra: Any) -> Path:  # noqa: ANN401 - a DictConfig, of another type
    """Opens and locks the run directory of a configuration, to start a run or to resume it.

    Arguments:
        cfg: The configuration. Its `run_dir` is set to the directory.
        hydra: Hydra's own node, which names the directory and the overrides.

    Returns:
        The run directory.

    Raises:
        UserError: If the directory holds a finished run, one of another configuration or version,
            other files, or one that another process is writing; nothing in it is changed.
        SystemExit: If resume=auto finds a finished run: nothing is left to do.
    """
    run_dir = Path(hydra.runtime.output_dir)
    OmegaConf.update(cfg, "run_dir", str(run_dir))
    check_version(run_dir)
    folder, first = run_dir / ".hydra", global_rank() == 0
    saved = folder / "config.yaml"
    changed = _changes(run_dir, _load(saved, DictConfig), cfg) if saved.exists() else {}
    if not first:
        return run_dir  # the first process opens it; the others wait for it where the fit begins
    if saved.exists():
        _lock(run_dir)
        if (summary := run_dir / "summary.json").is_file():
            summary.replace(run_dir / "summary.previous.json")  # of fewer rounds
        if any(key.startswith("em.") for key in changed):  # the prior may be of fewer rounds too
            remove_checkpoint(run_dir / "checkpoints" / "prior.ckpt")
        line = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "changed": changed}
        with (folder / "resumed.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(f"resuming {run_dir}")
    else:
        # .hydra without a configuration is of a process that was killed right here.
        if [path for path in run_dir.iterdir() if path.name not in OWN]:
            raise UserError(f"run_dir={run_dir} holds other files; choose an empty or new run_dir")
        _lock(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_config(hydra.overrides.task, folder / "overrides.yaml")
        save_config(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    save_config(cfg, saved)
    return run_dir


def save_config(cfg: Any, path: Path) -> None:  # noqa: ANN401 - a DictConfig or a ListConfig
    """Saves a configuration atomically: unresolved, without secrets, under a line of the version.

    Arguments:
        cfg: The configuration, or a list of overrides.
        path: The YAML file.
    """
    plain = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    text = OmegaConf.to_yaml(OmegaConf.create(redact_config(plain)))
    content = f"# diffem {__version__}\n{text}".encode()
    write_file(path, lambda file: file.write(content))


def check_version(run_dir: Path) -> None:
    """Refuses a run directory that another minor version of diffem wrote.

    Arguments:
        run_dir: A run directory; it may be empty or absent.

    Raises:
        UserError: If it was written by another version, or its configuration is damaged.
    """
    file = run_dir / ".hydra" / "config.yaml"
    if not file.is_file():
        return
    _load(file, DictConfig)
    header = re.match(r"# diffem (\d+\.\d+\S*)", file.read_text())
    check_same_version(str(run_dir), None if header is None else header[1])


def check_same_version(where: str, version: str | None) -> None:
    """Refuses what another minor version of diffem wrote.

    Arguments:
        where: The run directory or the file.
        version: The version that wrote it; None for 0.1 or older, which did not say.

    Raises:
        UserError: If major or minor version differ from this one's.
    """
    if version is None or version.split(".")[:2] != __version__.split(".")[:2]:
        raise UserError(
            f"{where} was written by diffem {version or '0.1 or older'} and this is diffem "
            f"{__version__}; use it with the version that wrote it, or start a new run in another "
            "run_dir"
        )


def check_space(run_dir: Path, round_bytes: int, *, rounds: int) -> None:
    """Refuses a run whose reconstructions would not fit on the disk.

    Arguments:
        run_dir: The run directory.
        round_bytes: The size of one round, in bytes.
        rounds: The largest number of rounds that are on the disk at once.

    Raises:
        UserError: If there is less space than they need.
    """
    present = sum(file.stat().st_size for file in run_dir.glob("reconstructions/round_*/*.npy"))
    needed, free = round_bytes * rounds - present, free_bytes(run_dir)
    if needed > free:
        raise UserError(
            f"run_dir={run_dir}: the reconstructions of {rounds} rounds need {needed / 1e9:.2g} "
            f"GB and {free / 1e9:.2g} GB are free; set em.keep_rounds, or choose another disk"
        )


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments with resume=DIR replaced by the overrides of that run.

    Arguments:
        arguments: The command's arguments; the others replace overrides of the same key.

    Raises:
        UserError: If DIR holds no run or one of another version, or if it trusted packages that
            are not given again.
    """
    given = [a for a in arguments if a.startswith("resume=") and a not in NOT_A_DIRECTORY]
    if not given:
        return list(arguments)
    run_dir = Path(unquoted(given[-1].removeprefix("resume=")))
    file = run_dir / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UserError(f"resume={run_dir}: no run is there; give a run directory, or auto")
    check_version(run_dir)
    others = [a for a in arguments if not a.startswith("resume=")]
    replaced = {_key(a) for a in others} | {"run_dir", "resume"}
    # Not resolved: an interpolation in an override is of the configuration it goes into.
    saved = OmegaConf.to_container(_load(file, ListConfig), resolve=False)
    before = [str(o) for o in saved or () if _key(str(o)) not in replaced]
    if trust := [o for o in before if _key(o) == "trust"]:
        raise UserError(
            f"resume={run_dir}: the run was started with {trust[-1]}, which is taken from the "
            "command line alone; give it again if you trust what the directory holds"
        )
    return [*before, *others, path_override("run_dir", run_dir), "resume=auto"]


def config_hash(cfg: DictConfig) -> str:
    """Returns the sha256 of the settings that determine a run's results."""
    fixed = {k: v for k, v in _flatten(_plain(cfg)).items() if not _is_mutable(k)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _changes(run_dir: Path, saved: Any, cfg: DictConfig) -> dict[str, Any]:  # noqa: ANN401
    """Returns what differs from the saved configuration, as {key: [saved, given]}.

    Raises:
        UserError: If a setting differs that may not, or the run is finished.
        SystemExit: If the run is finished and resume=auto.
    """
    a, b = _flatten(_plain(saved)), _flatten(_plain(cfg))
    changed = {
        k: [a.get(k), b.get(k)] for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
    }
    if keys := [k for k in changed if not _is_mutable(k)]:
        was = ", ".join(f"{k} was {changed[k][0]} and is {changed[k][1]}" for k in keys)
        raise UserError(
            f"run_dir={run_dir} holds a run of another config: {was}; choose another run_dir, or "
            "the same values"
        )
    if cfg.em.rounds < saved.em.rounds:
        raise UserError(
            f"em.rounds may only grow where a run is resumed: it was {saved.em.rounds}, got "
            f"{cfg.em.rounds}"
        )
    if (run_dir / "summary.json").is_file() and cfg.em.rounds == saved.em.rounds:
        if cfg.resume == AUTO:
            if global_rank() == 0:
                say(f"{run_dir} is finished already")
            sys.exit(0)
        raise UserError(
            f"run_dir={run_dir} holds a finished run; choose another run_dir, or a larger "
            "em.rounds to resume it"
        )
    return {k: v for k, v in changed.items() if k not in ("run_dir", "resume")}


def _lock(run_dir: Path) -> None:
    file = (run_dir / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"run_dir={run_dir} is being written by another process; wait for it, or choose "
            "another"
        ) from error
    _locks[run_dir] = file


def unlock(run_dir: Path) -> None:
    """Lets other processes write a run directory that this process has locked, if it has."""
    if run_dir in _locks:
        _locks.pop(run_dir).close()


def _load(file: Path, config_type: type) -> Any:  # noqa: ANN401 - a DictConfig or a ListConfig
    """Returns a saved configuration.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        saved = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, config_type):
        raise UserError(f"{file} is damaged; choose another run_dir")
    return saved


def _is_mutable(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in MUTABLE)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = redact_config(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _flatten(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Returns {full key: value} of nested dictionaries."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    items = [_flatten(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
    return {k: v for item in items for k, v in item.items()}
