"""The processes of a run find each other in bounded time (issue 11, B12), and end well (B11)."""

import atexit
import os
import socket
import sys
import threading
import time

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from diffem.cli import processes
from diffem.cli.errors import report_user_errors
from diffem.cli.processes import (
    ERROR_OF_A_TASK,
    end_with_collectives,
    errors_above_stops,
    expect_processes,
)
from diffem.runtime.errors import UserError
from diffem.runtime.rank import RANK_VARIABLES
from diffem.runtime.signals import RESUMABLE

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "diffem",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "node[7-8]",
}


class Ended(BaseException):
    """Stands for the end of the process."""


def started_by(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:  # which Lightning may set: they are unset after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_an_address_that_does_not_resolve_is_named_at_once(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's short name without an entry: still waiting after 240 s."""

    def fail(host: str, port: str) -> None:
        raise socket.gaierror(-2, f"Name or service not known: {host}")

    started_by(environment, monkeypatch)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(
        UserError, match=r"MASTER_ADDR=node7, where .* does not resolve"
    ) as refused:
        expect_processes()
    assert "set MASTER_ADDR to an address of the first process's machine" in str(refused.value)


def test_processes_that_do_not_meet_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address that is wrong: one line what it waits for, then the end with one that helps."""
    ends: list[tuple[str, int]] = []

    def end(line: str, code: int) -> None:
        ends.append((line, code))
        raise Ended

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(processes, "exit_now", end)
    monkeypatch.setattr(processes, "NOTE_SECONDS", 0.02)
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.01)
    started_by(TORCHRUN | {"MASTER_ADDR": "127.0.0.1"}, monkeypatch)
    expect_processes()
    finish = time.monotonic() + 20
    while not ends and time.monotonic() < finish:
        time.sleep(0.01)
    assert ends[0][1] == 1
    assert ends[0][0].startswith(
        "error: process 1 has waited 0 s for the others at MASTER_ADDR=12"
    )
    assert capsys.readouterr().err.count("process 1 waits for the others at 127.0.0.1, port") == 1


def test_processes_that_meet_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "exit_now", lambda *_: pytest.fail("ended"))
    monkeypatch.setattr(processes, "LIMIT_SECONDS", 0.0)
    monkeypatch.setattr(processes, "collectives_started", lambda: True)
    processes._watch("127.0.0.1", "29500")


def test_a_process_of_its_own_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    started_by({}, monkeypatch)
    count = threading.active_count()
    expect_processes()
    assert threading.active_count() == count


def test_a_port_in_use_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback. The message is torch's own."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(SystemExit) as stop, report_user_errors():
            TCPStore("127.0.0.1", port, world_size=1, is_master=True, wait_for_workers=False)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and f"error: MASTER_PORT={port}, where the processes" in error
    assert "set MASTER_PORT to a free port" in error and "Traceback" not in error


@pytest.mark.parametrize(("raised", "code"), [(None, 0), (0, 0), (1, 1), ("no", 1)])
def test_a_process_that_used_collectives_ends_before_the_interpreter_does(
    raised: int | str | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B11: gloo's threads could abort (-6) a process that had ended right."""
    done: list[object] = []

    def end(code: int) -> None:
        done.append(code)
        raise Ended

    monkeypatch.setattr(processes, "collectives_started", lambda: True)
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: done.append("cleanup"))
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended), end_with_collectives():
        if raised is not None:
            sys.exit(raised)
    assert done == ["cleanup", code]


def test_other_ends_are_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda _: pytest.fail("ended"))
    with end_with_collectives():
        pass
    with pytest.raises(SystemExit), end_with_collectives():
        sys.exit(3)
    monkeypatch.setattr(processes, "collectives_started", lambda: True)
    with pytest.raises(ArithmeticError), end_with_collectives():
        raise ArithmeticError  # its traceback is shown


def an_end(way: int | Exception) -> None:
    """Ends by an exit code or an exception."""
    if isinstance(way, int):
        sys.exit(way)
    raise way


@pytest.mark.parametrize(
    ("way", "code"),
    [(0, 0), (1, ERROR_OF_A_TASK), (75, 75), (ArithmeticError("by it"), ERROR_OF_A_TASK)],
)
def test_an_error_of_a_task_counts_more_than_the_stop_of_the_others(
    way: int | Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """srun passes on the highest code: 75 of the others, and the job was requeued for ever."""
    started_by(SRUN, monkeypatch)
    with pytest.raises(SystemExit) as end, errors_above_stops():
        an_end(way)
    assert end.value.code == code and ERROR_OF_A_TASK > RESUMABLE
    assert ("ArithmeticError: by it" in capsys.readouterr().err) == isinstance(way, Exception)
    for environment in ({}, TORCHRUN, SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}):
        started_by(environment, monkeypatch)
        with pytest.raises((SystemExit, ArithmeticError)) as own, errors_above_stops():
            an_end(way)
        assert own.value is way or getattr(own.value, "code", None) == way
