"""What the benchmark writes: a JSON file, the tables of docs/performance.md, and the verdict."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.cost import Prediction, prediction_rows
from bench.figure import TOLERANCE, Figure, LeftOut

PACKAGES = ("diffem", "torch", "lightning", "azula", "numpy", "diffusers", "deepinv")

Record = dict[str, Any]
"""All that a run of the benchmark found, in plain types."""


def make_record(
    figures: Sequence[Figure],
    left_out: Sequence[LeftOut],
    predictions: Sequence[Prediction],
    *,
    seconds: float,
) -> Record:
    """Returns the record of a run of the benchmark."""
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "seconds": round(seconds),
        "figures": {figure.name: figure.record() for figure in figures},
        "left_out": {each.name: each.reason for each in left_out},
        "predictions": prediction_rows(predictions),
    }


def machine() -> dict[str, Any]:
    """Returns what identifies the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (
        found := re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8"))
    ):
        cpu = found[1]
    return {
        "system": platform.system(),
        "python": platform.python_version(),
        "processor": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def regressions(record: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each figure that is worse than its baseline by more than a tenth.

    Figures that only one of the two records has are not compared.

    Arguments:
        record: What was measured now.
        baseline: What it is compared with.
    """
    worse = []
    for name, before in baseline["figures"].items():
        if (now := record["figures"].get(name)) is None:
            continue
        was, is_now = before["median"], now["median"]
        factor = was / is_now if now["more_is_better"] else is_now / was
        if factor > 1 + TOLERANCE:
            worse.append(
                f"{name} is worse than the baseline: {now['title']} is {is_now:.3g}, was "
                f"{was:.3g} ({factor - 1:.0%} worse, {TOLERANCE:.0%} are allowed)"
            )
    return worse


def ratio_table(record: Mapping[str, Any]) -> str:
    """Returns the Markdown table of the ratios, and what was left out."""
    lines = [
        "| figure | median | min to max | limit | measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, figure in record["figures"].items():
        limit = "–"
        if figure["limit"] is not None:
            sign = "≥" if figure["more_is_better"] else "≤"
            limit = f"{sign} {figure['limit']:g}" + ("" if figure["within_limit"] else ": missed")
        lines.append(
            f"| {figure['title']} (`{name}`) | {figure['median']:.3f} | {figure['min']:.3f} to "
            f"{figure['max']:.3f} | {limit} | {_measured(figure)} |"
        )
    lines += [f"| `{name}` | left out: {why} | | | |" for name, why in record["left_out"].items()]
    return "\n".join([*lines, "", _origin(record)])


def _measured(figure: Mapping[str, Any]) -> str:
    above, below = (f"{figure[part]:.3g}" for part in ("numerator", "denominator"))
    return f"{above} / {below} {figure['unit']}"


def _origin(record: Mapping[str, Any]) -> str:
    where, packages = record["machine"], record["versions"]
    return (
        f"{record['date']}, {where['processor']}, {where['cores']} cores, "
        f"{where['threads']} thread a process; "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
        + f"; {record['seconds']} s in all."
    )


def prediction_table(record: Mapping[str, Any]) -> str:
    """Returns the Markdown table of what the cost model predicts and what was measured."""
    lines = [
        "| network | N | step | FLOPs | rate (GFLOP/s) | predicted (s) | measured (s) | "
        "measured / predicted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in record["predictions"]:
        lines.append(
            f"| {row['network']} | {row['N']} | {row['step']} | {row['flops']:.2e} | "
            f"{row['rate'] / 1e9:.0f} | {row['predicted']:.2f} | {row['measured']:.2f} | "
            f"{row['measured'] / row['predicted']:.2f} |"
        )
    return "\n".join(lines)


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """Returns a page with the text between its markers replaced by tables.

    Arguments:
        page: The page; a table stands between `<!-- bench: NAME -->` and `<!-- end -->`.
        tables: The tables by their names.

    Raises:
        ValueError: If the markers of a table are not there once.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- bench: {name} -->\n).*?(<!-- end -->)"
        page, count = re.subn(
            pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page has the markers of the table {name} {count} times")
    return page


def read_baseline(path: Path) -> Record | None:
    """Returns the record of the baseline; None if there is none.

    Raises:
        ValueError: If the file holds no record.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        regressions(record, record)
        assert isinstance(record["machine"], dict)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError):
        raise ValueError(f"{path} is damaged: make bench BASELINE=1 writes it anew") from None
    return record
