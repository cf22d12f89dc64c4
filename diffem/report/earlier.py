"""How well a run does what those before it did: their held-out measurements, scored again."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffem.data.measurements import MeasurementSet
from diffem.metric.parts import FORGETTING, OLD_PSNR_MEAN


@dataclass(frozen=True)
class EarlierRun:
    """A finished run that another one continues."""

    path: str
    """Its directory."""
    heldout: MeasurementSet
    """Its held-out measurements, under the channel that it assumed."""
    samples: int
    """How many samples of each posterior it was evaluated with."""
    count: int
    """The largest number of held-out measurements that it was evaluated on."""
    final: Mapping[str, Any]
    """Its held-out scores, as its `summary.json` has them."""


def compare_with_earlier(
    runs: Sequence[EarlierRun], after: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Compares what was scored when each run was finished with what is scored now.

    Arguments:
        runs: The earlier runs.
        after: The scores of the same held-out measurements now, of as many samples.

    Returns:
        The numbers before and after of each run; and their means over the runs: `old_NAME` and
        `old_NAME_before` of each score, and how many dB were lost, `forgetting_db`.
    """
    rows, means = [], dict[str, list[float]]()
    for run, scores in zip(runs, after, strict=True):
        names = [n for n in scores if _is_number(scores[n]) and _is_number(run.final.get(n))]
        names = [name for name in names if not name.endswith(("_error", "_truth"))]
        before, now = ({n: each[n] for n in names} for each in (run.final, scores))
        rows.append({"run": run.path, "before": before, "after": now})
        for name in names:
            means.setdefault(f"old_{name}", []).append(now[name])
            means.setdefault(f"old_{name}_before", []).append(before[name])
    found = {name: statistics.mean(values) for name, values in means.items()}
    if OLD_PSNR_MEAN.name in found:
        lost = found[f"{OLD_PSNR_MEAN.name}_before"] - found[OLD_PSNR_MEAN.name]
        found[FORGETTING.name] = lost
    return rows, found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
