"""Where a run is, from its directory alone."""

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diffem.runtime.errors import UserError
from diffem.storage import lock
from diffem.storage.lock import is_locked, lock_folder, unlock_folder
from diffem.storage.status import (
    ENDED,
    RunStatus,
    State,
    of_error,
    read_status,
    write_ended,
)


def test_a_lock_is_seen_from_here_and_from_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from diffem.storage.lock import is_locked;"
        "print(is_locked(Path(sys.argv[1])))"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert not is_locked(tmp_path) and not list(tmp_path.iterdir())
    lock_folder(tmp_path, "run_dir")
    try:
        assert is_locked(tmp_path) and elsewhere() == "True"
        assert read_status(tmp_path).state is State.RUNNING
    finally:
        unlock_folder(tmp_path)
    assert not is_locked(tmp_path) and elsewhere() == "False"
    lock_folder(tmp_path, "run_dir")  # looking has left no lock
    unlock_folder(tmp_path)


def test_one_that_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """`diffem watch` looks each second: a run that is resumed in that instant waits for it."""
    (tmp_path / lock.LOCK).touch()
    with (tmp_path / lock.LOCK).open() as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        timer = threading.Timer(lock.LOOKED / 4, fcntl.flock, (looks, fcntl.LOCK_UN))
        timer.start()
        lock_folder(tmp_path, "run_dir")
        timer.join()
        unlock_folder(tmp_path)
        fcntl.flock(looks, fcntl.LOCK_SH)  # and does not let it go
        with pytest.raises(UserError, match="is being written by another process"):
            lock_folder(tmp_path, "run_dir")


def test_without_flock_the_owner_tells(tmp_path: Path) -> None:
    owner = tmp_path / lock.OWNER
    owner.write_text(json.dumps(lock._this_process()))
    assert is_locked(tmp_path)
    gone = {**lock._this_process(), "start": "another boot 1"}
    owner.write_text(json.dumps(gone))
    assert not is_locked(tmp_path)


def test_states(tmp_path: Path) -> None:
    assert read_status(tmp_path) == RunStatus(State.LOST)
    write_ended(tmp_path, RunStatus(State.FAILED, "ValueError: why"))
    assert read_status(tmp_path) == RunStatus(State.FAILED, "ValueError: why")
    (tmp_path / "summary.json").write_text('{"final": {}}')
    assert read_status(tmp_path).state is State.FINISHED
    (tmp_path / "summary.json").write_text('{"final": ')
    assert read_status(tmp_path).state is State.FAILED


@pytest.mark.parametrize(
    "content", ["", "[]", '{"state": "running", "reason": ""}', '{"state": 1}']
)
def test_a_damaged_record_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / ENDED).write_text(content)
    assert read_status(tmp_path).state is State.LOST


def test_errors_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_error(UserError("a sentence")) == RunStatus(State.FAILED, "a sentence")
    assert of_error(RuntimeError("bad")).reason == "RuntimeError: bad"
    assert of_error(AssertionError()).reason == "AssertionError"
    assert of_error(KeyboardInterrupt()).state is State.STOPPED
    exit = SystemExit(1)
    exit.__context__ = KeyboardInterrupt()  # Lightning's
    assert of_error(exit).state is State.STOPPED
    monkeypatch.setenv("SOME_API_KEY", "canary-3f9c")
    assert "canary" not in of_error(RuntimeError("with canary-3f9c in it")).reason


def test_why_a_run_ended_steers_no_terminal(tmp_path: Path) -> None:
    write_ended(tmp_path, RunStatus(State.FAILED, "bad \x1b[31mred\nand \u202emore"))
    assert read_status(tmp_path) == RunStatus(State.FAILED, "bad red and more")
