"""A disk that fills up ends a run with one line, and leaves what was saved before."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ROOT, SHORT, train, wait_until

from diffem.cli.errors import report_user_errors
from diffem.data.format import new_folder
from diffem.metric.classifier import ClassifierNetwork, save_classifier
from diffem.report.comparison import write_comparison
from diffem.runtime.errors import UserError
from diffem.storage.atomic import write_file
from diffem.storage.checkpoint import load_checkpoint

SLOW = (*SHORT, "prior=null", "em.steps_per_round=80", "em.steps_per_epoch=8", "sampler.steps=64")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    tmp_path.joinpath("disk").mkdir()
    disk = tmp_path / "disk"
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk of a small size can be mounted by root alone")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Writes a file that takes all that is left of a disk."""
    with (disk / "others").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 14)):
                pass
        except OSError:
            pass
    return disk / "others"


def test_whoever_meets_a_full_disk_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The file of a logger, or a figure, as well as a chunk."""
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "figures/round_000.png")
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        "error: no space left on the disk while writing figures/round_000.png; free some and "
        "start the same command again\n"
    )
    with pytest.raises(OSError, match="denied"), report_user_errors():
        raise OSError(errno.EACCES, "denied")


def test_a_classifier_and_tables_are_whole_or_absent(disk: Path) -> None:
    """safetensors' own error was a traceback, and table.md was left empty."""
    others = fill(disk)
    network = ClassifierNetwork((1, 8, 8), 10)
    with pytest.raises(UserError, match=r"left on the disk while writing .*c\.safetensors"):
        save_classifier(disk / "c.safetensors", network, {"shape": [1, 8, 8], "labels": 10})
    with pytest.raises(UserError, match=r"left on the disk while writing .*table\.md"):
        write_comparison(disk, {"row": {0: None}}, "rows")
    assert list(disk.iterdir()) == [others]


def test_a_new_folder_is_named_as_the_user_named_it(disk: Path) -> None:
    """`diffem export` named its temporary folder, and said that it resumes a run."""
    out = disk / "new"
    others = fill(disk)
    with pytest.raises(UserError) as error, new_folder(out) as folder:
        write_file(folder / "w", lambda file: file.write(bytes(1 << 16)))
    assert str(error.value) == (
        f"no space left on the disk while writing {out / 'w'}; free some and start the same "
        "command again"
    )
    with pytest.raises(UserError) as error, new_folder(out) as folder:
        (folder / "w").write_bytes(bytes(1 << 16))
    assert str(error.value).startswith(f"{out} cannot be written (No space left on device)")
    assert list(disk.iterdir()) == [others]


# The file at whose appearance the disk is full, and what is written to it next.
@pytest.mark.kill
@pytest.mark.parametrize(
    ("sign", "written"),
    [
        ("reconstructions/round_001/weights.json", "reconstructions/round_001/chunk_"),
        ("checkpoints/last.ckpt", "checkpoints/last."),
    ],
)
def test_a_full_disk_ends_a_run_that_can_be_resumed(sign: str, written: str, disk: Path) -> None:
    run_dir = disk / "run"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SLOW, f"run_dir={run_dir}"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_until((run_dir / sign).exists, process, every=0.001)
    others = fill(disk)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error  # no signal: not that of a memory map
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("error: no space left on the disk while writing"), error
    assert written in last and "start the same command again" in last
    assert not list(run_dir.rglob("*.tmp*"))
    assert load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["global_step"] % 8 == 0
    others.unlink()
    done = train(f"resume={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
