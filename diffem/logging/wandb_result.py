"""What the end of a run adds to its W&B run: final scores, tables, images, artifacts, an alert.

All of it is in the W&B run's summary, not in its history: a resumed run logs its history again,
and has another result.
"""

from pathlib import Path
from typing import Any

import wandb

from diffem.logging.calibration import COLUMNS, read_charts
from diffem.logging.rounds import numbers
from diffem.storage.atomic import read_json
from diffem.storage.npz import load_arrays
from diffem.storage.run_dir import RECONSTRUCTIONS
from diffem.storage.status import ENDED, State

WEIGHTS = ("posterior.safetensors", "prior.safetensors")
FIGURES = {  # what is shown of a finished run, and its caption
    "heldout": "held-out: measurement, sample, mean, std of the samples, truth where it is known",
    "prior": "samples of the prior",
}


def log_result(run: wandb.Run, run_dir: Path) -> None:
    """Adds the tables of the rounds and of samples, the final scores and their figures.

    Arguments:
        run: The W&B run.
        run_dir: The run directory; what it does not hold is left out.
    """
    summary = read_json(run_dir / "summary.json") or {}
    rounds = summary.get("rounds") or (read_json(run_dir / "rounds.json") or {}).get("rounds")
    if rounds:
        run.summary["rounds"] = rounds_table(rounds)
    if not isinstance(final := summary.get("final"), dict):
        return
    run.summary.update(numbers(final, "final"))
    figures = run_dir / "figures"
    for name, caption in FIGURES.items():
        if (file := figures / f"{name}.png").is_file():
            run.summary[f"final/{name}_panel"] = wandb.Image(str(file), caption=caption)
    if (table := samples_table(figures / "heldout.npz")) is not None:
        run.summary["samples"] = table
    log_calibration(run, run_dir)


def log_calibration(run: wandb.Run, run_dir: Path) -> None:
    """Adds the newest calibration of a run: its numbers, the tables of its charts, its figure.

    Arguments:
        run: The W&B run.
        run_dir: The run directory; nothing is added if it holds no calibration.
    """
    if (calibration := read_charts(run_dir)) is None:
        return
    run.summary.update(calibration.numbers)
    for name, columns in COLUMNS.items():
        rows: list[Any] = calibration.rows(name)
        run.summary[name] = wandb.Table(list(columns), rows)
    if (figure := run_dir / "figures" / f"{calibration.name}.png").is_file():
        run.summary["calibration/figure"] = wandb.Image(str(figure), caption=calibration.name)


def log_artifacts(run: wandb.Run, run_dir: Path) -> None:
    """Adds a finished run's weights, and the reconstructions of its last round, as artifacts.

    Arguments:
        run: The W&B run.
        run_dir: The run directory.
    """
    weights = [path for name in WEIGHTS if (path := run_dir / "checkpoints" / name).is_file()]
    if weights:
        artifact = wandb.Artifact(f"{run.id}-weights", type="model")
        for path in weights:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
    rounds = sorted(
        path.parent for path in (run_dir / RECONSTRUCTIONS).glob("round_*/manifest.json")
    )
    if rounds:
        artifact = wandb.Artifact(f"{run.id}-reconstructions", type="dataset")
        artifact.add_dir(str(rounds[-1]), name=rounds[-1].name)
        run.log_artifact(artifact)


def alert_of_failure(run: wandb.Run, run_dir: Path) -> bool:
    """Sends an alert if the run failed, as on numbers that are not finite.

    Returns:
        Whether it failed.
    """
    ended = read_json(run_dir / ENDED) or {}
    if ended.get("state") != State.FAILED:
        return False
    run.alert("Run failed", str(ended.get("reason")), level="ERROR")
    return True


def alert_of_collapse(run: wandb.Run, run_dir: Path, k: int, *, sent: bool) -> bool:
    """Sends an alert if the reconstructions of a round have collapsed.

    Arguments:
        run: The W&B run.
        run_dir: The run directory.
        k: The round.
        sent: Whether an earlier process of the run has sent it.

    Returns:
        Whether they have.
    """
    rows = (read_json(run_dir / "rounds.json") or {}).get("rounds") or []
    found = next((row["collapse"] for row in rows if row["round"] == k and "collapse" in row), {})
    if not found:
        return False
    left = ", ".join(f"{name} is {value:.2f} of round 0's" for name, value in found.items())
    if not sent:
        run.alert("Collapse", f"round {k}: {left}", level="WARN")
    return True


def rounds_table(rounds: list[dict[str, Any]]) -> wandb.Table:
    """Returns the table of the rounds' scores and costs; a score that a round lacks is empty.

    Arguments:
        rounds: The rows of the rounds, as rounds.json has them.
    """
    flat = [numbers(row, "round") for row in rounds]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    data: list[Any] = [[row.get(name) for name in columns] for row in flat]
    return wandb.Table([name.removeprefix("round/") for name in columns], data)


def samples_table(pictures: Path) -> wandb.Table | None:
    """Returns a table of held-out measurements beside their samples; None if it has no images.

    Arguments:
        pictures: The file of a figure's pictures, as `diffem.report.pictures` saves them.
    """
    held = load_arrays(pictures)
    shape = held["measurement"].shape if "measurement" in held else ()
    if len(shape) != 4 or shape[-1] not in (1, 3) or "samples" not in held:
        return None  # vectors, volumes, or channels that are no colours
    samples = {f"sample {i + 1}": x for i, x in enumerate(held["samples"])}
    others = {name: held[name] for name in ("mean", "truth") if name in held}
    columns = {"measurement": held["measurement"], **samples, **others}
    data: list[Any] = [
        [i, *(wandb.Image(x[i].squeeze(), caption=name) for name, x in columns.items())]
        for i in range(shape[0])
    ]
    return wandb.Table(["number", *columns], data)
