"""What a command prints, on terminals of any encoding and about what it cannot read or write."""

import errno
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, SHORT, run_python

from diffem.cli import sample
from diffem.cli.errors import report_user_errors
from diffem.cli.main import main
from diffem.metric import Score
from diffem.report.table import print_closing, print_table
from diffem.runtime.errors import UserError
from diffem.runtime.progress import console, plain_console, progress_bar, say, warn
from diffem.runtime.signals import reader_may_leave

ABOUT = {"dataset": "dé", "corruption": "mask", "method": "diffem", "seed": 0}
FINAL = {
    "chi2": 0.5,
    "init_psnr_mean": 15.0,
    "prior": {"frechet_pixels": 1.0, "frechet_pixels_truth": 2.0},
}


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_without_columns_all_is_printed(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """COLUMNS=0, as a terminal without a size may set it: `diffem watch` printed nothing."""
    monkeypatch.setenv("COLUMNS", columns)
    print_table(ABOUT, [Score("chi2", "χ²", heading="chi2")], [("0", FINAL)])
    plain_console(stderr=True).print("said")
    out, err = capsys.readouterr()
    assert "0.5" in out and err == "said\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_what_a_run_prints_can_be_printed_anywhere(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback after the end of a good run, which a sweep then counted as failed."""
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, name, streams[name])
    with pytest.raises(SystemExit):
        main(["--help"])  # "…"
    print_table(ABOUT, (Score("chi2", "χ²", heading="χ²", digits=2),), [("held-out", FINAL)])
    print_closing([{}], FINAL)  # "Fréchet"
    with progress_bar("round 0  E-step", 1, "chunks") as advance, console.status("x̂"):
        advance("loss ½")
    say("wrote /tmp/é = χ² ≥ 1")
    warn("x̂ → ŷ")
    for stream in streams.values():
        stream.flush()
        shown = stream.buffer.getvalue().decode(encoding)
        assert "held-out" in shown or "round 0" in shown
        assert encoding != "utf-8" or "?" not in shown
        assert encoding == "utf-8" or "━" not in shown


@pytest.mark.parametrize("path", ["a[/b]", "a[bold]b", "[red]", "[/]", ":smile:", "a\\[b]"])
def test_what_looks_like_markup_is_printed_as_it_is(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, C1: `[/b]` in a path was a MarkupError, and `[bold]` was swallowed."""
    say(f"resuming {path}")
    warn(f"{path} is damaged")
    with progress_bar(path, 1, "chunks") as advance:
        advance(path)
    about = {**ABOUT, "dataset": path}
    print_table(about, (Score("chi2", "χ²", heading="χ²", digits=2),), [(path, FINAL)])
    with pytest.raises(SystemExit), report_user_errors():
        raise UserError(f"run_dir={path} holds other files")
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert lines[0] == f"resuming {path}" and lines[1] == f"warning: {path} is damaged"
    assert lines[2].startswith(path) and lines[2].endswith(path)
    assert lines[3] == f"error: run_dir={path} holds other files"
    assert shown.out.count(path) == 2


def test_a_command_says_its_errors_in_any_encoding(tmp_path: Path) -> None:
    done = run_python(
        "train.py", f"run_dir={tmp_path / 'é – χ²'}", "em.é=0", PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 1 and done.stderr.startswith("error: 'em.")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seed=1\r", r"'seed=1\r' cannot be read as KEY=VALUE; it holds '\r'"),
        ("corruption=mask\n", r"it holds '\n'"),
        ("seed=\x1b[2J", r"it holds '\x1b'"),
        ("seed=é", "'seed=é' cannot be read as KEY=VALUE; quote a value"),
        ("a b=3", "'a b=3' cannot be read as KEY=VALUE"),
        ("em.rounds=1,,2", "'em.rounds=1,,2' cannot be read as KEY=VALUE"),
    ],
)
def test_an_argument_that_cannot_be_read_is_named(
    argument: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", argument])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    assert error.startswith("error: ") and said in error


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["sample", "--help"], ["train", "--help"], ["train", "--cfg", "job"]]
)
def test_a_reader_that_leaves_is_no_traceback(arguments: list[str], unbuffered: str) -> None:
    """`diffem train --help | head -1`: a traceback, or "Exception ignored" with exit code 120."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "diffem", *arguments],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 1)  # argparse ignores that its help was not read


def test_a_run_goes_on_when_nobody_reads_it(tmp_path: Path) -> None:
    """`diffem train 2>&1 | head -1`: rich ended the process, and the run was marked as failed."""
    run_dir = tmp_path / "run"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SHORT, "prior=null", f"run_dir={run_dir}"],
        stdout=write,
        stderr=write,
    )
    os.close(write)
    assert done.returncode == 0
    assert not (run_dir / "ended.json").exists()
    assert "final" in json.loads((run_dir / "summary.json").read_text())


def test_another_pipe_that_breaks_is_not_taken_for_the_reader() -> None:
    with pytest.raises(BrokenPipeError), reader_may_leave():
        raise BrokenPipeError


def test_the_handlers_of_signals_are_installed_before_what_takes_time() -> None:
    """Issue 11, B11: SIGTERM in the first half second ended a run with -15."""
    code = (
        "import sys; import diffem.cli.main; "
        "print(*{m.partition('.')[0] for m in sys.modules} & {'ctypes', 'subprocess', 'rich', "
        "'hydra', 'omegaconf', 'torch', 'numpy', 'yaml'})"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("module", ["hydra", "omegaconf", "torch"])
def test_a_run_that_is_stopped_while_it_imports_can_be_resumed(module: str) -> None:
    """Issue 11, B11: as above, by a signal at the moment of an import."""
    code = (
        "import os, runpy, signal, sys\n"
        "def stop(event, arguments):\n"
        f"    if event == 'import' and arguments[0] == {module!r}:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.addaudithook(stop)\n"
        "sys.argv = ['train.py', 'corruption.rho=2']\n"
        "runpy.run_path('train.py', run_name='__main__')"
    )
    done = run_python("-c", code)
    assert done.returncode == 75
    assert done.stderr == "stopped by SIGTERM; the same command resumes the run\n"


def test_advice_on_memory_is_for_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`diffem sample` has no em.chunk_size."""

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sample, "load", full)
    with pytest.raises(SystemExit):
        sample.main([str(tmp_path), "--input", "y.npy", "--out", "x"])
    assert capsys.readouterr().err == (
        "error: out of memory (no more is available); free some, take a device or a machine with "
        "more, or give it less at a time\n"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_path_that_the_system_refuses_is_one_sentence(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `diffem evaluate` on a run that is on a read-only disk."""
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise OSError(number, os.strerror(number), "/mnt/run/evaluation_001.json")
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    assert error.startswith("error: /mnt/run/evaluation_001.json: ")
    assert error.endswith("or give another path\n")
