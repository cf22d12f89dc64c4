"""What every command shares: composing a config, opening a run directory, telling mistakes."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from diffem.cli.sweep import print_sweep_summary
from diffem.config.allow_list import check_arguments
from diffem.config.secrets import hidden, redacted, told
from diffem.config.trainer import check_trainer, started_elsewhere
from diffem.runtime.errors import UserError, check_count, check_fraction, check_positive
from diffem.runtime.signals import (
    RANK_DIED,
    exit_with_parent,
    global_rank,
    stop,
    stop_on_signals,
    tell,
    watch_signals,
)
from diffem.storage.atomic import FREE_SOME, FULL
from diffem.storage.run_dir import resumed_arguments

CONF = Path(__file__).parents[2] / "conf"
SWEEP = ("-m", "--multirun")
NO_MEMORY = "out of memory|can't allocate memory|unable to mmap"


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's Hydra main; a user's mistake becomes one sentence and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through, to be told here
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # Batches are fetched whole from memory maps: worker processes would only slow them down.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings(
        "ignore", "Deprecated API features detected"
    )  # Optuna's, of SQLAlchemy
    stop_on_signals()
    watch_signals()
    with exit_with_parent(), report_user_errors():
        given = hidden(resumed_arguments(sys.argv[1:]))
        sys.argv[1:] = sorted(given, key=lambda a: a not in SWEEP)  # Hydra wants it first
        if not set(SWEEP).isdisjoint(given) and (started_elsewhere() or 1) > 1:
            raise UserError(
                "-m is started as one process, and its jobs start theirs; leave out torchrun and "
                "srun (docs/cluster.md has sweeps under SLURM)"
            )
        check_arguments(sys.argv[1:], str(CONF), "train")
        with print_sweep_summary():
            main()


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Opens a scope in which a user's mistake ends the process with one sentence."""
    try:
        yield
    except (UserError, FloatingPointError, HydraException, OmegaConfBaseException) as error:
        where = f"process {rank}: " if (rank := global_rank()) else ""
        tell(f"{where}error: {told(_sentence(error))}")
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        tell(f"error: no space left on the disk{where}; {FREE_SOME}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
            line = str(error).splitlines()[0] if str(error) else "no more is there"
            tell(
                f"error: the memory does not suffice ({line}); lower em.batch_size, em.chunk_size "
                "or the size of the network or the data"
            )
            sys.exit(1)
        if re.search(r"\bgloo\b|\bNCCL\b|Connection closed by peer", str(error)):
            # A collective fails when a rank is gone. The watch over the ranks can say more.
            time.sleep(1.0)
            stop(RANK_DIED, 1)
        raise


def about(cfg: DictConfig) -> dict[str, Any]:
    """Returns what heads a run's summary: its choices, seed and devices."""
    chosen = HydraConfig.get().runtime.choices
    groups = {group: chosen[group] for group in ("dataset", "corruption", "method", "init")}
    seen = cfg.method.supervised or chosen["init"] == "clean"
    devices = {key: cfg.trainer[key] for key in ("accelerator", "devices", "num_nodes")}
    return {**groups, "clean_images": seen, "seed": cfg.seed, "devices": devices}


def shown(cfg: DictConfig) -> dict[str, Any]:
    """Returns the config as it may be shown: resolved, but for secrets and the environment."""
    written = redacted(OmegaConf.to_container(cfg, resolve=False))
    plain = OmegaConf.to_container(OmegaConf.create(_unresolved(written)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _unresolved(value: Any) -> Any:  # noqa: ANN401 - a container of plain types
    """Returns a config in which what comes from the environment is no interpolation."""
    if isinstance(value, dict):
        return {k: _unresolved(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unresolved(v) for v in value]
    from_environment = isinstance(value, str) and "oc.env" in value
    return value.replace("${", "\\${") if from_environment else value


def assumed(cfg: DictConfig) -> DictConfig:
    """Returns the config of the channel as the method assumes it to be.

    Raises:
        UserError: If `assumed` holds a key that the corruption does not have.
    """
    try:
        merged = OmegaConf.merge(cfg.corruption, cfg.assumed)
    except ConfigKeyError as error:
        known = ", ".join(str(key) for key in cfg.corruption if key != "_target_")
        raise UserError(
            f"assumed.{error.key} is not a key of the corruption; allowed: {known}"
        ) from error
    assert isinstance(merged, DictConfig)
    return merged


def is_given(group: str) -> bool:
    """Returns whether the command line chooses a group or sets a key of it."""
    keys = (o.lstrip("+~").partition("=")[0] for o in HydraConfig.get().overrides.task)
    return any(key == group or key.startswith(f"{group}.") for key in keys)


def check(cfg: DictConfig) -> None:
    """Refuses what no part of the config refuses by itself.

    Raises:
        UserError: If a number of steps is not at least 1, of the trainer's keys one is not known
            to keep the laws, the machine lacks the devices, or several processes would each
            choose a run directory.
    """
    check_count("sampler.steps", cfg.sampler.steps)
    for key in ("order", "corrections"):
        if key in cfg.sampler:
            check_count(f"sampler.{key}", cfg.sampler[key])
    if "delta" in cfg.sampler:
        check_fraction("sampler.delta", cfg.sampler.delta)
    if cfg.prior is not None:
        check_count("prior.steps", cfg.prior.steps)
    check_trainer(_plain(cfg.trainer))
    if type(cfg.seed) is not int:
        raise UserError(f"seed must be a whole number, got {cfg.seed!r}")
    for side in cfg.dataset.shape:
        check_count("dataset.shape: a side", side)
    sigmas = [k for k in ("sigma_min", "sigma_max") if k in cfg.schedule]
    levels = [check_positive(f"schedule.{k}", cfg.schedule[k]) for k in sigmas]
    if levels != sorted(set(levels)):
        raise UserError(f"schedule.sigma_min must be below schedule.sigma_max, got {levels}")
    for name, logger in cfg.logger.items():
        if not OmegaConf.is_dict(logger) or "_target_" not in logger:
            raise UserError(f"logger.{name} must have a _target_, got {logger}")
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    if (started_elsewhere() or 1) > 1 and "${now:" in str(plain["run_dir"]):
        raise UserError(
            "run_dir must be given where torchrun or srun starts the processes, or each would "
            "name its own by the time: run_dir=runs/NAME"
        )


def _plain(node: Any) -> Any:  # noqa: ANN401
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _sentence(error: Exception) -> str:
    """Returns what an error says to a user."""
    text, cause = str(error), error.__cause__
    if isinstance(error, UserError | FloatingPointError):
        return text
    if isinstance(error, InstantiationException):
        if isinstance(cause, UserError):
            return str(cause)
        key = re.search(r"full_key: (\S+)", text)
        where = key.group(1) if key else "the config"
        return f"{where} cannot be built: {' '.join(str(cause).split())}"
    if choice := re.search(r"Could not find '(\w+)/(.+?)'", text):
        group, name = choice.groups()
        known = ", ".join(re.findall(r"^\t([\w-]+)$", text, flags=re.MULTILINE))
        return f"{group}={name} is not a choice; {group} can be: {known}"
    if key := re.search(r"Could not override '([\w.@/]+)'", text):
        return f"{key.group(1)} is not a key of the config; allowed: {_siblings(key.group(1))}"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing.group(1)} must be given: {missing.group(1)}=VALUE"
    return " ".join(text.split())


def _siblings(key: str) -> str:
    """Returns the keys that stand beside a key under the choices on the command line."""
    choices = [arg for arg in sys.argv[1:] if re.fullmatch(r"[\w/]+=[\w-]+", arg)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[c for c in choices if (CONF / c.split("=")[0]).is_dir()])
    parent = key.rpartition(".")[0]
    while parent and not OmegaConf.is_dict(OmegaConf.select(cfg, parent, default=None)):
        parent = parent.rpartition(".")[0]
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return ", ".join(f"{parent}.{k}" if parent else str(k) for k in node if k != "_target_")
