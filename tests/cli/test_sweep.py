"""Sweeps: each job is right, or one failed line, and the others finish."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import NASTY, ROOT, SHORT, run_python, train, wait_until, weights
from omegaconf import OmegaConf

from diffem.cli.sweep import RECORDS, Record, SweepCallback, outcome, print_records
from diffem.runtime.process import Job
from diffem.storage.lock import unlock_folder

SMALL = (*SHORT, "metric.heldout=4", "metric.prior=4", "metric.subset=4", "metric.samples=2")

# Found by Python in the processes of the sweep: it acts in one job, after its next checkpoint.
SABOTAGE = """
import os, resource, signal, sys, threading, time
from pathlib import Path

def wait(path, start=time.time()):
    while not (path.exists() and path.stat().st_mtime > start):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR2)

def fail(number, frame):
    way = os.environ["WAY"]
    if way == "raise":
        raise ArithmeticError("by the test")
    if way == "exit":
        sys.exit()
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
    bytearray(2**41)

given = dict(a.split("=", 1) for a in sys.orig_argv if "=" in a)
ours = given.get("seed") == "1" and given.get("trainer.devices") == "2"
if os.environ.get("WAY") and ours and "LOCAL_RANK" not in os.environ:
    signal.signal(signal.SIGUSR2, fail)
    checkpoint = Path(given["run_dir"]) / "checkpoints" / "last.ckpt"
    threading.Thread(target=wait, args=(checkpoint,), daemon=True).start()
"""


def sweep(run_dir: Path, *overrides: str, **environment: str) -> tuple[int, list[dict], str]:
    """Returns a sweep's exit code, its jobs, and what it said."""
    done = train(
        "-m", *SMALL, *overrides, f"run_dir={run_dir}", OMP_NUM_THREADS="1", **environment
    )
    return done.returncode, json.loads((run_dir / "sweep.json").read_text()), done.stderr


def test_a_job_that_fails_is_one_line_and_the_same_command_resumes_it(tmp_path: Path) -> None:
    # On a terminal without UTF-8 a job that had ended well counted as failed (issue 11, C3).
    given = ("em.rounds=0,1", "prior=null")
    code, jobs, error = sweep(tmp_path / NASTY, *given, PYTHONIOENCODING="ascii")
    assert code == 1 and "Traceback" not in error
    assert [job["overrides"] for job in jobs] == [["em.rounds=0"], ["em.rounds=1"]]
    assert jobs[0]["ended"] == "em.rounds must be a whole number of at least 1, got 0"
    assert jobs[1]["ended"] == "finished" and "measurement_energy_distance" in jobs[1]["final"]
    lines = error.splitlines()
    assert lines[-2].startswith("job 0 (em.rounds=0) in ") and lines[-2].endswith("/0.log")
    assert lines[-1].startswith("1 of 2 jobs failed; with run_dir=")
    before = (tmp_path / NASTY / "1" / "summary.json").stat().st_mtime_ns
    code, again, _ = sweep(tmp_path / NASTY, *given)
    assert code == 1 and [job["ended"] for job in again] == [job["ended"] for job in jobs]
    assert (tmp_path / NASTY / "1" / "summary.json").stat().st_mtime_ns == before


def test_two_sweeps_do_not_write_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, B4. Hydra would make a warning of an exception, and go on."""
    node = {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": ["seed=0,1"]}}
    config = OmegaConf.create({"hydra": node})
    record = tmp_path / ".jobs" / "00000.json"
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record.parent.mkdir()
        record.write_text("{}")
        with pytest.raises(SystemExit) as stop:
            SweepCallback().on_multirun_start(config)
    assert stop.value.code == 1 and record.exists()
    assert "is being written by another process" in capsys.readouterr().err
    mine = tmp_path / ".jobs" / "mine.txt"
    mine.write_text("precious")
    SweepCallback().on_multirun_start(config)
    unlock_folder(tmp_path)
    assert not record.exists() and mine.read_text() == "precious"
    for sweeper, searches in (("a.b.BasicSweeper", False), ("a.b.OptunaSweeper", True)):
        node["sweeper"] = {"_target_": sweeper}
        SweepCallback().on_multirun_start(OmegaConf.create({"hydra": node}))
        unlock_folder(tmp_path)
        assert SweepCallback.searches is searches
    (tmp_path / ".hydra").mkdir()
    with pytest.raises(SystemExit):
        SweepCallback().on_multirun_start(config)
    assert "holds a run; choose another run_dir" in capsys.readouterr().err


def test_a_job_in_another_process_takes_over_the_state_of_hydra(tmp_path: Path) -> None:
    """As submitit hands it over: "file is already registered with a different class"."""
    pytest.importorskip("cloudpickle")
    state = str(tmp_path / "state")
    give = """
import cloudpickle, sys
from hydra.core.singleton import Singleton
from diffem.cli.composition import compose
compose([])
open(sys.argv[1], "wb").write(cloudpickle.dumps(Singleton.get_state()))
"""
    take = """
import pickle, sys
from hydra.core.singleton import Singleton
state = pickle.load(open(sys.argv[1], "rb"))
Singleton.set_state(state)
"""
    for program in (give, take):
        done = run_python("-c", program, state, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr


def single(run_dir: Path, devices: int, seed: int, *overrides: str) -> Path:
    given = ("trainer.accelerator=cpu", f"trainer.devices={devices}", f"seed={seed}")
    done = train(*SMALL, *given, *overrides, f"run_dir={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.kill
def test_a_sweep_over_devices_and_seeds(tmp_path: Path) -> None:
    """One job fails in each of four ways and is resumed; all equal the runs by themselves."""
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    folder, path = tmp_path / "sweep", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    given = ("trainer.devices=1,2", "seed=0,1", "trainer.accelerator=cpu", "em.rounds=6")
    alone = [
        single(tmp_path / f"{devices}_{seed}", devices, seed, "em.rounds=6")
        for devices in (1, 2)
        for seed in (0, 1)
    ]
    said = {
        "raise": "ArithmeticError: by the test",
        "exit": "exit code 0 before its end",
        "kill": "killed by SIGKILL (out of memory?)",
        "memory": "out of memory",
    }
    for way, why in said.items():
        code, jobs, error = sweep(folder, *given, PYTHONPATH=path, WAY=way)
        assert code == 1, error
        assert [job["ended"] == "finished" for job in jobs] == [True, True, True, False], error
        assert why in jobs[3]["ended"]
        assert sum(line.startswith("job 3") and "FAILED" in line for line in error.splitlines())
        for job in range(3):
            assert weights(folder / str(job)) == weights(alone[job])
    code, jobs, error = sweep(folder, *given)
    assert code == 0, error
    for job, run_dir in enumerate(alone):
        assert weights(folder / str(job)) == weights(run_dir)
        summary = json.loads((folder / str(job) / "summary.json").read_text())
        assert (summary["devices"]["devices"], summary["seed"]) == (1 + job // 2, job % 2)
    assert len({str(weights(run_dir)) for run_dir in alone}) == 4


def of(run_dir: Path) -> list[int]:
    """Returns the processes that have a directory in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run_dir).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.kill
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_sweep_that_is_stopped_leaves_no_process(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    given = ("-m", *SMALL, "trainer.devices=2", "trainer.accelerator=cpu", "seed=0,1")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *given, f"run_dir={folder}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever pytest has
    )
    wait_until((folder / "0" / "checkpoints" / "last.ckpt").exists, process)
    assert len(of(folder)) == 3  # the sweep, and a job's two ranks
    process.send_signal(number)
    _, error = process.communicate(timeout=15)
    assert process.returncode == code
    assert number == signal.SIGKILL or error.splitlines()[-1].endswith(
        "; the same command resumes the run"
    )
    wait_until(lambda: not of(folder), seconds=15, every=0.1)


@pytest.mark.kill
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_launchers(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    given = ("trainer.devices=1,2", "trainer.accelerator=cpu", f"hydra/launcher={launcher}")
    code, jobs, error = sweep(tmp_path / "sweep", *given, "em.batch_size=128,9")
    assert code == 1, error
    assert [job["ended"] == "finished" for job in jobs] == [True, True, True, False]
    assert weights(tmp_path / "sweep" / "2") == weights(single(tmp_path / "alone", 2, 0))


@pytest.mark.kill
def test_optuna_minimises_the_objective(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = ("m_step.optimizer.lr=interval(1e-4,1e-2)", "hydra/sweeper=optuna", "prior=null")
    study = (f"hydra.sweeper.storage=sqlite:///{tmp_path}/s.db", "hydra.sweeper.study_name=s")
    scores = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        trials = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", *study)
        code, jobs, error = sweep(folder, *given, *trials)
        assert code == 0, error
        scores += [job["final"]["hidden_mse"] for job in jobs]
        best = (folder / "optimization_results.yaml").read_text()
        assert float(best.partition("best_value: ")[2]) == pytest.approx(min(scores))
    assert len(set(scores)) == 4


def finished(run_dir: Path, **final: float) -> Job:
    """Returns a job that finished with some scores."""
    run_dir.mkdir(parents=True)
    (run_dir / "summary.json").write_text(json.dumps({"final": final}))
    return Job("job", run_dir)


def test_a_search_minimises_what_its_jobs_have(tmp_path: Path) -> None:
    both = finished(tmp_path / "a", hidden_mse=2.0, measurement_energy_distance=0.0)
    one = finished(tmp_path / "b", measurement_energy_distance=0.5)
    assert outcome(both, None) == ("hidden_mse", 2.0, "finished")
    assert outcome(one, None) == ("measurement_energy_distance", 0.5, "finished")
    assert outcome(both, "measurement_energy_distance")[1] == 0
    assert outcome(one, "hidden_mse") == (
        *(None, None),
        "objective=hidden_mse is not among the run's scores: measurement_energy_distance",
    )


@pytest.mark.parametrize(
    ("objective", "direction", "said"),
    [
        ("psnr_mean", "minimize", "of which higher is better; set hydra.sweeper.direction=max"),
        ("psnr_mean", "maximize", ""),
        ("hidden_mse", "minimize", ""),
        ("hidden_mse", "maximize", "of which lower is better; set hydra.sweeper.direction=min"),
        ("residual_chi2", "minimize", "neither low nor high values of it are better"),
        (None, "minimize", ""),
    ],
)
def test_a_search_for_the_worst_says_so(
    objective: str | None,
    direction: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweeper = {"_target_": "a.b.OptunaSweeper", "direction": direction}
    node = {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": []}, "sweeper": sweeper}
    metrics = {"psnr": {"_target_": "diffem.metric.PSNR"}}
    metrics["chi2"] = {"_target_": "diffem.metric.ResidualChi2"}
    numbers = {"samples": 2, "subset": 2, "heldout": 2, "prior": 2}
    metric = {"_target_": "diffem.metric.Evaluation", "metrics": metrics, **numbers}
    config = OmegaConf.create({"hydra": node, "objective": objective, "metric": metric})
    SweepCallback().on_multirun_start(config)
    unlock_folder(tmp_path)
    found = " ".join(capsys.readouterr().err.split())
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize("searches", [True, False])
def test_a_search_whose_jobs_do_not_compare_says_so(
    searches: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(SweepCallback, "searches", searches)
    (tmp_path / RECORDS).mkdir()
    for k, name in enumerate(("hidden_mse", "measurement_energy_distance")):
        finished(tmp_path / str(k), **{name: 1.0})
        record = Record(k, [], str(tmp_path / str(k)), "finished", 1.0, name)
        record.write(tmp_path / RECORDS)
    print_records(tmp_path)
    said = "different scores (hidden_mse, measurement_energy_distance), which do not compare"
    assert (said in " ".join(capsys.readouterr().err.split())) is searches
