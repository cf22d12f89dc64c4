"""The command answers at once: torch and Lightning are not imported before they are needed."""

import errno
import fcntl
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from command import ROOT
from hydra import compose, initialize_config_dir
from lightning import Trainer

from diffem.cli.compose import CONF
from diffem.cli.launch import quiet
from diffem.cli.main import COMMANDS
from diffem.runtime.errors import UserError, usable
from diffem.storage.atomic import write_folder, write_text
from diffem.storage.lock import lock_folder

SLOW = (  # to import: from a tenth of a second to seconds
    *("torch", "lightning", "torchmetrics", "torchvision", "sklearn", "scipy", "pandas"),
    *("matplotlib", "ot", "wandb", "azula", "numpy", "datasets", "timm"),
)
# Runs a script with one line of arguments after another, each of which exits, and prints which of
# the modules they have imported.
PROBE = f"""
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
print("\\n" + json.dumps([name for name in {SLOW} if name in sys.modules]))
"""


def imported_by(*lines: Sequence[str], script: str = "train.py") -> tuple[list[str], str]:
    """Returns which slow modules commands have imported when they end, and what they said."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([[script, *line] for line in lines])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


REFUSED = {  # by the configuration, and what is said
    "--help": "== Config ==",
    "em.foo=1": "error: em.foo is not a key of the config",
    "corruption=fog": "error: corruption=fog is not a choice",
    "em.rounds=many": "error: em.rounds must be a finite number",
    "sampler._target_=os.system": "error: sampler._target_=os.system is not allowed",
    "trainer.strategy=fsdp": "error: trainer.strategy must be one of",
    "sampler.steps=0": "error: sampler.steps must be a whole number",
    "em.rounds=0": "error: em.rounds must be a whole number of at least 1, got 0",
    "resume=/nowhere": "error: resume=/nowhere: no run is there",
}


def test_what_is_refused_by_the_configuration_imports_nothing_slow(tmp_path: Path) -> None:
    lines = [[argument, f"run_dir={tmp_path / 'run'}"] for argument in REFUSED]
    imported, output = imported_by(*lines)
    assert [said for said in REFUSED.values() if said not in output] == []
    assert output.count("error: ") == len(REFUSED) - 1 and imported == []


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train"}))
def test_help_and_wrong_arguments_of_a_command_import_nothing_slow(command: str) -> None:
    """Issue 12, 7: `diffem classify --help` took six times as long as to import torch."""
    given = ([command, "--help"], [command, "--what=1"])
    imported, output = imported_by(*given, script="diffem/__main__.py")
    assert output.count(f"usage: diffem {command}") == 2 and imported == []
    assert f"diffem {command}: error: " in output


def test_a_finished_run_is_loaded_without_the_data_sets_and_metrics_of_training() -> None:
    """Issue 12, 7: scikit-learn and torchmetrics took as long to import as torch itself."""
    code = "import json, sys; import diffem.cli.sample, diffem.cli.generate, diffem.cli.classify; "
    code += f"print(json.dumps([name for name in {SLOW} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout)) <= {"torch", "numpy", "azula"}


def test_what_is_refused_by_the_channel_imports_torch_alone(tmp_path: Path) -> None:
    run_dir = f"run_dir={tmp_path / 'run'}"
    imported, output = imported_by(["corruption.rho=2", run_dir], ["+assumed.rho=2", run_dir])
    assert output.count("error: corruption.rho must be a number in [0, 1), got 2") == 2
    # The probe sees what is imported: without torch no channel is built.
    assert {"torch"} <= set(imported) <= {"torch", "azula", "numpy"}


def told(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs the command in this process, which it must not finish, and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return stop.value.code


UNUSABLE = {
    "/proc/run": "No such file or directory",
    "FILE": "File exists",
    "FILE/run": "Not a directory",
    f"FOLDER/{'x' * 300}": "File name too long",
    "x" * 300: "File name too long",
    f"FOLDER/{'/'.join(['y' * 200] * 30)}": "File name too long",
}


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
@pytest.mark.parametrize("path", UNUSABLE, ids=lambda path: path[:20])
def test_a_run_directory_that_cannot_be_written(
    path: str,
    sweep: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Issue 11, C2: a traceback."""
    (tmp_path / "file").write_text("precious")
    run_dir = path.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path))
    assert told(*sweep, f"run_dir={run_dir}", monkeypatch=monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: run_dir=") and error.count("\n") == 1
    assert f"cannot be written ({UNUSABLE[path]}: " in error and len(error) < 3000
    assert error.endswith("; choose another run_dir\n")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if not sweep:
        assert told(f"resume={run_dir}", monkeypatch=monkeypatch) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: resume=") and error.count("\n") == 1


@pytest.mark.parametrize("what", ["the folder above", "the folder itself"])
def test_a_run_directory_without_permission(
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Simulated: the tests may run as root, whom no permission stops."""
    run_dir = tmp_path / "run"

    def refuse(path: Path | str, *rest: object, **others: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    if what == "the folder above":
        monkeypatch.setattr(Path, "mkdir", refuse)
        assert told(f"run_dir={run_dir}", monkeypatch=monkeypatch) == 1
        error = capsys.readouterr().err
    else:
        run_dir.mkdir()
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(UserError) as refused:
            lock_folder(run_dir, "run_dir")
        error = f"{refused.value}\n"
    assert f"run_dir={run_dir} cannot be written (Permission denied: {run_dir}" in error
    assert error.endswith("; choose another run_dir\n") and error.count("\n") == 1


def test_a_left_over_rank_is_named_and_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, B3: the run took no lock, saved nothing and ended 0."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert told("em.foo=1", monkeypatch=monkeypatch) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: LOCAL_RANK=1 is left over in the environment")
    assert error.startswith("error: em.foo is not a key")  # as the first process of a run


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK", "NODE_RANK", "SLURM_PROCID"])
def test_a_left_over_rank_is_refused_as_a_second_writer(
    variable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Issue 11, B3: it wrote beside the first."""
    monkeypatch.setenv(variable, "1")
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert told(f"run_dir={tmp_path}", monkeypatch=monkeypatch) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {variable}=1 is left over in the environment")
    assert error.startswith(f"error: run_dir={tmp_path} is being written by another process")


def test_an_error_of_another_file_is_no_mistake_of_the_user(tmp_path: Path) -> None:
    for path in (tmp_path / "other", tmp_path / "run" / "a" / "gone"):
        with pytest.raises(FileNotFoundError), usable("run_dir", tmp_path / "run"):
            path.open()


def test_a_folder_in_which_no_file_can_be_made_is_one() -> None:
    """/proc is there, and whoever is root may write to it by its mode."""
    for write in (lambda p: write_text(p / "page.html", ""), lambda p: write_folder(p / "f", str)):
        with pytest.raises(UserError, match=r"--out=/proc cannot be written .* another --out"):
            with usable("--out", Path("/proc")):
                write(Path("/proc"))


def test_the_default_run_directory_is_one_of_its_own() -> None:
    """Issue 11, C5: two runs that start in one second."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run_dir = compose("train").run_dir
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", run_dir)


def test_where_slurm_is_installed_nothing_is_said_of_srun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 11, C4: a warning, and 23 tests that failed by it."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    make = partial(Trainer, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    make()  # under pytest's filters
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with quiet():
            make()
    assert not [str(w.message) for w in said if "srun" in str(w.message)]
    with pytest.warns(UserWarning, match="srun"), warnings.catch_warnings():
        warnings.simplefilter("always")
        make()  # the warning is there still
