"""Kills runs of train.py at random moments, resumes them, compares them with a run left alone.

    make soak SEED=0 COUNT=100               one process of a run is killed (kill -9)
    make soak SEED=0 COUNT=10 SIGNAL=TERM    the run is asked to stop: exit code 75 within 30 s
    make soak COUNT=20 FILES=256             rounds of 1,000 chunks, with 256 open files at most

Half of the kills meet runs of one CPU process, half of two. A run is killed, resumed
by the same command and killed again, until it is left to finish: then its weights and its last
round must be those of a run that was never killed, bit for bit, and no temporary file, lock or old
round may be left. Of 100 kills each stage gets at least 5: long ones are hit from outside, short
ones by the process itself (kill_at.py).
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from command import ROOT, SHORT, ranks
from kill_at import PATHS, aim_at, hook

from diffem.storage.atomic import sha256

ROUNDS, KEPT = 3, 2
RUN = (  # seconds, most of them for the imports
    *SHORT,
    f"em.rounds={ROUNDS}",
    f"em.keep_rounds={KEPT}",
    "dataset.train=203",
    "em.chunk_size=20",
    "em.steps_per_round=40",
    "em.steps_per_epoch=10",
    "sampler.steps=8",
    "prior.steps=30",
    "resume=auto",
    "trainer.accelerator=cpu",
)
STAGES = {  # in the order that a run meets them: which part of it, how many seconds to aim within
    "configuration": (0, 0.0),
    "start-up": (0, 6.0),
    "resume": (0, 0.0),
    "init": (1, 0.1),
    "M-step": (2, 0.5),
    "checkpoint": (2, 0.0),
    "E-step": (2, 0.3),
    "commit": (2, 0.0),
    "pruning": (2, 0.0),
    "prior": (3, 0.3),
    "evaluation": (4, 1.0),
    "summary": (4, 0.0),
}
LEAST = 5  # kills in each stage, of 100
START = 0.5  # seconds until the interpreter handles signals
GONE, STOPPED = 15.0, 30.0  # seconds that a kill and a stop may take, over all processes


def stage_of(run_dir: Path, started: float) -> str:
    """Returns the stage that a run is in, judged by the files that its process has written.

    Arguments:
        run_dir: The run directory.
        started: When the process was started, in seconds since the epoch.
    """

    def fresh(path: Path) -> bool:
        try:
            return path.stat().st_mtime >= started
        except FileNotFoundError:
            return False

    checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    if fresh(checkpoints / "posterior.safetensors"):
        return "evaluation"
    logged = metrics.read_text().splitlines()[-1:] if fresh(metrics) else []
    if fresh(checkpoints / "prior.ckpt") or (logged and "prior/" in logged[0]):
        return "prior"
    rounds = sorted((run_dir / "reconstructions").glob("round_*"))
    if rounds and not (rounds[-1] / "manifest.json").exists():
        if not fresh(rounds[-1] / "weights.json"):
            return "start-up"
        return "init" if rounds[-1].name == "round_000" else "E-step"
    saved = [run_dir / "reconstructions" / "round_000" / "manifest.json", metrics]
    return "M-step" if any(map(fresh, [*saved, *checkpoints.glob("last*.ckpt")])) else "start-up"


def result_of(run_dir: Path) -> dict[str, str]:
    """Returns what must be the same for runs that were and were not killed."""
    manifest = run_dir / "reconstructions" / f"round_{ROUNDS:03d}" / "manifest.json"
    names = ("posterior.safetensors", "prior.safetensors")
    return {
        "last round": json.dumps(json.loads(manifest.read_text())["chunks"], sort_keys=True),
        **{name: sha256(run_dir / "checkpoints" / name) for name in names},
    }


def left_behind(run_dir: Path) -> list[str]:
    """Returns what a finished run should not hold: temporary files, locks, old rounds."""
    rounds = [f"round_{k:03d}" for k in range(ROUNDS - KEPT + 1)]
    patterns = ("*.tmp*", "locks_*", "*.new", *rounds)
    return [str(path) for pattern in patterns for path in run_dir.rglob(pattern)]


def start(
    run_dir: Path, devices: int, files: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a run, or resumes it by the same command.

    Arguments:
        run_dir: The run directory.
        devices: The number of processes.
        files: How many files each may have open, in rounds of 1,000 chunks; 0 for no limit.
        environment: Further environment variables.
    """
    many = ("dataset.train=1000", "em.chunk_size=1") if files else ()
    command = [*RUN, *many, f"trainer.devices={devices}", f"run_dir={run_dir}"]
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files))
    with run_dir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *command],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            start_new_session=True,
            preexec_fn=limit if files else None,
        )


@dataclass
class Soak:
    """Runs on some number of processes, and the outcome of killing them."""

    folder: Path
    devices: int
    count: int
    number: signal.Signals
    random: random.Random
    hook: Path
    files: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def soak(self) -> None:
        """Kills often enough, each run until it is let to its end."""
        alone = self.folder / f"alone_{self.devices}"
        self.finish(alone)
        while not self.enough() and not self.failures:
            run_dir, reached = self.folder / f"killed_{self.devices}_{self.runs}", "start-up"
            while reached:  # one in ten is let to its end, and what comes after the last kill
                last = self.enough() or self.random.random() < 0.1
                reached = self.finish(run_dir) if last else self.attempt(run_dir, reached)
            self.runs += 1
            self.failures += [f"left behind: {path}" for path in left_behind(run_dir)]
            a, b = result_of(alone), result_of(run_dir)
            self.failures += [f"{name} of {run_dir} differs" for name in a if a[name] != b[name]]
            self.report(f"run {self.runs} at its end: {'equal' if a == b else 'DIFFERENT'}")

    def enough(self) -> bool:
        """Returns whether there were as many kills as asked for, and some in each stage."""
        least = min(self.stages[stage] for stage in STAGES)
        return self.stages.total() >= self.count and least >= -(-LEAST * self.count // 100)

    def report(self, text: str) -> None:
        """Prints a line of progress."""
        print(f"{time.strftime('%X')}  {self.devices} process(es)  {text}", flush=True)

    def finish(self, run_dir: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        """Waits until a run has finished."""
        process = process or start(run_dir, self.devices, self.files)
        if process.wait(timeout=600) != 0:
            raise SystemExit(f"exit code {process.returncode}: {run_dir}.log")

    def aim(self, run_dir: Path, reached: str) -> str:
        """Draws a stage that the run has not passed; rarely hit ones are more likely."""
        left_out = "configuration" if (run_dir / ".hydra").exists() else "resume"
        ahead = [
            stage
            for stage, (order, _) in STAGES.items()
            if stage != left_out and (order >= STAGES[reached][0] or order == 0)
        ]
        return self.random.choices(ahead, [1 / (1 + self.stages[p]) ** 2 for p in ahead])[0]

    def attempt(self, run_dir: Path, reached: str) -> str | None:
        """Resumes a run and kills it; returns the stage, None if the run finished before."""
        started, target = time.time(), self.aim(run_dir, reached)
        if target in PATHS:
            return self.attempt_at_write(run_dir, target, reached)
        process = start(run_dir, self.devices, self.files)
        time.sleep(START)
        while process.poll() is None and stage_of(run_dir, started) != target:
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, STAGES[target][1]))
        found = ranks(run_dir)
        if process.poll() is not None or 0 not in found:
            self.report(f"{target} was missed")
            return self.finish(run_dir, process)
        rank = self.random.choice(sorted(found)) if self.number == signal.SIGKILL else 0
        stage, killed = stage_of(run_dir, started), time.monotonic()
        try:
            os.kill(found[rank], self.number)
            self.await_end(process, run_dir)
        finally:
            if ranks(run_dir):
                os.killpg(process.pid, signal.SIGKILL)
        self.slowest = max(self.slowest, seconds := time.monotonic() - killed)
        how = f"rank {rank}, all gone after {seconds:.1f} s"
        return self.count_kill(run_dir, stage, reached, process.returncode, how)

    def attempt_at_write(self, run_dir: Path, stage: str, reached: str) -> str | None:
        """As `attempt`, at a write of a short stage, by the process itself."""
        aim = aim_at(stage, run_dir, self.number, self.random)
        path = f"{self.hook}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        process = start(run_dir, self.devices, self.files, {**aim, "PYTHONPATH": path})
        try:
            process.wait(timeout=600)
            self.await_end(process, run_dir)
        finally:
            if ranks(run_dir):
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0:  # it had fewer such writes left
            self.report(f"{stage} was missed")
            return self.finish(run_dir, process)
        code, how = process.returncode, "rank 0, at a write"
        expected = -signal.SIGKILL if self.number == signal.SIGKILL else 75
        if code != expected:
            self.failures.append(f"exit code {code} at a write of {stage}: {run_dir}.log")
        return self.count_kill(run_dir, stage, reached, code, how)

    def count_kill(self, run_dir: Path, stage: str, reached: str, code: int, how: str) -> str:
        """Counts a kill, and returns the latest stage that the run has been in."""
        self.stages[stage] += 1
        reached = stage if STAGES[stage][0] > STAGES[reached][0] else reached
        self.report(
            f"{self.stages.total():>3} of {self.count}: {stage:<13} {self.number.name} to {how}, "
            f"exit code {code}"
        )
        if self.number == signal.SIGTERM and code != 75:
            self.failures.append(f"exit code {code} after SIGTERM: {run_dir}.log")
        return reached

    def await_end(self, process: subprocess.Popen[bytes], run_dir: Path) -> None:
        """Waits until no process of a run is left."""
        limit = GONE if self.number == signal.SIGKILL else STOPPED
        end = time.monotonic() + limit
        while process.poll() is None or ranks(run_dir):
            if time.monotonic() > end:
                self.failures.append(f"{ranks(run_dir)} of {run_dir} live on after {limit:.0f} s")
                return
            time.sleep(0.02)


def main() -> None:
    """Soaks runs on one and on two processes at a time, and prints the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--files", type=int, default=0)
    given = parser.parse_args()
    folder, begun = Path(tempfile.mkdtemp(prefix="soak_")), time.monotonic()
    watcher = hook(folder / "hook")
    number = signal.Signals[f"SIG{given.signal}"]
    counts = {1: given.count // 2, 2: given.count - given.count // 2}
    soaks = [
        Soak(
            folder,
            devices,
            count,
            number,
            random.Random(f"{given.seed} {devices}"),
            watcher,
            given.files,
        )
        for devices, count in counts.items()
    ]
    with ThreadPoolExecutor(len(soaks)) as pool:
        for job in [pool.submit(soak.soak) for soak in soaks]:
            job.result()
    print(f"\n{'stage':<14}{'1 process':>12}{'2 processes':>14}")
    rows = {stage: [soak.stages[stage] for soak in soaks] for stage in STAGES}
    rows |= {"all": [s.stages.total() for s in soaks], "runs": [s.runs for s in soaks]}
    for name, (one, two) in rows.items():
        print(f"{name:<14}{one:>12}{two:>14}")
    failures = [failure for soak in soaks for failure in soak.failures]
    slowest, minutes = max(s.slowest for s in soaks), (time.monotonic() - begun) / 60
    print(f"slowest end {slowest:.1f} s; {minutes:.1f} minutes; seed {given.seed}")
    if failures:
        raise SystemExit("\n".join(failures))
    print("all runs end as the run that was left alone, bit for bit")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
