"""Kills its own process at a write: for windows that are too short to be hit from outside.

`hook` makes a folder for PYTHONPATH, whose sitecustomize watches every process of a run by
Python's audit events. AIM in the environment says where the run's first process is killed, as in
{"stage": "commit", "skip": 1, "signal": 9, "run_dir": "…"}.
"""

import json
import os
import random
import re
import sys
import threading
import time
from pathlib import Path

AIM = "SOAK_AIM"
WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
PATHS = {  # what is written or removed in a stage, below the run directory
    "configuration": r"/(\.lock|\.hydra\.tmp.*|run\.json.*)$",
    "resume": r"/(\.lock|\.hydra/.*|run\.json|summary.*|checkpoints/.*|.*manifest\.json)$",
    "checkpoint": r"/checkpoints/.*(ckpt|new|SHA256SUMS).*$",
    "commit": r"/reconstructions/round_\d+/manifest\.json.*$",
    "pruning": r"/reconstructions/round_\d+/manifest\.json$",
    "summary": r"/(figures/.*|summary\.json.*)$",
}
READS = ("resume",)  # stages in which opening a file to read counts too
MOST = {  # of how many such writes one is drawn
    "configuration": 16,
    "resume": 12,
    "checkpoint": 12,
    "commit": 3,
    "pruning": 20,
    "summary": 6,
}


def hook(folder: Path) -> Path:
    """Writes the folder for PYTHONPATH, and returns it."""
    folder.mkdir()
    here = Path(__file__).parent
    (folder / "sitecustomize.py").write_text(
        f"import sys; sys.path.append({str(here)!r}); import kill_at; kill_at.watch()\n"
    )
    return folder


def aim_at(stage: str, run_dir: Path, number: int, chance: random.Random) -> dict[str, str]:
    """Returns the environment that has a run killed at a random write of a stage."""
    aim = {
        "stage": stage,
        "skip": chance.randrange(MOST[stage]),
        "signal": number,
        "run_dir": str(run_dir),
        "delay": chance.choice([0.0, chance.uniform(0, 0.003)]),
    }
    return {AIM: json.dumps(aim)}


def watch() -> None:
    """Installs the audit hook, in the first process of a run that is aimed at."""
    if AIM not in os.environ or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    aim = json.loads(os.environ[AIM])
    stage, left = aim["stage"], aim["skip"]
    pattern = re.compile(re.escape(aim["run_dir"]) + PATHS[stage])
    removing = done = False

    def kill() -> None:
        time.sleep(aim["delay"])
        os.kill(os.getpid(), aim["signal"])

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left, removing, done
        if done or not (event in WRITES or event == "open"):
            return
        if event == "open" and stage not in READS and "w" not in str(arguments[1]):
            return
        names = [str(a) for a in arguments[:2] if isinstance(a, str | os.PathLike)]
        hit = any(pattern.search(name) for name in names)
        if stage == "pruning":  # from the removal of a manifest on, every removal
            hit = event in ("os.remove", "os.rmdir") and (hit or removing)
            removing = removing or hit
        if not hit:
            return
        if left > 0:
            left -= 1
            return
        done = True
        if aim["delay"]:
            threading.Thread(target=kill, daemon=True).start()
        else:
            kill()

    sys.addaudithook(audit)
