"""Shows live what a run is doing, from another terminal: `diffem watch RUN`.

    diffem watch runs/mine
    diffem watch runs/mine --once

Files of the run directory are read, and nothing is written: it may be watched by anyone who may
read it, also from another machine that has the disk. Without a terminal it prints once and ends.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from diffem.cli.arguments import parse_watch
from diffem.cli.errors import report_user_errors
from diffem.report.page import duration, run_title, status_text
from diffem.report.position import Position, read_position
from diffem.report.record import RunRecord, read_record
from diffem.report.table import HELDOUT, TIMES, score_table
from diffem.report.verdict import kept_line, relaxed_line
from diffem.runtime.errors import UserError
from diffem.runtime.progress import bar, plain_console
from diffem.storage.entries import check_entries
from diffem.storage.run_dir import check_version
from diffem.storage.status import State

EVERY = 1.0  # seconds between two looks
SHOWN = 8  # of the rounds, the last ones


def main(arguments: Sequence[str] | None = None) -> None:
    """Shows a run until it ends or Ctrl-C; once without a terminal.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_watch(arguments)
    with report_user_errors():
        check_run(chosen.run)
        if chosen.once or not plain_console().is_terminal:
            for part in shown(read_record(chosen.run)):
                plain_console().print(part, soft_wrap=isinstance(part, Text))
        else:
            watch(chosen.run)


def check_run(path: Path) -> None:
    """Refuses what is no run directory of this version of diffem.

    Raises:
        UserError: If it is none.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run directory, as in runs/mine")
    check_entries(path, writing=False)
    if not (path / ".hydra" / "config.yaml").is_file():
        part = (path.parent / ".hydra").is_dir()
        exported = (path / "posterior.safetensors").is_file() and not part
        what = "is the folder of an export, which is not a run" if exported else "holds no run"
        raise UserError(f"{path} {what}; give a run directory, as in runs/mine")
    check_version(path)


def watch(run_dir: Path) -> None:
    """Shows a run live until it ends or Ctrl-C.

    Arguments:
        run_dir: The run directory.

    Raises:
        UserError: If what it holds is damaged.
    """
    console = plain_console()
    progress = bar(console)
    task, stage = None, ""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                record = read_record(run_dir)
                if record.status.state is not State.RUNNING:
                    live.update(Group(*shown(record)), refresh=True)
                    return
                position = read_position(record)
                if task is None or position.stage != stage:
                    if task is not None:
                        progress.remove_task(task)
                    stage = position.stage
                    task = progress.add_task(
                        stage, total=position.total, completed=position.done,
                        unit=position.unit, note="",
                    )  # fmt: skip
                # The bar's rate is of the steps that are done while it is watched.
                progress.update(task, total=position.total, completed=position.done)
                bars = [progress] if position.total else []
                live.update(Group(*shown(record, position), *bars), refresh=True)
                time.sleep(EVERY)
        except KeyboardInterrupt:
            return


def shown(record: RunRecord, position: Position | None = None) -> list[RenderableType]:
    """Returns what is shown of a run: lines, and a table once a round is done.

    Arguments:
        record: What its directory holds.
        position: Where it is; None to read it, if it is running.
    """
    rows = [(str(row["round"]), row) for row in record.rounds[-SHOWN:]]
    rows += [(HELDOUT, record.final)] if record.final else []
    lines: list[RenderableType] = [Text(str(record.run_dir))]
    if record.status.state is State.RUNNING:
        position = read_position(record) if position is None else position
        lines.append(Text(f"Running: {position_text(position)}"))
    else:
        lines.append(Text(status_text(record)))
    if rows:
        scores, width = (*record.scores, *TIMES), plain_console().width
        lines.append(score_table(run_title(record), scores, rows, width=width))
    kept = kept_line(record.rounds) if record.status.state is State.FINISHED else None
    for line in (kept, relaxed_line(record.rounds)):
        if line is not None:
            lines.append(Text(line))
    return lines


def position_text(position: Position) -> str:
    """Returns where a run is, how fast it was in the last round, and what is left."""
    of = "" if position.total is None else f" of {position.total}"
    done = f", {position.done}{of} {position.unit}" if position.unit else ""
    parts = [f"{position.stage}{done}"]
    if position.loss is not None:
        parts.append(f"loss {position.loss:.3f}")
    if position.rate is not None:
        parts.append(f"{position.rate:.3g} {position.unit}/s in the last round")
    if position.left is not None:
        parts.append(f"about {duration(position.left)} of rounds left")
    return "; ".join(parts)
