"""`python -m bench.erase --seed 0 --out runs/erase`: what `diffem erase` is worth.

150 digits, of which the first 50 are withdrawn, in a run that is long enough to remember them.
One process a seed; it takes one core, and no internet. Each row is a run in its own folder:

original    all 150
retrained   trained anew without the 50, which is what erasing should come to
heldout     erased, target heldout
noise       erased, target noise
finetuned   the original, trained on the rest for as many steps as erasing takes

All are audited by the same measurements and draws. Writes table_SEED.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.seed_table import diffem, parse, write_table
from diffem.cli.erase import SHARE
from diffem.cli.erase_source import Source
from diffem.config.build import build
from diffem.em.erase import Erasing
from diffem.posterior.posterior import DenoiserPosterior
from diffem.result import load

WITHDRAWN = 50
COMMON = (
    *("dataset.train=150", "corruption=mask", "em.rounds=2", "em.steps_per_round=600"),
    *("network.channels=[32]", "network.blocks=[2]", "metric.heldout=300"),
    *("em.batch_size=64", "prior=null", "em.guard=null", "em.relax=null", "metric.samples=8"),
    "trainer.accelerator=cpu",
)
STEPS = round(SHARE * 1200)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, erases and audits; prints the table.

    Arguments:
        arguments: The command's arguments; None for this process's.
    """
    chosen = parse(arguments, name="erase", about=__doc__)
    folder = chosen.out.absolute() / f"seed_{chosen.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.txt"
    rows.write_text("".join(f"{row}\n" for row in range(WITHDRAWN)))
    given = [*COMMON, f"seed={chosen.seed}", *chosen.overrides]

    def train(row: str, *own: str) -> None:
        diffem("train", *given, *own, f"run_dir={folder / row}", "resume=auto")

    train("original")
    train("retrained", f"withdrawn={rows}")
    tuned = (f"em.steps_per_round={STEPS}", "em.rounds=1", "m_step.optimizer.lr=4e-3")
    train(
        "finetuned", f"withdrawn={rows}", "init=checkpoint", f"init.path={folder / 'original'}",
        *tuned,
    )  # fmt: skip
    for target in ("heldout", "noise"):
        if not (folder / target).exists():
            diffem(
                "erase", str(folder / "original"), "--rows", str(rows), "--target", target,
                "--out", str(folder / target), "--device", "cpu",
            )  # fmt: skip
    write_table(chosen, table(folder, rows))


def table(folder: Path, rows: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures of each run.

    Arguments:
        folder: The folder of the runs.
        rows: The file that names what was withdrawn.
    """
    source = Source.of(folder / "original", rows, device="cpu", trust=[])
    cfg = source.cfg
    objective = build(cfg.method.objective, "method.objective")
    m_step = build(cfg.m_step, "m_step")
    erasing = Erasing(objective, m_step, 1, 1.0, 1.0)
    found: dict[str, dict[str, Any]] = {}
    for row in ("original", "retrained", "heldout", "noise", "finetuned"):
        result = load(folder / row, device="cpu")
        posterior, summary = result.posterior.posterior, result.summary
        assert isinstance(posterior, DenoiserPosterior) and summary is not None
        final = summary["final"]
        keys = ("psnr", "psnr_mean", "residual_chi2", "posterior_std")
        found[row] = {
            **source.audit(erasing, posterior.denoiser),
            "nfe": summary["rounds"][-1]["nfe"],
            **{key: final[key] for key in keys},
        }
    for figures in found.values():
        figures["share"] = figures["nfe"] / found["retrained"]["nfe"]
    return found


if __name__ == "__main__":
    main()
