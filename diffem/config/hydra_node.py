"""Hydra's own node of the configuration: which of its keys may be set, and from where.

Hydra's node names loggers and callbacks that are built before a run is checked, environment
variables, and shell lines of a cluster's jobs. What it holds is compared with Hydra's defaults:
only the keys that are listed here may differ from them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffem.runtime.errors import UserError

Node = Mapping[Any, Any]

FROM_FILES = (  # from files and on the command line
    "launcher.account",
    "launcher.array_parallelism",
    "launcher.constraint",
    "launcher.cpus_per_gpu",
    "launcher.cpus_per_task",
    "launcher.gpus_per_node",
    "launcher.gpus_per_task",
    "launcher.gres",
    "launcher.max_num_timeout",
    "launcher.mem_gb",
    "launcher.mem_per_cpu",
    "launcher.mem_per_gpu",
    "launcher.n_jobs",
    "launcher.nodes",
    "launcher.partition",
    "launcher.qos",
    "launcher.tasks_per_node",
    "launcher.timeout_min",
    "sweeper.direction",
    "sweeper.n_jobs",
    "sweeper.n_trials",
    "sweeper.sampler.seed",
)
COUNTS = ("n_jobs", "n_trials")  # the last words of keys whose values are at least 1
FROM_COMMAND_LINE = (  # run or write what they say; with the keys under them
    "job.env_set",
    "job.name",  # set by Lightning, as output_subdir and run.dir, where it starts other ranks
    "launcher.additional_parameters",
    "launcher.comment",
    "launcher.exclude",
    "launcher.name",
    "launcher.setup",
    "launcher.signal_delay_s",
    "launcher.stderr_to_stdout",
    "launcher.submitit_folder",
    "output_subdir",
    "run.dir",
    "searchpath",
    "sweeper.storage",
    "sweeper.study_name",
)
GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")
"""The groups of Hydra that can be chosen, on the command line."""
TARGETS = (  # what the choices of these groups build
    "diffem.cli.sweep.SweepCallback",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "optuna.samplers.CmaEsSampler",
    "optuna.samplers.GridSampler",
    "optuna.samplers.MOTPESampler",
    "optuna.samplers.NSGAIISampler",
    "optuna.samplers.RandomSampler",
    "optuna.samplers.TPESampler",
)
COMPOSED = (  # what Hydra itself sets when it composes; `overrides` is compared by itself
    *("job.override_dirname", "overrides"),
    *("runtime.choices", "runtime.config_sources", "runtime.cwd"),
    "searchpath",  # Hydra takes it from the command line alone
)
# A partition, an account, a number of gigabytes: one word of a line of an sbatch script.
_WORD = re.compile(r"[\w.,:%@&|*+-]*")


def check_hydra(given: Node, *, default: Node, command: Node, overrides: Sequence[str]) -> None:
    """Checks Hydra's own node.

    Arguments:
        given: The node, in plain types.
        default: The node as Hydra's defaults and the choices of launcher and sweeper give it.
        command: The default node with what the command line sets.
        overrides: The overrides that were composed.

    Raises:
        UserError: If a key differs from the default that may not, or that only the command line
            may set.
    """
    values, defaults, typed = _leaves(given), _leaves(default), _leaves(command)
    for key, value in values.items():
        if key.endswith("_target_") and value not in TARGETS:
            raise UserError(f"hydra.{key}={value} is not allowed; allowed: {', '.join(TARGETS)}")
    for key in sorted(values.keys() | defaults.keys()):
        value = values.get(key)
        if value == defaults.get(key, _ABSENT) or _is_under(key, COMPOSED):
            continue
        if _is_under(key, FROM_COMMAND_LINE):
            if value != typed.get(key, _ABSENT):
                name = next(k for k in FROM_COMMAND_LINE if _is_under(key, (k,)))
                raise UserError(
                    f"hydra.{name} is taken from the command line alone, not from a file; remove "
                    "it there"
                )
        elif key not in FROM_FILES:
            raise UserError(f"hydra.{key} may not be set; Hydra's keys that may: {_known(key)}")
        elif not isinstance(value, int | float | None) and not _is_word(value):
            raise UserError(f"hydra.{key} must be a number or one word, got {value!r}")
        elif key.rpartition(".")[2] in COUNTS and not (type(value) is int and value > 0):
            raise UserError(
                f"hydra.{key} must be a whole number of at least 1, or its default "
                f"{defaults.get(key)}, got {value!r}"
            )
    recorded = given["overrides"]
    if sorted([*recorded["hydra"], *recorded["task"]]) != sorted(overrides):
        raise UserError("hydra.overrides is what the command line gave; remove it from the file")


_ABSENT = object()


def _known(key: str) -> str:
    """Returns the keys beside a key that may be set; the first parts of all if there are none."""
    known = sorted((*FROM_FILES, *FROM_COMMAND_LINE))
    part = key.partition(".")[0]
    beside = [k for k in known if k.partition(".")[0] == part]
    first = dict.fromkeys(k.partition(".")[0] for k in known)
    return ", ".join(f"hydra.{k}" for k in beside or first)


def _leaves(node: object, name: str = "") -> dict[str, Any]:
    """Returns {full key: value} of nested dictionaries; an empty one has no keys."""
    if not isinstance(node, Mapping):
        return {name: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _leaves(value, f"{name}.{key}" if name else str(key))
    return found


def _is_under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None
