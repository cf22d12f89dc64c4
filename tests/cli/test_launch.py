"""The command answers at once: torch and Lightning are not imported before they are needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

# Runs train.py and prints which of the two it has imported, also of a process that exits.
PROBE = """
import json, runpy, sys
sys.argv = ["train.py", *json.loads(sys.argv[1])]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("\\n" + json.dumps([name for name in ("torch", "lightning") if name in sys.modules]))
"""


def imported_by(*arguments: str) -> tuple[list[str], str]:
    """Returns what the command has imported when it ends, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--help", "== Config =="),
        ("em.foo=1", "error: em.foo is not a key of the config"),
        ("corruption=fog", "error: corruption=fog is not a choice"),
        ("em.rounds=many", "error: em.rounds must be a finite number"),
        ("sampler._target_=os.system", "error: sampler._target_=os.system is not allowed"),
        ("trainer.strategy=fsdp", "error: trainer.strategy must be one of"),
        ("sampler.steps=0", "error: sampler.steps must be a whole number"),
        ("resume=/nowhere", "error: resume=/nowhere: no run is there"),
    ],
)
def test_what_is_refused_by_the_configuration_imports_neither(
    argument: str, said: str, tmp_path: Path
) -> None:
    imported, output = imported_by(argument, f"run_dir={tmp_path / 'run'}")
    assert said in output and imported == []


def test_what_is_refused_by_the_channel_imports_torch_alone(tmp_path: Path) -> None:
    for given in ("corruption.rho=2", "+assumed.rho=2"):
        imported, output = imported_by(given, f"run_dir={tmp_path / 'run'}")
        assert "error: corruption.rho must be a number in [0, 1), got 2" in output
        assert imported == ["torch"]


def test_the_probe_sees_what_is_imported(tmp_path: Path) -> None:
    imported, output = imported_by("em.batch_size=0", f"run_dir={tmp_path / 'run'}")
    assert "error: em.batch_size must be" in output and imported == ["torch", "lightning"]
