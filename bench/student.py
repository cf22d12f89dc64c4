"""`python -m bench.student --seed 0 --out runs/student`: what the student is worth.

The default run on digits with a student, and the same teacher by other samplers of few steps. One
process a seed; it takes one core, and no internet. FD is taken in the classifier's features, which
`diffem classify --dataset digits --out features/digits.safetensors` makes, and in the pixels.
Writes table_SEED.json.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bench.seed_table import diffem, parse, write_table

METRICS = (
    "metric=classifier",
    "metric.features=[{_target_: diffem.metric.Classifier, path: features/digits.safetensors},"
    "{_target_: diffem.metric.PixelFeatures, shape: [1,8,8]}]",
)
SAMPLERS = {  # of the same teacher
    "sde_14": ("sampler=sde", "sampler.steps=14"),
    "sde_8": ("sampler=sde", "sampler.steps=8"),
    "ddpm_50": ("sampler=ddpm", "sampler.steps=50"),
    "ddpm_8": ("sampler=ddpm", "sampler.steps=8"),
    "ddpm_4": ("sampler=ddpm", "sampler.steps=4"),
    "ddpm_2": ("sampler=ddpm", "sampler.steps=2"),
    "ddpm_1": ("sampler=ddpm", "sampler.steps=1"),
    "ddim_1": ("sampler=ddim", "sampler.steps=1"),
}
SCORES = ("psnr", "psnr_mean", "residual_chi2", "posterior_std", "measurement_energy_distance")
COSTS = ("distillation", "break_even")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and evaluates; prints the table.

    Arguments:
        arguments: The command's arguments; None for this process's.
    """
    chosen = parse(arguments, name="student", about=__doc__)
    run = chosen.out.absolute() / f"seed_{chosen.seed}"
    diffem(
        "train", *METRICS, "network.blocks=[2,2]", "em.steps_per_round=250", "em.relax=null",
        "prior=null", "student=diff_instruct", "trainer.accelerator=cpu", f"seed={chosen.seed}",
        *chosen.overrides, f"run_dir={run}", "resume=auto",
    )  # fmt: skip
    for old in run.glob("evaluation_*.json"):
        old.unlink()  # of an earlier call of this script
    found = {"student": figures(json.loads((run / "summary.json").read_text())["student"])}
    for number, (row, sampler) in enumerate(SAMPLERS.items(), start=1):
        diffem("evaluate", str(run), "--device", "cpu", *METRICS, *sampler)
        held = json.loads((run / f"evaluation_{number:03d}.json").read_text())
        found[row] = figures(held["final"])
    write_table(chosen, found)


def figures(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of a row of the table."""
    names = (*SCORES, *COSTS, *(name for name in scores if name.startswith("fd_")))
    return {name: scores[name] for name in names if scores.get(name) is not None}


if __name__ == "__main__":
    main()
