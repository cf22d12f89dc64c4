"""Which process of a run this is, from all variables that could say so (issue 11, B3)."""

import os

import pytest

from diffem.runtime.rank import (
    PARENT,
    external_processes,
    global_rank,
    remove_left_over,
    starter_of,
)

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "diffem",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
}
BATCH = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
LIGHTNING = {
    PARENT: str(os.getppid()),
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "NODE_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environment", "starter", "processes"),
    [
        (TORCHRUN, "torchrun", 2),
        (SRUN, "srun", 2),
        (LIGHTNING, "Lightning", None),
        ({}, None, None),
    ],
)
def test_a_process_that_was_started_as_one_of_several(
    environment: dict[str, str],
    starter: str | None,
    processes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = dict(environment)
    assert starter_of(held) == starter
    assert remove_left_over(held) is None and held == environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert external_processes() == processes
    assert global_rank() == (1 if environment else 0)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        ({"RANK": "1"}, "RANK=1"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID=3"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "RANK=1, LOCAL_RANK=1"),
        ({"RANK": "first"}, "RANK=first"),
        ({"JSM_NAMESPACE_RANK": "2"}, "JSM_NAMESPACE_RANK=2"),
        (LIGHTNING | {PARENT: "1"}, "NODE_RANK=0, LOCAL_RANK=1"),  # of another parent
        (
            {n: v for n, v in TORCHRUN.items() if n != "MASTER_PORT"},
            "(torchrun would have set MASTER_PORT too)",
        ),
        (TORCHRUN | {"RANK": "2"}, "(RANK=2 is not below WORLD_SIZE=2)"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "(WORLD_SIZE=two is no number)"),
        ({n: v for n, v in SRUN.items() if n != "SLURM_NTASKS"}, "(srun would have set SLURM_NTA"),
        (BATCH | {"SLURM_PROCID": "0"}, "SLURM_NTASKS=2 is left over"),  # srun was forgotten
    ],
)
def test_left_over_variables_are_removed_and_named(
    environment: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = dict(environment)
    said = remove_left_over(held)
    assert said is not None and named in said and said.endswith("unset it")
    assert starter_of(held) is None and remove_left_over(held) is None
    for name, value in held.items():
        monkeypatch.setenv(name, value)
    assert global_rank() == 0 and external_processes() is None


@pytest.mark.parametrize(
    "environment",
    [
        BATCH | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        SRUN | {"SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"},
        {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4"},
        {"MASTER_PORT": "29500", "WORLD_SIZE": "2"},
    ],
)
def test_what_a_batch_script_or_a_shell_has_is_no_mistake(environment: dict[str, str]) -> None:
    held = dict(environment)
    assert remove_left_over(held) is None
    assert not held.keys() & {"SLURM_NTASKS", "SLURM_PROCID", "MASTER_PORT", "WORLD_SIZE"}


def test_srun_s_process_ignores_other_variables() -> None:
    held = SRUN | {"RANK": "5", "LOCAL_RANK": "3", "WORLD_SIZE": "9"}
    said = remove_left_over(held)
    assert said is not None and "RANK=5, LOCAL_RANK=3" in said and held == SRUN
