"""What a run prints at its end: the table of rounds, the scores, the files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {  # title: key of a round's row and of the held-out scores, digits
    "PSNR": ("psnr", 2),
    "of mean": ("psnr_mean", 2),
    "SSIM": ("ssim", 3),
    "χ²": ("residual_chi2", 3),
    "E-step s": ("e_step_seconds", 1),
    "M-step s": ("m_step_seconds", 1),
}
FILES = ("summary.json", "metrics.jsonl", "figures", "reconstructions", "checkpoints")


def print_closing(
    about: Mapping[str, Any], rounds: Sequence[dict[str, Any]], final: Mapping[str, Any]
) -> None:
    """Prints the table of rounds and what stands below it.

    Arguments:
        about: What heads the summary.
        rounds: The rounds' rows.
        final: The held-out scores.
    """
    console = Console()
    title = "{dataset} · {corruption} · {method} · seed {seed}".format_map(about)
    table = Table(title=title)
    for name in ("round", *COLUMNS):
        table.add_column(name, justify="right")
    for name, row in [(str(r["round"]), r) for r in rounds] + [("held-out", final)]:
        values = ((row.get(key), digits) for key, digits in COLUMNS.values())
        table.add_row(name, *("–" if v is None else f"{v:.{d}f}" for v, d in values))
    console.print(table)
    if final["gaussian_psnr_mean"] is not None:
        floor = final["gaussian_psnr_mean"]
        console.print(f"Gaussian posterior mean, held-out: {floor:.2f} dB")
    if estimate := rounds[-1].get("estimate"):
        learned = ", ".join(f"{name} {level:.4f}" for name, level in estimate.items())
        console.print(f"channel, learned: {learned}")
    if final["prior"] is not None:
        console.print(
            "prior: Fréchet distance of pixels {frechet_pixels:.3f} (as many true images: "
            "{frechet_pixels_truth:.3f})".format_map(final["prior"])
        )


def print_scores(features: Mapping[str, Mapping[str, float]]) -> None:
    """Prints what `feature_scores` returned, a line for each set and score."""
    for name, scores in features.items():
        for key in (key for key in scores if f"{key}_truth" in scores):
            value, true = scores[key], scores[f"{key}_truth"]
            Console().print(f"{name}: {key} {value:.3f} (true images: {true:.3f})")


def print_files(run_dir: Path) -> None:
    """Prints what a run wrote, and where."""
    for name in FILES:
        Console().print(f"wrote {run_dir / name}", soft_wrap=True)
