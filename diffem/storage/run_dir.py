"""A run directory belongs to one configuration, is locked by one process, and can be resumed.

.hydra/config.yaml      the configuration of the newest process, without secrets; its first line
                        names the version of diffem that wrote it
.hydra/overrides.yaml   the overrides that the newest process was started with
.hydra/hydra.yaml       Hydra's own node
.hydra/resumed.jsonl    one line for each time that the run was resumed, with what was changed
.lock                   locked by the process that writes

A new run's .hydra is written under a temporary name and renamed: a directory holds a run with its
configuration, or none.
"""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffem import __version__
from diffem.config.paths import path_override, unquoted
from diffem.config.secrets import redact_config
from diffem.config.trainer import check_precision
from diffem.config.yaml_file import check_yaml
from diffem.runtime.errors import UserError, usable
from diffem.runtime.progress import say, warn
from diffem.runtime.rank import global_rank
from diffem.storage.atomic import free_bytes, is_temporary, read_json, write_folder, write_text
from diffem.storage.checkpoint import remove_checkpoint
from diffem.storage.entries import check_entries
from diffem.storage.identity import is_of_run
from diffem.storage.lock import NAMES as LOCK_NAMES
from diffem.storage.lock import holds_lock, lock_folder, unlock_folder
from diffem.storage.numbered import is_evaluation
from diffem.storage.status import ENDED

ENDS = ("em.seconds", "em.nfe", "em.stop")  # what ends EM before em.rounds
FIGURE = "em.stop.figure"
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
    "em.stop",
    "em.keep_rounds",
    "m_step.rollbacks",
)
AUTO = "auto"
_SETTING = re.compile(  # KEY=VALUE, GROUP=CHOICE or ~KEY
    r"(\+{0,2}(?!hydra\b)\w[\w./@:-]*=.*|~(?!hydra\b)\w[\w./@:-]*(=.*)?)", re.DOTALL
)
WITHDRAWN, ERASED = (
    "rows_withdrawn.txt",
    "erased.json",
)  # of a run from which measurements were erased
OWN = (*LOCK_NAMES, ".hydra", "measurements.npz", WITHDRAWN)  # what a new run's directory may hold
SAVED = ("overrides.yaml", "hydra.yaml", "config.yaml")
FOLDERS = (".hydra", "checkpoints", "figures")  # of files alone
RECONSTRUCTIONS = "reconstructions"
PAGE = "report.html"
FILES = (
    *LOCK_NAMES,
    "metrics.jsonl",
    "rounds.json",
    "rounds.damaged.json",
    "summary.json",
    "summary.previous.json",
    "measurements.npz",
    WITHDRAWN,
    ERASED,
    "run.json",
    ENDED,
    PAGE,
)
LOGGERS = ("csv", "tensorboard", "wandb")  # the folders of loggers
NOT_A_DIRECTORY = ("resume=auto", "resume=null")


def open_run(
    cfg: DictConfig,
    hydra: Any,  # noqa: ANN401 - a DictConfig, of another type
    *,
    precision: str,
) -> Path:
    """Opens and locks the run directory of a configuration, to start a run or to resume it.

    Arguments:
        cfg: The configuration. Its `run_dir` is set to the directory, and trainer.precision=auto
            to that which the run began with.
        hydra: Hydra's own node, which names the directory and the overrides.
        precision: What trainer.precision=auto stands for in a new run.

    Returns:
        The run directory.

    Raises:
        UserError: If the directory holds a finished run, one of another configuration or version,
            other files, a link where the run would write, or one that another process is writing,
            or it cannot be written; nothing in it is changed.
        SystemExit: If resume=auto finds a finished run: nothing is left to do.
    """
    run_dir = Path(hydra.runtime.output_dir)
    OmegaConf.update(cfg, "run_dir", str(run_dir))
    with usable("run_dir", run_dir):
        check_places(run_dir)
        check_entries(run_dir, writing=True)
        check_version(run_dir)
        saved = run_dir / ".hydra" / "config.yaml"
        held = _load(saved, DictConfig) if saved.exists() else None
        if cfg.trainer.precision == AUTO:
            recorded = None if held is None else OmegaConf.select(held, "trainer.precision")
            cfg.trainer.precision = recorded or precision
            check_precision(cfg.trainer.precision, cfg.trainer.accelerator)
        changed = _changes(run_dir, held, cfg) if held is not None else None
        if global_rank() != 0:
            return run_dir  # the first process opens it; the others wait where the fit begins
        if changed is None and (other := other_files(run_dir)):
            raise UserError(
                f"run_dir={run_dir} holds other files; choose an empty or new run_dir "
                f"({other[0].name} is not of a run)"
            )
        opened = holds_lock(run_dir)  # by this process already, as `diffem erase` does
        lock_folder(run_dir, "run_dir")
        _remove_temporary(run_dir)
        if changed is None:
            _start(run_dir, cfg, hydra)
        elif changed or not opened:
            _resume(run_dir, cfg, hydra, changed)
    return run_dir


def _start(run_dir: Path, cfg: DictConfig, hydra: Any) -> None:  # noqa: ANN401
    """Writes the configuration of a new run."""

    def write(folder: Path) -> None:
        save_config(hydra.overrides.task, folder / "overrides.yaml")
        save_config(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
        save_config(cfg, folder / "config.yaml")

    folder = run_dir / ".hydra"
    if folder.exists():  # without a configuration: of a process of diffem 0.2 that was killed
        shutil.rmtree(folder)
    write_folder(folder, write)


def _resume(
    run_dir: Path,
    cfg: DictConfig,
    hydra: Any,  # noqa: ANN401
    changed: dict[str, Any],
) -> None:
    """Writes the configuration of a resumed run, and removes what is of fewer rounds."""
    folder = run_dir / ".hydra"
    if (summary := run_dir / "summary.json").is_file():
        summary.replace(run_dir / "summary.previous.json")  # of fewer rounds, or damaged
    (run_dir / ENDED).unlink(missing_ok=True)
    if any(key.startswith("em.") for key in changed):  # prior and student may be of fewer rounds
        for name in ("prior.ckpt", "student.ckpt"):
            remove_checkpoint(run_dir / "checkpoints" / name)
    line = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "changed": changed}
    with (folder / "resumed.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    say(f"resuming {run_dir}")
    # resume=DIR takes the overrides, and is refused if they have fewer rounds than the
    # configuration: a kill between the two must not leave it so.
    save_config(hydra.overrides.task, folder / "overrides.yaml")
    save_config(cfg, folder / "config.yaml")


def other_files(run_dir: Path) -> list[Path]:
    """Returns what a directory without a run's configuration holds that no run has written.

    A process that was killed while it started may have left a lock and temporary files.
    """
    entries = sorted(run_dir.iterdir()) if run_dir.is_dir() else []
    folder = run_dir / ".hydra"
    entries += sorted(folder.iterdir()) if folder.is_dir() else []
    own = {*(run_dir / name for name in OWN), *(folder / name for name in SAVED)}
    return [path for path in entries if path not in own and not is_temporary(path)]


def check_places(run_dir: Path) -> None:
    """Refuses a run directory in which a link, or something else, is where a run writes a file.

    Writing through a link would change a file elsewhere, and opening a FIFO would wait for ever.
    The run directory itself may be a link.

    Raises:
        UserError: If there is one.
    """
    places = [run_dir / name for name in FILES]
    folders = [run_dir / name for name in (*FOLDERS, RECONSTRUCTIONS)]
    reconstructions = run_dir / RECONSTRUCTIONS
    if reconstructions.is_dir() and not reconstructions.is_symlink():
        rounds = [path for path in reconstructions.iterdir() if is_round(path)]
        folders += rounds
        places += [p for r in _folders(rounds) for p in r.iterdir() if not is_lock_folder(p)]
    flat = [run_dir / name for name in FOLDERS]
    places += [path for folder in _folders(flat) for path in folder.iterdir()]
    found = [p for p in folders if _exists(p) and (p.is_symlink() or not p.is_dir())]
    found += [p for p in places if _exists(p) and (p.is_symlink() or not p.is_file())]
    if found:
        what = "a link" if found[0].is_symlink() else "no regular file or folder"
        raise UserError(
            f"{found[0]} is {what}, where a run writes its own; remove it, or choose another "
            "run_dir"
        )


def clear_run(run_dir: Path) -> None:
    """Removes what an unfinished run has left, and nothing else.

    Arguments:
        run_dir: A run directory; it may be absent.

    Raises:
        UserError: If it holds anything that no run has written, is a link, or another process is
            writing it; nothing is removed then.
    """
    check_clearable(run_dir)
    if not run_dir.exists():
        return
    with usable("run_dir", run_dir):
        lock_folder(run_dir, "run_dir")
        try:
            shutil.rmtree(run_dir)
        finally:
            unlock_folder(run_dir)


def check_clearable(run_dir: Path) -> None:
    """Refuses a run directory that `clear_run` would refuse, whoever is writing it.

    Raises:
        UserError: If it holds anything that no run has written, or is a link.
    """
    if not _exists(run_dir):
        return
    if run_dir.is_symlink() or not run_dir.is_dir():
        raise UserError(f"{run_dir} is no folder, where a run would be; move it away")
    own = {*FILES, *FOLDERS, RECONSTRUCTIONS, *LOGGERS}
    if not (run_dir / ".hydra" / "config.yaml").is_file():
        own = set(OWN)  # no run has begun here
    foreign = [
        path
        for path in sorted(run_dir.iterdir())
        if path.name not in own and not is_temporary(path) and not is_evaluation(path)
    ]
    if foreign:
        raise UserError(
            f"{foreign[0]} is not of a run, and {run_dir} would be removed to start the run "
            "again; move it away"
        )


def _folders(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _remove_temporary(run_dir: Path) -> None:
    """Removes the temporary files and locks that killed processes of the run left."""
    reconstructions = run_dir / RECONSTRUCTIONS
    rounds = filter(is_round, reconstructions.iterdir() if reconstructions.is_dir() else ())
    for folder in _folders([run_dir, *(run_dir / name for name in FOLDERS), *rounds]):
        for path in list(folder.iterdir()):
            if not (is_temporary(path) or (is_round(folder) and is_lock_folder(path))):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def save_config(cfg: Any, path: Path) -> None:  # noqa: ANN401 - a DictConfig or a ListConfig
    """Saves a configuration atomically: unresolved, without secrets, under a line of the version.

    Arguments:
        cfg: The configuration, or a list of overrides.
        path: The YAML file.
    """
    plain = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    text = OmegaConf.to_yaml(OmegaConf.create(redact_config(plain)))
    write_text(path, f"# diffem {__version__}\n{text}")


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
    header = re.match(r"# diffem (\d+\.\d+\S*)", file.read_text(encoding="utf-8"))
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


def check_space(run_dir: Path, round_bytes: int, *, rounds: int, last: int) -> None:
    """Refuses a run whose reconstructions would not fit on the disk.

    Arguments:
        run_dir: The run directory.
        round_bytes: The size of one round, in bytes.
        rounds: The largest number of rounds that are on the disk at once.
        last: The number of the last round. Those before the newest that is there, if they were
            removed, are not drawn again.

    Raises:
        UserError: If there is less space than they need.
    """
    held = list(filter(is_round, (run_dir / RECONSTRUCTIONS).glob("round_*")))
    newest = max((int(folder.name.removeprefix("round_")) for folder in held), default=-1)
    rounds = min(rounds, len(held) + last - newest)
    present = sum(file.stat().st_size for folder in held for file in folder.glob("*.npy"))
    needed, free = round_bytes * rounds - present, free_bytes(run_dir)
    if needed > free:
        raise UserError(
            f"run_dir={run_dir}: the reconstructions of {rounds} rounds need {needed / 1e9:.2g} "
            f"GB and {free / 1e9:.2g} GB are free; set em.keep_rounds=2, or choose a run_dir on "
            "another disk"
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
    with usable("resume", run_dir):
        if not file.is_file():
            raise UserError(f"resume={run_dir}: no run is there; give a run directory, or auto")
        check_entries(run_dir, writing=False)
        check_version(run_dir)
    others = [a for a in arguments if not a.startswith("resume=")]
    replaced = {_key(a) for a in others} | {"run_dir", "resume"}
    # Not resolved: an interpolation in an override is of the configuration it goes into.
    saved = OmegaConf.to_container(_load(file, ListConfig), resolve=False)
    if wrong := [o for o in saved or () if not _is_setting(o)]:
        raise UserError(
            f"{file} is damaged: {str(wrong[0])[:80]!r} sets no key of a run's configuration; "
            "start a new run in another run_dir"
        )
    before = [str(o) for o in saved or () if _key(str(o)) not in replaced]
    if trust := [o for o in before if _key(o) == "trust"]:
        raise UserError(
            f"resume={run_dir}: the run was started with {trust[-1]}, which is taken from the "
            "command line alone; give it again if you trust what the directory holds"
        )
    return [*before, *others, path_override("run_dir", run_dir), "resume=auto"]


def config_hash(cfg: DictConfig) -> str:
    """Returns the sha256 of the settings that determine a run's results."""
    fixed = {k: v for k, v in flatten(_plain(cfg)).items() if not _is_mutable(k)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def is_finished(run_dir: Path) -> bool:
    """Returns whether a run has written its summary; warns of one that is damaged."""
    file = run_dir / "summary.json"
    summary = read_json(file)
    if summary is not None and isinstance(summary.get("final"), dict):
        if is_of_run(run_dir, summary):
            return True
        warn(f"{file} is of another run; the run is evaluated again")
    elif file.exists():
        warn(f"{file} is damaged; the run is evaluated again")
    return False


def as_given(value: object) -> str:
    """Returns a setting's value as a command line gives it: null for None, true for True."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _changes(run_dir: Path, saved: Any, cfg: DictConfig) -> dict[str, Any]:  # noqa: ANN401
    """Returns what differs from the saved configuration, as {key: [saved, given]}.

    Raises:
        UserError: If a setting differs that may not, or the run is finished.
        SystemExit: If the run is finished and resume=auto.
    """
    a, b = flatten(_plain(saved)), flatten(_plain(cfg))
    changed = {
        k: [a.get(k), b.get(k)] for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
    }
    if keys := [k for k, values in changed.items() if not _may_change(k, values)]:
        texts = {k: [as_given(value) for value in changed[k]] for k in keys}
        was = ", ".join(f"{k} was {before} and is {now}" for k, (before, now) in texts.items())
        moved = keys == ["dataset.path"]
        raise UserError(
            f"run_dir={run_dir} holds a run of another config: {was}; choose another run_dir, or "
            f"the same values{', by a link at the old place to what was moved' * moved}"
        )
    rounds = a.get("em.rounds")
    if type(rounds) is not int:
        raise UserError(f"{run_dir / '.hydra' / 'config.yaml'} is damaged; choose another run_dir")
    if cfg.em.rounds < rounds:
        raise UserError(
            f"em.rounds may only grow where a run is resumed: it was {rounds}, got "
            f"{cfg.em.rounds}; give em.rounds={rounds} or more"
        )
    if cfg.em.rounds == rounds and is_finished(run_dir):
        if cfg.resume == AUTO:
            if global_rank() == 0:
                ends = next((name for name in ENDS for k in changed if _is_of(k, [name])), None)
                without = "" if ends is None else f": {ends} has no effect without more em.rounds"
                say(f"{run_dir} is finished already{without}")
            sys.exit(0)
        raise UserError(
            f"run_dir={run_dir} holds a finished run; choose another run_dir, or a larger "
            "em.rounds to resume it"
        )
    return {k: v for k, v in changed.items() if k not in ("run_dir", "resume")}


def _load(file: Path, config_type: type) -> Any:  # noqa: ANN401 - a DictConfig or a ListConfig
    """Returns a saved configuration.

    Raises:
        UserError: If the file is damaged.
    """
    check_yaml(file)
    try:
        saved = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError):
        saved = None
    if not isinstance(saved, config_type):
        raise UserError(f"{file} is damaged; choose another run_dir")
    return saved


def read_settings(run_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the configuration and the overrides that a run directory holds, in plain types.

    Arguments:
        run_dir: A run directory; without the files there is nothing in either.

    Raises:
        UserError: If a file is damaged.
    """
    config, overrides = (run_dir / ".hydra" / name for name in ("config.yaml", "overrides.yaml"))
    held = _load(config, DictConfig) if config.is_file() else OmegaConf.create()
    given = _load(overrides, ListConfig) if overrides.is_file() else OmegaConf.create([])
    plain = OmegaConf.to_container(held, resolve=False)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    return settings, [str(o) for o in OmegaConf.to_container(given, resolve=False) or ()]


def flatten(value: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Returns {full key: value} of nested dictionaries."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    items = [flatten(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
    return {k: v for item in items for k, v in item.items()}


def is_round(path: Path) -> bool:
    """Returns whether a path is named like the folder of a round."""
    return re.fullmatch(r"round_\d{3,}", path.name) is not None


def is_lock_folder(path: Path) -> bool:
    """Returns whether a path is named like the folder of a round's chunk locks."""
    return path.name.startswith("locks_")


def _is_mutable(key: str) -> bool:
    return _is_of(key, MUTABLE)


def _is_of(key: str, names: Sequence[str]) -> bool:
    """Returns whether a key is one of some, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _may_change(key: str, values: Sequence[object]) -> bool:
    """Returns whether a key's value may differ from the saved one.

    The best value of a figure to stop by is kept, and says nothing about another figure.
    """
    return _is_mutable(key) and not (key == FIGURE and None not in values)


def _is_setting(override: object) -> bool:
    """Returns whether an override sets a key of a run; a flag or a key of Hydra's own does not.

    What a run directory holds may come from elsewhere: it is data, and Hydra's keys run things.
    """
    return isinstance(override, str) and bool(_SETTING.fullmatch(override))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = redact_config(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
