"""Checks of Lightning's trainer: settings that keep the guarantees, on devices that exist.

The guarantees are that a killed run resumes to the weights of an uninterrupted one, that an E-step
depends on seed, round and weights alone, and that a batch is of the current round. Most of the
trainer's arguments would break one silently: accumulated gradients, fewer batches, another
sampler, FSDP.
"""

import os
from collections.abc import Mapping
from typing import Any

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.runtime.rank import SRUN, external_processes, starter_of

TARGET = "lightning.Trainer"
KEYS = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "gradient_clip_val",
    "log_every_n_steps",
    "deterministic",
)
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp")
DDP = "lightning.pytorch.strategies.DDPStrategy"


def check_trainer(trainer: Any) -> None:  # noqa: ANN401 - from YAML
    """Checks the configuration of a trainer.

    Arguments:
        trainer: The configuration, in plain types.

    Raises:
        UserError: If a key or a value is not known to keep the guarantees, or this machine lacks
            the devices.
    """
    if not isinstance(trainer, dict) or trainer.get("_target_") != TARGET:
        raise UserError(f"trainer must be a {TARGET}, got {trainer}")
    if wrong := {*trainer} ^ {*KEYS, "_target_"}:
        raise UserError(
            f"trainer.{min(map(str, wrong))} is missing, or not known to keep a run's laws "
            f"(docs/invariants.md); trainer has {', '.join(KEYS)}"
        )
    _check_choice("accelerator", trainer["accelerator"], ACCELERATORS)
    _check_choice("precision", trainer["precision"], PRECISIONS)
    _check_choice("deterministic", trainer["deterministic"], (True, False, "warn"))
    for key in ("num_nodes", "log_every_n_steps", "gradient_clip_val"):
        check(f"trainer.{key}", trainer[key])
    check_strategy(strategy := trainer["strategy"])
    if isinstance(strategy, Mapping) and "bucket_cap_mb" in strategy:
        check("trainer.strategy.bucket_cap_mb", strategy["bucket_cap_mb"])
    _check_devices(trainer)


def _check_choice(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
        known = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in allowed)
        raise UserError(f"trainer.{key} must be one of {known}, got {value!r}")


def check_precision(precision: str, accelerator: str) -> None:
    """Refuses a precision that no device here has.

    Arguments:
        precision: `trainer.precision`.
        accelerator: `trainer.accelerator`.

    Raises:
        UserError: If it is 16-mixed and there is no GPU.
    """
    if precision == "16-mixed" and (accelerator in ("cpu", "mps") or not _gpu_count()):
        raise UserError(
            "trainer.precision=16-mixed needs a GPU; resume a run that began with it on a machine "
            "with one, and start a new one with trainer.precision=auto, which is bf16-mixed where "
            "the processor has bfloat16, and otherwise 32-true"
        )


def check_strategy(strategy: object) -> None:
    """Checks a trainer's strategy: a name, or a part with a `_target_`.

    Raises:
        UserError: If it is not known to keep the guarantees.
    """
    target = strategy.get("_target_") if isinstance(strategy, Mapping) else strategy
    if target not in (*STRATEGIES, DDP) or (target == DDP) != isinstance(strategy, Mapping):
        raise UserError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)} or a {DDP}, got {target!r}: "
            "FSDP and others that split the weights do not keep a run's laws, whose E-step and "
            "checkpoints need all averaged weights on every device; choose a network that fits"
        )


def _check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuses more devices than there are GPUs, or more than two processes for each CPU core."""
    accelerator, devices = trainer["accelerator"], trainer["devices"]
    check_precision(trainer["precision"], accelerator)
    # torch, which counts the GPUs, takes seconds to import: only where the number matters.
    counts = accelerator == "auto" and devices != 1
    gpus = _gpu_count() if counts or accelerator in ("gpu", "cuda") else 0
    cores = os.cpu_count() or 1
    lacks_gpu = accelerator in ("gpu", "cuda") and gpus == 0
    if lacks_gpu or (accelerator == "mps" and not _has_mps()):
        raise UserError(
            f"trainer.accelerator={accelerator}, but torch finds no GPU on this machine; use "
            "trainer.accelerator=cpu or auto"
        )
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    _check_processes(devices, trainer["num_nodes"])
    limit, unit = (gpus, "GPUs") if on_gpu else (2 * cores, f"processes for {cores} CPU cores")
    if devices == "auto":
        return
    if isinstance(devices, list) and on_gpu:  # the GPUs' own numbers
        if devices and all(type(d) is int and 0 <= d < gpus for d in devices):
            return
    elif type(devices) is int and 1 <= devices <= limit:
        return
    raise UserError(
        f"trainer.devices must be in [1, {limit}] ({limit} {unit} on this machine), or auto, "
        f"got {devices!r}"
    )


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def _check_processes(devices: object, nodes: int) -> None:
    """Refuses another number of processes than torchrun or srun started."""
    started = external_processes()
    if started is None and nodes != 1:
        raise UserError(
            f"trainer.num_nodes={nodes} needs a process on each device of each node, started by "
            "torchrun or srun (docs/cluster.md)"
        )
    if started is not None and isinstance(devices, int) and started != devices * nodes:
        raise UserError(
            f"trainer.devices={devices} and trainer.num_nodes={nodes} need {devices * nodes} "
            f"processes, but torchrun or srun started {started}; devices are those of one node"
        )
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE")
    if started != 1 and starter_of(os.environ) == SRUN and per_node != str(devices):
        raise UserError(
            f"trainer.devices={devices} needs as many tasks on each node, but srun has "
            f"--ntasks-per-node={per_node}; give --ntasks-per-node={devices} to sbatch or srun"
        )
