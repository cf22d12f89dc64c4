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

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from diffem.error import UserError, check_count
from diffem.run_dir import resumed_arguments
from diffem.signals import (
    RANK_DIED,
    place,
    stop,
    stop_on_signals,
    tell,
    tied_to_parent,
    watch_signals,
)
from diffem.sweep import summed_up
from diffem.trust import check_arguments

CONF = Path(__file__).parent.parent / "conf"
SWEEP = ("-m", "--multirun")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")


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
    with tied_to_parent(), mistakes_told():
        given = resumed_arguments(sys.argv[1:])
        sys.argv[1:] = sorted(given, key=lambda a: a not in SWEEP)  # Hydra wants it first
        if not set(SWEEP).isdisjoint(given) and (started_elsewhere() or 1) > 1:
            raise UserError(
                "-m is started as one process, and its jobs start theirs; leave out torchrun and "
                "srun (docs/cluster.md has sweeps under SLURM)"
            )
        check_arguments(sys.argv[1:], str(CONF), "train")
        with summed_up():
            main()


@contextmanager
def mistakes_told() -> Iterator[None]:
    """Opens a scope in which a user's mistake ends the process with one sentence."""
    try:
        yield
    except (UserError, FloatingPointError, HydraException, OmegaConfBaseException) as error:
        where = f"process {rank}: " if (rank := place()) else ""
        tell(f"{where}error: {_sentence(error)}")
        sys.exit(1)
    except RuntimeError as error:
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


def believed(cfg: DictConfig) -> DictConfig:
    """Returns the config of the channel as the method takes it to be.

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


def check(cfg: DictConfig) -> None:
    """Refuses what no part of the config refuses by itself.

    Raises:
        UserError: If a number of steps is not at least 1, the machine lacks the devices, or
            several processes would each choose a run directory.
    """
    check_count("sampler.steps", cfg.sampler.steps)
    if cfg.prior is not None:
        check_count("prior.steps", cfg.prior.steps)
    check_devices(cfg)
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    if (started_elsewhere() or 1) > 1 and "${now:" in str(plain["run_dir"]):
        raise UserError(
            "run_dir must be given where torchrun or srun starts the processes, or each would "
            "name its own by the time: run_dir=runs/NAME"
        )


def check_devices(cfg: DictConfig) -> None:
    """Refuses devices that this machine does not have.

    Raises:
        UserError: If there are fewer GPUs, or fewer than half as many CPU cores, as devices; or if
            the run's processes were not started, or another number of them.
    """
    accelerator, devices = cfg.trainer.accelerator, cfg.trainer.devices
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if accelerator not in ACCELERATORS:
        raise UserError(
            f"trainer.accelerator must be one of {', '.join(ACCELERATORS)}, got {accelerator}"
        )
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise UserError(
            f"trainer.accelerator={accelerator}, but torch finds no GPU on this machine; use "
            "trainer.accelerator=cpu or auto"
        )
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    limit, unit = (gpus, "GPUs") if on_gpu else (2 * cores, f"processes for {cores} CPU cores")
    if isinstance(devices, int) and not 1 <= devices <= limit:
        raise UserError(
            f"trainer.devices must be in [1, {limit}] ({limit} {unit} on this machine), "
            f"got {devices}"
        )
    started, nodes = started_elsewhere(), cfg.trainer.num_nodes
    if started is None and nodes != 1 and "NODE_RANK" not in os.environ:
        raise UserError(
            f"trainer.num_nodes={nodes} needs a process on each device of each node, started by "
            "torchrun or srun (docs/cluster.md)"
        )
    if started is not None and isinstance(devices, int) and started != devices * nodes:
        raise UserError(
            f"trainer.devices={devices} and trainer.num_nodes={nodes} need {devices * nodes} "
            f"processes, but torchrun or srun started {started}; devices are those of one node"
        )


def started_elsewhere() -> int | None:
    """Returns how many processes of this run torchrun or srun started, None if neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None  # as Lightning has it: a shell in an allocation
    tasks = os.environ.get("SLURM_NTASKS")
    return int(tasks) if tasks else None


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
