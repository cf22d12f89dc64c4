"""Which process of a run this is: decided once, from all variables that could say so.

torchrun, srun and Lightning tell a process by environment variables that it is one of several.
Some of these variables are also set where nothing was started: in a shell on a cluster's node, in
a batch script, by an earlier command. A process that took itself for the second of a run by one of
them would lock and save nothing. So a process is one of several if all variables of its starter
are there and agree; those that are left over are removed, since Lightning would read them.
"""

import os
from collections.abc import Mapping, MutableMapping

PARENT = "DIFFEM_PARENT"  # the process id that this process must not outlive
TORCHRUN, SRUN, LIGHTNING = "torchrun", "srun", "Lightning"
REQUIRED = {  # what a starter always sets: first a process's number and that of the processes
    TORCHRUN: ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    SRUN: ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID"),
    LIGHTNING: ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
}
NUMBERS = ("RANK", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "SLURM_PROCID")
"""The numbers of a process, its node or its group; all are 0 in a run's first process."""
TOLD = (*NUMBERS, "JSM_NAMESPACE_RANK", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID")
RANK_VARIABLES = (  # that give a process its place among others
    *TOLD,
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS_PER_NODE",
    "WORLD_SIZE",
)
SHELLS = ("bash", "interactive")  # names of SLURM's jobs that Lightning takes for a shell


def global_rank() -> int:
    """Returns 0 in a run's first process, over all nodes, and a positive number in the others."""
    return max(_number(os.environ.get(name)) or 0 for name in NUMBERS)


def external_processes() -> int | None:
    """Returns how many processes of this run torchrun or srun started; None if neither did."""
    starter = starter_of(os.environ)
    if starter not in (TORCHRUN, SRUN):
        return None
    return _number(os.environ[REQUIRED[starter][1]])


def starter_of(environment: Mapping[str, str]) -> str | None:
    """Returns what started this process as one of several: torchrun, srun or Lightning.

    Arguments:
        environment: The environment variables.

    Returns:
        None if nothing did: a user did, or a script.
    """
    claims = _claims(environment)
    return next((s for s in claims if _mistake(s, environment) is None), None)


def remove_left_over(environment: MutableMapping[str, str]) -> str | None:
    """Removes the variables that would make this process one of several although it is not.

    Arguments:
        environment: The environment variables.

    Returns:
        A sentence that names those that a user should know of; None if there are none. A batch
        script has SLURM's variables of a first task, and a shell in an allocation too.
    """
    starter = starter_of(environment)
    if starter in (TORCHRUN, LIGHTNING):
        return None
    mistakes = [_mistake(claim, environment) for claim in _claims(environment)]
    kept = ("SLURM_", "MASTER_") if starter == SRUN else ()
    names = [n for n in RANK_VARIABLES if n in environment and not n.startswith(kept)]
    left = {name: environment.pop(name) for name in names}
    expected = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    if environment.get("SLURM_JOB_NAME") in SHELLS:
        expected = {name: left.get(name) for name in expected}
    told = [name for name in TOLD if name in left and left[name] != expected.get(name)]
    if not told:
        return None
    shown = ", ".join(f"{name}={left[name]}" for name in told)
    why = next((f" ({mistake})" for mistake in mistakes if mistake), "")
    how = "srun alone" if starter == SRUN else "neither torchrun nor srun"
    return f"{shown} is left over in the environment{why}: {how} started this process; unset it"


def _claims(environment: Mapping[str, str]) -> list[str]:
    """Returns what seems to have started this process; torchrun may itself be started by srun."""
    step = "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment
    claims = {
        TORCHRUN: "TORCHELASTIC_RUN_ID" in environment,
        SRUN: step and environment.get("SLURM_JOB_NAME") not in SHELLS,
        LIGHTNING: "LOCAL_RANK" in environment and environment.get(PARENT) == str(os.getppid()),
    }
    return [starter for starter, claimed in claims.items() if claimed]


def _mistake(starter: str, environment: Mapping[str, str]) -> str | None:
    """Returns what is wrong with the variables of a starter; None if they agree."""
    for name in REQUIRED[starter]:
        if name not in environment:
            return f"{starter} would have set {name} too"
        if name != "MASTER_ADDR" and _number(environment[name]) is None:
            return f"{name}={environment[name]} is no number"
    rank, size = REQUIRED[starter][:2]
    if int(environment[rank]) >= int(environment[size]):
        return f"{rank}={environment[rank]} is not below {size}={environment[size]}"
    return None


def _number(text: str | None) -> int | None:
    """Returns a whole number of at least 0; None if the text is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
