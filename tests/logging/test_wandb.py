"""W&B that is down, at the start, in the middle or at the end: seconds are lost, and no data."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from command import ROOT, wait_until
from wandb_file import history
from wandb_server import closed, serving, silent

pytestmark = pytest.mark.kill

LOST = 10  # seconds that W&B may cost a run


class Steps:
    """A process that logs to W&B step by step, as it is asked to."""

    def __init__(self, run_dir: Path, port: int) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(run_dir.parent),
            "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
        }
        self.errors = run_dir.with_suffix(".log")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "helpers" / "wandb_steps.py"), str(run_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self.environment,
            )
        self.seconds = 0.0

    def do(self, *words: str) -> None:
        """Has the process do something, and waits until it has."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for word in words:
            print(word, file=self.process.stdin, flush=True)
            took = self.process.stdout.readline()
            assert took, self.errors.read_text()
            self.seconds += float(took)

    def end(self) -> str:
        """Returns what the process said."""
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return self.errors.read_text()


@contextmanager
def steps(tmp_path: Path, port: int) -> Iterator[Steps]:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    steps = Steps(run_dir, port)
    with steps.process:
        try:
            yield steps
        finally:
            steps.process.kill()


def rows(tmp_path: Path) -> list[int]:
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    return [row["step"] for row in history(file)]


def processes(tmp_path: Path) -> list[str]:
    """Returns the processes that work on a run."""
    names = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.is_file()]
    return [name.decode() for name in names if str(tmp_path).encode() in name]


def test_up(tmp_path: Path) -> None:
    with serving() as server, steps(tmp_path, server.server_port) as run:
        run.do("open", "log")
        wait_until(lambda: "UpsertBucket" in server.asked, seconds=30)
        run.do("log", "close")
        said = run.end()
        assert sorted(row["step"] for row in server.rows) == list(range(10))
        assert run.seconds < LOST and f"W&B: http://127.0.0.1:{server.server_port}/me" in said
        assert "wandb sync" not in said


@pytest.mark.parametrize("kind", ["closed", "silent", "error"])
def test_down_at_the_start(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if kind == "error":
            port = stack.enter_context(serving(status=500)).server_port
        else:
            port = closed() if kind == "closed" else stack.enter_context(silent())
        run = stack.enter_context(steps(tmp_path, port))
        run.do("open", "log", "close")
        said = run.end()
    assert run.seconds < LOST and rows(tmp_path) == list(range(5))
    assert said.count("\n") == 1 and "could not be uploaded completely; later: wandb sync" in said
    assert not processes(tmp_path)


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_down_from_the_middle_on_and_synced_later(kind: str, tmp_path: Path) -> None:
    with serving() as server, steps(tmp_path, server.server_port) as run:
        port = server.server_port
        run.do("open", "log")
        wait_until(lambda: "UpsertBucket" in server.asked, seconds=30)
        server.shutdown()
        server.server_close()
        with ExitStack() as stack:
            if kind == "silent":
                stack.enter_context(silent(port))
            run.do("log", "close")
            said = run.end()
    assert run.seconds < LOST and rows(tmp_path) == list(range(10))
    folder = Path(said.replace("\n", "").rpartition("wandb sync ")[2])
    with serving(port) as server:
        command = [sys.executable, "-m", "wandb", "sync", str(folder)]
        subprocess.run(
            command,
            cwd=tmp_path,
            env=run.environment,
            check=True,
            timeout=60,
            capture_output=True,
        )
        assert sorted(row["step"] for row in server.rows) == list(range(10))


def test_no_upload_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    with silent() as port, steps(tmp_path, port) as run:
        run.do("open", "log")
        wait_until(lambda: len(processes(tmp_path)) > 2, seconds=30, every=0.1)
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        wait_until(lambda: not processes(tmp_path), seconds=LOST, every=0.1)
