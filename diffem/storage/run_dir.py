"""The run directory: of one configuration, written by one process, gone on with if unfinished.

.hydra/config.yaml      the configuration, with what was changed by those who went on; no secrets
.hydra/overrides.yaml   what the first command was given
.hydra/resumed.jsonl    one line for each time that the run went on, and what was changed
.lock                   held by the process that writes
"""

import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffem.config.secrets import redacted
from diffem.runtime.errors import UserError
from diffem.runtime.progress import console
from diffem.runtime.signals import global_rank
from diffem.storage.atomic import free_bytes, write_file
from diffem.storage.checkpoint import remove_checkpoint

FREE_KEYS = (  # what may differ between the processes of one run
    "run_dir",
    "resume",
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
_locks: list[IO[str]] = []  # open as long as this process lives


def open_run(cfg: DictConfig) -> Path:
    """Returns the run directory, claimed by this process and this configuration.

    An unfinished run of the same configuration is gone on with.

    Raises:
        UserError: If the directory holds a finished run, one of another configuration, other
            files, or one that another process is writing; nothing in it is touched.
        SystemExit: If resume=auto finds a finished run: nothing is left to do.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    OmegaConf.update(cfg, "run_dir", str(run_dir))
    folder, first = run_dir / ".hydra", global_rank() == 0
    held = folder / "config.yaml"
    changed = _check(run_dir, _saved(held, DictConfig), cfg) if held.exists() else {}
    if not first:
        return run_dir  # the first process opens it; the others wait for it where the fit begins
    if held.exists():
        _lock(run_dir)
        if (summary := run_dir / "summary.json").is_file():
            summary.replace(run_dir / "summary.previous.json")  # of fewer rounds
        if any(key.startswith("em.") for key in changed):  # the prior may be of fewer rounds too
            remove_checkpoint(run_dir / "checkpoints" / "prior.ckpt")
        line = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "changed": changed}
        with (folder / "resumed.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        console.print(f"going on with {run_dir}", soft_wrap=True, markup=False)
    else:
        if [path for path in run_dir.iterdir() if path.name != ".lock"]:
            raise UserError(f"run_dir={run_dir} holds other files; choose an empty or new run_dir")
        _lock(run_dir)
        folder.mkdir(parents=True)
        save_config(hydra.overrides.task, folder / "overrides.yaml")
        save_config(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    save_config(cfg, held)
    return run_dir


def save_config(cfg: Any, path: Path) -> None:  # noqa: ANN401 - a DictConfig or a ListConfig
    """Saves a config as it is written, its interpolations too, but for its secrets."""
    plain = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    content = OmegaConf.to_yaml(OmegaConf.create(redacted(plain))).encode()
    write_file(path, lambda file: file.write(content))  # whole, for the other processes


def check_space(run_dir: Path, round_bytes: int, *, rounds: int) -> None:
    """Refuses a run whose reconstructions would not fit on the disk.

    Arguments:
        run_dir: The run directory.
        round_bytes: The size of one round, in bytes.
        rounds: The largest number of rounds that are on the disk at once.

    Raises:
        UserError: If there is less space than they need.
    """
    held = sum(file.stat().st_size for file in run_dir.glob("reconstructions/round_*/*.npy"))
    needed, free = round_bytes * rounds - held, free_bytes(run_dir)
    if needed > free:
        raise UserError(
            f"run_dir={run_dir}: the reconstructions of {rounds} rounds need {needed / 1e9:.2g} "
            f"GB and {free / 1e9:.2g} GB are free; set em.keep_rounds, or choose another disk"
        )


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments with resume=DIR replaced by what that run was given.

    Raises:
        UserError: If DIR holds no run.
    """
    given = [a for a in arguments if a.startswith("resume=") and a not in _WORDS]
    if not given:
        return list(arguments)
    run_dir = Path(given[-1].removeprefix("resume="))
    file = run_dir / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise UserError(f"resume={run_dir}: no run is there; give a run directory, or auto")
    others = [a for a in arguments if not a.startswith("resume=")]
    own = {_key(a) for a in others} | {"run_dir", "resume"}
    # Not resolved: an interpolation in an argument is of the config that it goes into.
    held = OmegaConf.to_container(_saved(file, ListConfig), resolve=False)
    before = [str(o) for o in held or () if _key(str(o)) not in own]
    return [*before, *others, f"run_dir={run_dir}", "resume=auto"]


_WORDS = ("resume=auto", "resume=null")


def config_hash(cfg: DictConfig) -> str:
    """Returns the sha256 of what decides a run's results."""
    decisive = {k: v for k, v in _flat(_plain(cfg)).items() if not _free(k)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _check(run_dir: Path, held: Any, cfg: DictConfig) -> dict[str, Any]:  # noqa: ANN401
    """Returns what differs and may, as {key: [held, given]}."""
    a, b = _flat(_plain(held)), _flat(_plain(cfg))
    changed = {
        k: [a.get(k), b.get(k)] for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
    }
    if keys := [k for k in changed if not _free(k)]:
        was = ", ".join(f"{k} was {changed[k][0]} and is {changed[k][1]}" for k in keys)
        raise UserError(
            f"run_dir={run_dir} holds a run of another config: {was}; choose another run_dir, or "
            "the same values"
        )
    if cfg.em.rounds < held.em.rounds:
        raise UserError(
            f"em.rounds may only grow where a run goes on: it was {held.em.rounds}, got "
            f"{cfg.em.rounds}"
        )
    if (run_dir / "summary.json").is_file() and cfg.em.rounds == held.em.rounds:
        if cfg.resume == AUTO:
            if global_rank() == 0:
                console.print(f"{run_dir} is finished already", soft_wrap=True, markup=False)
            sys.exit(0)
        raise UserError(
            f"run_dir={run_dir} holds a finished run; choose another run_dir, or a larger "
            "em.rounds to go on with it"
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
    _locks.append(file)


def _saved(file: Path, kind: type) -> Any:  # noqa: ANN401 - a DictConfig or a ListConfig
    """Returns what a run had saved of its configuration.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        held = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError):
        held = None
    if not isinstance(held, kind):
        raise UserError(f"{file} is damaged; choose another run_dir")
    return held


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = redacted(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _flat(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict) or not value:
        return {name: value}
    items = [_flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
    return {k: v for item in items for k, v in item.items()}
