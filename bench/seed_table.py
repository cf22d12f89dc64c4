"""A script of one seed: its arguments, the commands that it runs, and its table_SEED.json."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parse(arguments: Sequence[str] | None, *, name: str, about: str | None) -> argparse.Namespace:
    """Returns the arguments seed, out and overrides.

    Arguments:
        arguments: The command's arguments; None for this process's.
        name: The script's name in bench/, and the default folder's in runs/.
        about: Its description.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("overrides", nargs="*", help="of every training")
    return parser.parse_args(arguments)


def diffem(*arguments: str) -> None:
    """Runs a command of diffem to its end."""
    subprocess.run([sys.executable, "-m", "diffem", *arguments], check=True)


def write_table(chosen: argparse.Namespace, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the figures of each row to table_SEED.json, and prints them.

    Arguments:
        chosen: The script's arguments.
        rows: The figures of each row, by name.
    """
    file = chosen.out / f"table_{chosen.seed}.json"
    file.write_text(json.dumps(rows, indent=1) + "\n")
    for row, figures in rows.items():
        print(row, json.dumps(figures))
