"""`diffem train`: checks the command, then hands it to Hydra and to diffem/cli/train.py.

Nothing here imports torch or Lightning, which takes seconds, so that a setting is refused at once.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffem.cli.compose import SWEEP, check_arguments, check_channel_given, check_config, complete
from diffem.cli.composition import CONF, NAME
from diffem.cli.errors import LESS_OF_A_RUN, report_user_errors
from diffem.cli.processes import end_with_collectives, errors_above_stops
from diffem.cli.sweep import SubprocessJobs, print_sweep_summary
from diffem.config.paths import path_override, quote_paths, unquoted
from diffem.config.secrets import move_secrets_to_env
from diffem.runtime.errors import UserError, usable
from diffem.runtime.rank import external_processes, global_rank
from diffem.runtime.signals import exit_with_parent, watch_signals
from diffem.storage.run_dir import check_version, resumed_arguments

WARNINGS = (  # that say nothing about this run
    ".*does not have many workers.*",  # batches are memory-mapped: workers would slow them down
    ".*number of training batches.*smaller than the logging.*",
    "GPU available but not used.*",  # as trainer.accelerator=cpu asks for
    "Total length of .* across ranks is zero",  # of a training that a resumed run has ended
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's own
    ".*Checkpoint directory .* exists and is not empty.*",
    "Deprecated API features detected",  # Optuna's, of SQLAlchemy
    ".*`srun` command is available",  # on any node of a cluster: this run may want a single one
)


@contextmanager
def quiet() -> Iterator[None]:
    """Opens a scope without the libraries' notes and warnings that say nothing about a run."""
    import lightning.pytorch  # noqa: F401 - its import sets its loggers to INFO

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield


@hydra.main(version_base="1.3", config_path=str(CONF), config_name=NAME)
@SubprocessJobs
def hydra_main(cfg: DictConfig) -> None:
    """Runs one experiment in its run directory."""
    with report_user_errors(out_of_memory=LESS_OF_A_RUN):
        check_version(Path(HydraConfig.get().runtime.output_dir))
        check_config(cfg)
        check_channel_given(cfg)
        from diffem.cli.train import run  # imports torch and Lightning

        with quiet():
            run(cfg)


def main() -> None:
    """Runs `diffem train` with this process's arguments.

    Raises:
        SystemExit: With code 1 and one sentence on stderr if the user made an error.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach report_user_errors
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    watch_signals()
    if (external_processes() or 1) > 1:  # torch warns each second while it waits for a process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with end_with_collectives(), errors_above_stops(), exit_with_parent(), report_user_errors():
        arguments = quote_paths(_from_lightning(sys.argv[1:]), sweep=_is_sweep(sys.argv))
        arguments = complete(move_secrets_to_env(resumed_arguments(arguments)))
        sys.argv[1:] = sorted(arguments, key=lambda a: a not in SWEEP)  # Hydra wants it first
        if _is_sweep(arguments) and (external_processes() or 1) > 1:
            raise UserError(
                "-m is started as one process, and its jobs start theirs; leave out torchrun and "
                "srun (docs/cluster.md has sweeps under SLURM)"
            )
        check_arguments(sys.argv[1:])
        with usable("run_dir", _given_run_dir(arguments)), print_sweep_summary():
            hydra_main()


def _given_run_dir(arguments: Sequence[str]) -> Path:
    """Returns the run directory that a command names; the folder of the default ones if none."""
    given = [a.removeprefix("run_dir=") for a in arguments if a.startswith("run_dir=")]
    return Path(unquoted(given[-1])) if given else Path("runs")


def _is_sweep(arguments: Sequence[str]) -> bool:
    return not set(SWEEP).isdisjoint(arguments)


def _from_lightning(arguments: Sequence[str]) -> list[str]:
    """Returns arguments in which the run directory that Lightning gives its ranks is quoted.

    It puts the path between double quotes as it is, whatever is in it.
    """
    key = "hydra.run.dir"
    return [
        path_override(key, argument[len(key) + 2 : -1])
        if global_rank() and argument.startswith(f'{key}="')
        else argument
        for argument in arguments
    ]
