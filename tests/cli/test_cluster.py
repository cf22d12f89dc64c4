"""Processes that torchrun or SLURM starts are one run: the one that Lightning would start."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import LONG, ROOT, SHORT, TWO, assert_gone, train, wait_until, weights

from diffem.cli.compose import check_arguments

SMALL = (*SHORT, "metric.heldout=4", "metric.prior=4", "metric.subset=4", "metric.samples=2")
NODES = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def start(command: tuple[str, ...], *overrides: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), *overrides],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def slurm(rank: int, *overrides: str) -> subprocess.Popen[str]:
    """Starts what srun would start on a node, as far as Lightning can tell."""
    names = ("SLURM_PROCID", "SLURM_NODEID")
    one = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "diffem", "SLURM_NODELIST": "127.0.0.1"}
    place = {name: str(rank) for name in names} | {"SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    return start((sys.executable,), *NODES, *overrides, **one, **job, **place)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The weights of two processes that Lightning started."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    done = train(*SMALL, *TWO, f"run_dir={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return weights(run_dir)


def ended(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, said, strict=True)]


@pytest.mark.kill
def test_torchrun(alone: list[str], tmp_path: Path) -> None:
    given = (*SMALL, *TWO, f"run_dir={tmp_path / 'run'}", "resume=auto")
    for last in ("wrote", "is finished already"):
        ((code, error),) = ended(start((*TORCHRUN, "--nproc_per_node=2"), *given))
        assert code == 0, error
        assert last == "wrote" or error.count(last) == 1
    assert weights(tmp_path / "run") == alone


@pytest.mark.kill
def test_torchrun_on_two_nodes(alone: list[str], tmp_path: Path) -> None:
    where = ("--nnodes=2", "--master_addr=127.0.0.1", "--master_port=29577")
    given = (*SMALL, *NODES, f"run_dir={tmp_path / 'run'}")
    both = [start((*TORCHRUN, *where, f"--node_rank={r}"), *given) for r in (0, 1)]
    for code, error in ended(*both):
        assert code == 0, error
    assert weights(tmp_path / "run") == alone


@pytest.mark.kill
def test_slurm_on_two_nodes_with_a_signal_on_the_way(alone: list[str], tmp_path: Path) -> None:
    """The time's end: SIGUSR1 to all tasks, code 75, the same command in the requeued job."""
    given = (*SMALL, f"run_dir={tmp_path / 'run'}", "resume=auto")
    both = [slurm(rank, *given) for rank in (0, 1)]
    wait_until((tmp_path / "run" / "checkpoints" / "last.ckpt").exists, both[0])
    for process in both:
        process.send_signal(signal.SIGUSR1)
    (first, error), (second, _) = ended(*both)
    assert (first, second) == (75, 75)
    assert error.splitlines()[-1].startswith("stopped by SIGUSR1; ")
    for code, error in ended(*(slurm(rank, *given) for rank in (0, 1))):
        assert code == 0, error
    assert weights(tmp_path / "run") == alone


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("rank", ["0", "1", "torchrun"])
def test_no_process_outlives_another(rank: str, number: signal.Signals, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start((*TORCHRUN, "--nproc_per_node=2"), *LONG, *TWO, f"run_dir={run_dir}")
    wait_until((run_dir / "checkpoints" / "last.ckpt").exists, process)
    found = {"torchrun": process.pid}
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes() if folder.exists() else b""
        if str(run_dir).encode() in words and int(folder.name) != process.pid:
            environment = (folder / "environ").read_bytes()
            found[chr(environment.partition(b"LOCAL_RANK=")[2][0])] = int(folder.name)
    os.kill(found[rank], number)
    process.communicate(timeout=15)
    assert process.returncode != 0
    assert_gone(run_dir, 15)


def test_the_sbatch_script_starts_the_run_that_it_says() -> None:
    script = ROOT / "docs" / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in text.splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    command = text[text.index("srun --") : text.index("code=$?")].replace("\\\n", " ")
    for name, value in (
        ('"$@"', "experiment=paper_cifar10_mask75"),
        ("$SLURM_NTASKS_PER_NODE", options["ntasks-per-node"]),
        ("$SLURM_JOB_NUM_NODES", options["nodes"]),
        ('"${seed[@]}"', "seed=3"),
    ):
        command = command.replace(name, value)
    words = shlex.split(command)
    assert words[:4] == ["srun", "--kill-on-bad-exit=1", "python", "train.py"]
    check_arguments(words[4:])
    given = dict(word.split("=", 1) for word in words[4:])
    assert given["trainer.devices"] == options["gpus-per-node"] == "4"
    assert given["trainer.num_nodes"] == options["nodes"] == "2"
    assert given["run_dir"] == "runs/$job" and given["resume"] == "auto"
    assert options["signal"].startswith("USR1@")
