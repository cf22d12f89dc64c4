"""Runs a command's run in this process: seconds instead of the start of a process."""

import json
from pathlib import Path
from unittest.mock import Mock, patch

from diffem.cli.compose import check_config, compose_run
from diffem.cli.launch import quiet
from diffem.cli.train import run
from diffem.report.record import is_finished, is_sound
from diffem.storage.lock import unlock_folder

TINY = (  # two seconds a run
    "corruption=denoising",
    "corruption.noise.std=0.3",
    "em.rounds=1",
    "em.steps_per_round=2",
    "em.batch_size=8",
    "em.chunk_size=25",
    "sampler.steps=2",
    "network.channels=[16]",
    "network.blocks=[1]",
    "metric.samples=2",
    "metric.subset=4",
    "metric.heldout=8",
    "metric.metrics={residual_chi2:{_target_:diffem.metric.ResidualChi2}}",
    "prior=null",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
)
FIGURES = {name: Mock() for name in ("save_panel", "save_curves", "save_samples")}
DEFAULTS = {  # of groups of which another choice may be given
    "init=": ("init.iterations=1", "init.rank=4"),
    "dataset=": ("dataset.train=60",),
}


def run_here(run_dir: Path, *overrides: str) -> Path:
    """Runs `diffem train` to its end in this process, without its figures.

    Returns:
        The run directory. Pages and comparisons can read what is in it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    chosen = [group for group in DEFAULTS if any(o.startswith(group) for o in overrides)]
    defaults = [o for group, own in DEFAULTS.items() if group not in chosen for o in own]
    cfg = compose_run([*TINY, *defaults, *overrides], run_dir)
    try:
        check_config(cfg)
        with quiet(), patch.multiple("diffem.report.summary", **FIGURES):
            run(cfg)
    finally:
        unlock_folder(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert is_sound(summary) and is_finished(summary)
    return run_dir
