"""docs/slurm.sbatch, requeueing, arrays and submitit on a real SLURM of two nodes.

`tests/helpers/slurm.sh start` starts one on this machine. Runs are started as the page says, from
a folder that looks like a checkout.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from command import LONG, ROOT, SHORT, TWO, train, wait_until, weights

pytestmark = pytest.mark.slurm

EVALUATION = ("metric.heldout=4", "metric.subset=4", "metric.samples=2")
SMALL = (*SHORT, *EVALUATION, "metric.prior=4", "trainer.accelerator=cpu")
STOPPED = (*LONG, *EVALUATION, "trainer.accelerator=cpu")  # long enough to be stopped on the way
NO_GPU = ("--gpus-per-node=0", "--cpus-per-task=1")
BOTH_NODES = ("--nodes=2", "--ntasks-per-node=1", *NO_GPU)
ONE_NODE = ("--nodes=1", "--ntasks-per-node=1", *NO_GPU)
UNDER_WAY = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}
SECONDS = 900  # a job that is not done by then counts as hung; the machine may be busy

# Found by Python in the tasks: it raises in the second one, after its next checkpoint.
SABOTAGE = """
import os, signal, sys, threading, time
from pathlib import Path

def fail(number, frame):
    raise ArithmeticError("by the test")

def wait(path):
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR2)

given = dict(a.split("=", 1) for a in sys.orig_argv if "=" in a)
if os.environ.get("SLURM_PROCID") == "1" and "run_dir" in given:
    signal.signal(signal.SIGUSR2, fail)
    checkpoint = Path(given["run_dir"]) / "checkpoints" / "last.ckpt"
    threading.Thread(target=wait, args=(checkpoint,), daemon=True).start()
"""


def output(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Returns what a command of SLURM prints."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """Skips all tests where there is no SLURM of two nodes that are up."""
    needs = "needs a SLURM of two nodes that are up: `tests/helpers/slurm.sh start` starts one"
    if any(shutil.which(name) is None for name in ("sbatch", "srun", "scontrol", "sinfo")):
        pytest.skip(needs)
    asked = ["sinfo", "--noheader", "--Node", "--states=idle,alloc,mix", "--format=%N"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    if answer.returncode != 0 or len(set(answer.stdout.split())) < 2:
        pytest.skip(needs)


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Returns a folder with train.py and .venv; its jobs are cancelled at the end."""
    folder = tmp_path / "checkout"
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    (folder / "train.py").symlink_to(ROOT / "train.py")
    yield folder
    for job in output("squeue", "--noheader", "--format=%A %Z").splitlines():
        number, _, place = job.partition(" ")
        if place == str(folder):
            output("scancel", number)


class State(NamedTuple):
    """What SLURM says of a job."""

    name: str
    code: int
    """The exit code of its script."""
    restarts: int


class Submitted(NamedTuple):
    """A job, or a task of an array."""

    folder: Path
    name: str
    """As scontrol and scancel take it: 4711, or 4711_0."""

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    def records(self) -> list[dict[str, str]]:
        """Returns what SLURM has on the job, or on each task of the array that it names."""
        lines = output("scontrol", "show", "job", "--oneliner", self.name).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def state(self) -> State:
        (record,) = self.records()
        code = int(record["ExitCode"].partition(":")[0])
        return State(record["JobState"], code, int(record["Restarts"]))

    def log(self) -> str:
        (record,) = self.records()
        file = self.folder / f"slurm-{record['JobId']}.log"
        return file.read_text() if file.exists() else ""

    def wait_for_checkpoint(self) -> None:
        checkpoint = self.run_dir / "checkpoints" / "last.ckpt"

        def there() -> bool:
            assert self.state().name in UNDER_WAY, self.log()
            return checkpoint.exists()

        wait_until(there, seconds=SECONDS, every=0.1)

    def end(self) -> State:
        """Waits for the job's end."""
        try:
            wait_until(lambda: self.state().name not in UNDER_WAY, seconds=SECONDS, every=0.5)
        except AssertionError:
            pytest.fail(f"job {self.name} is {self.state()} after {SECONDS} s: {self.log()}")
        return self.state()


def submit(
    folder: Path, options: tuple[str, ...], *overrides: str, **environment: str
) -> Submitted:
    """Submits docs/slurm.sbatch, with options of sbatch and settings of the run."""
    script = str(ROOT / "docs" / "slurm.sbatch")
    command = ("sbatch", "--parsable", *options, script, *overrides)
    return Submitted(folder, output(*command, cwd=folder, **environment))


def alone(folder: Path, *overrides: str) -> list[str]:
    """Returns the weights of a run that Lightning starts on this machine."""
    done = train(*overrides, f"run_dir={folder}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return weights(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The weights of the longer run on two processes that nothing stops."""
    return alone(tmp_path_factory.mktemp("uninterrupted") / "run", *STOPPED, *TWO)


def test_the_script_on_two_nodes_is_the_run_on_two_processes(checkout: Path) -> None:
    job = submit(checkout, BOTH_NODES, *SMALL)
    state = job.end()
    assert state == State("COMPLETED", 0, restarts=0), job.log()
    assert job.records()[0]["NumNodes"] == "2"
    assert weights(job.run_dir) == alone(checkout / "alone", *SMALL, *TWO)
    assert "warning" not in job.log()


def test_the_time_s_end_requeues_the_job(checkout: Path, uninterrupted: list[str]) -> None:
    """SIGUSR1 to all tasks, code 75, requeued by the script, resumed in the same directory."""
    job = submit(checkout, BOTH_NODES, *STOPPED)
    job.wait_for_checkpoint()
    output("scancel", "--signal=USR1", job.name)
    state = job.end()
    assert state == State("COMPLETED", 0, restarts=1), job.log()
    assert "stopped by SIGUSR1; the same command resumes the run" in job.log()
    assert job.log().count("Exited with exit code 75") == 2
    assert job.log().count(f"resuming {job.run_dir}") == 1
    assert weights(job.run_dir) == uninterrupted


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_task_fails_the_job_and_leaves_no_process(
    rank: int, checkout: Path, uninterrupted: list[str]
) -> None:
    job = submit(checkout, BOTH_NODES, *STOPPED)
    job.wait_for_checkpoint()
    os.kill(tasks(job)[rank], signal.SIGKILL)
    state = job.end()
    assert state == State("FAILED", 137, restarts=0), job.log()
    wait_until(lambda: not tasks(job), seconds=15, every=0.1)
    again = submit(checkout, BOTH_NODES, *STOPPED, f"run_dir=runs/{job.name}")
    state = again.end()
    assert state == State("COMPLETED", 0, restarts=0), again.log()
    assert weights(job.run_dir) == uninterrupted
    assert not again.run_dir.exists()


def tasks(job: Submitted) -> dict[int, int]:
    """Returns the processes of a job's tasks by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            lines = (folder / "environ").read_text(errors="replace").split("\0")
        except OSError:
            continue
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        if "train.py" in words[1:2] and environment.get("SLURM_JOB_ID") == job.name:
            found[int(environment["SLURM_PROCID"])] = int(folder.name)
    return found


def test_an_error_in_one_task_does_not_requeue_the_job(checkout: Path) -> None:
    """srun ends the other by SIGTERM, with 75; the higher code counts, and was 75 for ever."""
    (checkout / "sitecustomize.py").write_text(SABOTAGE)
    job = submit(checkout, BOTH_NODES, *STOPPED, PYTHONPATH=str(checkout))
    state = job.end()
    assert state == State("FAILED", 76, restarts=0), job.log()
    assert "ArithmeticError: by the test" in job.log()


def test_an_array_is_a_run_with_its_own_seed_for_each_task(checkout: Path) -> None:
    array = submit(checkout, ("--array=0-1", *ONE_NODE), *SMALL)
    found = [Submitted(checkout, f"{array.name}_{task}") for task in (0, 1)]
    for seed, job in enumerate(found):
        state = job.end()
        assert state == State("COMPLETED", 0, restarts=0), job.log()
        assert json.loads((job.run_dir / "summary.json").read_text())["seed"] == seed
    assert sorted(path.name for path in (checkout / "runs").iterdir()) == [j.name for j in found]
    one = ("trainer.devices=1", "seed=1")
    assert weights(found[1].run_dir) == alone(checkout / "alone", *SMALL, *one)


def test_a_task_of_an_array_is_requeued_alone(checkout: Path) -> None:
    """One task has the array's own number as its own: scontrol would requeue all by it."""
    array = submit(checkout, ("--array=0-1", *ONE_NODE), *STOPPED)
    found = [Submitted(checkout, f"{array.name}_{task}") for task in (0, 1)]
    for job in found:
        job.wait_for_checkpoint()
    (first,) = (job for job in found if job.records()[0]["JobId"] == array.name)
    output("scancel", "--signal=USR1", first.name)
    for job in found:
        state = job.end()
        assert state == State("COMPLETED", 0, restarts=int(job is first)), job.log()


def test_submitit_sweeps_as_the_basic_launcher_does(checkout: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    limits = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=60")
    summed = {}
    for launcher, given in {"basic": (), "submitit_slurm": limits}.items():
        folder = checkout / launcher
        done = train(
            *("-m", "seed=0,1", *SMALL, "trainer.devices=1", f"run_dir={folder}"),
            *(f"hydra/launcher={launcher}", *given),
            OMP_NUM_THREADS="1",
        )
        assert done.returncode == 0, done.stderr
        jobs = json.loads((folder / "sweep.json").read_text())
        summed[launcher] = [(j["number"], j["overrides"], j["ended"], j["final"]) for j in jobs]
        summed[launcher].append([weights(folder / str(job)) for job in (0, 1)])
    assert summed["submitit_slurm"] == summed["basic"]
    assert [job[:3] for job in summed["basic"][:2]] == [
        (0, ["seed=0"], "finished"),
        (1, ["seed=1"], "finished"),
    ]
    assert list((checkout / "submitit_slurm" / ".submitit").glob("*_1/*_1_0_log.out"))
