"""`diffem COMMAND`, also as `python -m diffem COMMAND`; `python train.py` is `diffem train`."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from io import TextIOWrapper

from diffem.runtime.rank import global_rank, remove_left_over
from diffem.runtime.signals import (
    INTERRUPTED,
    exit_now,
    exit_on_interrupt,
    install_signal_handlers,
    reader_may_leave,
    stoppable,
)

COMMANDS = {
    "inspect": "say what can be learnt from measurements, and what a run would cost",
    "train": "learn a posterior sampler and a prior from corrupted images",
    "evaluate": "score a finished run under another sampler, other metrics or other data",
    "calibrate": "say how far to trust the samples and the spread of a finished run",
    "sample": "reconstruct measurements with a finished run",
    "score": "say how probable measurements are under what runs learned",
    "generate": "draw images from the prior of a finished run",
    "erase": "withdraw measurements from a finished run, in a new run without them",
    "export": "write a finished run into a folder to give away: weights, model card, ONNX",
    "watch": "show live what a run is doing: round, step, rate, time left, scores",
    "report": "write the page of a run, or one page that compares several",
    "dashboard": "lay out the W&B workspace of a project of runs",
    "compare": "compare methods, or the rows of a study, under equal conditions",
    "classify": "train the classifier in whose features metric=classifier compares images",
}
MODULES = {"train": "launch"}  # the module of a command, where it has another name
# Lightning starts the other ranks with the arguments of this process, but not the command.
COMMAND = "DIFFEM_COMMAND"
USAGE = "usage: diffem COMMAND …\n\n" + "".join(f"  {n:<9} {t}\n" for n, t in COMMANDS.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names with the arguments after it.

    Arguments:
        arguments: The arguments; None for this process's.

    Raises:
        SystemExit: With code 2 if there is no such command.
    """
    _prepare()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if COMMAND in os.environ and global_rank():
        given.insert(0, os.environ[COMMAND])
    if not given or given[0] in ("-h", "--help"):
        with reader_may_leave():
            print(USAGE, end="")
        sys.exit(0 if given else 2)
    if given[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: {given[0]} is not a command; diffem has {known}", file=sys.stderr)
        sys.exit(2)
    name, sys.argv = given[0], [sys.argv[0], *given[1:]]
    os.environ[COMMAND] = name
    run(name)


def train() -> None:
    """Runs `diffem train` with this process's arguments."""
    _prepare()
    run("train")


def run(name: str) -> None:
    """Imports and runs a command, with this process's arguments."""
    with reader_may_leave():
        _run(name)


def _run(name: str) -> None:
    if name == "train":
        install_signal_handlers()  # before imports that take seconds
    else:
        from diffem.cli.arguments import PARSE  # not among what train waits for

        if name in PARSE:  # ends the process after --help or a wrong argument, before imports
            PARSE[name](None)
    # A run ends its processes itself; Ctrl-C is how `watch` ends.
    own = {"train": exit_on_interrupt, "watch": nullcontext}
    scope = own.get(name, stoppable)
    try:
        with scope():
            import_module(f"diffem.cli.{MODULES.get(name, name)}").main()
    except KeyboardInterrupt:
        exit_now("stopped by SIGINT; start the same command again", INTERRUPTED)


def _prepare() -> None:
    """Removes left-over variables of a rank, and lets terminals of any encoding be written to."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that a terminal lacks is a ?
    if left_over := remove_left_over(os.environ):
        print(f"warning: {left_over}", file=sys.stderr)
