"""Runs Python in a process in which the libraries are imported already: a fork of a server.

The imports of torch, Lightning and others take most of the seconds of a short run. The server is
this file, started once by each process of pytest. It imports the libraries, not diffem, and forks
for each run; the fork takes its arguments, environment, working directory and streams, and ends as
Python ends. Its figures are white: drawing takes a fifth of what is left. Those of runs within
pytest's process, and of a Python that is started, are drawn.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = (  # of a default run, that take more than a tenth of a second
    *("torch", "torchvision", "torchmetrics", "lightning.pytorch", "azula.sample"),
    *(
        "hydra",
        "scipy.stats",
        "sklearn.datasets",
        "matplotlib.pyplot",
        "PIL.Image",
        "rich.progress",
    ),
)
SECONDS = 600  # after which a run is ended by SIGALRM


def run(
    *arguments: str, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, with arguments to its end.

    Variables that Python, or a library, reads when it starts have no effect.
    """
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / "stdout", Path(folder) / "stderr"]
        request = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": dict(environment),
            "streams": [os.devnull, *map(str, streams)],
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        said = [stream.read_text() for stream in streams]
    return subprocess.CompletedProcess([sys.executable, *arguments], code, *said)


@cache
def _server() -> subprocess.Popen[str]:
    path = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))  # diffem's first
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    atexit.register(server.communicate)
    return server


def save_white(figure: Any, file: Any, *, dpi: float, format: str = "png") -> None:
    """Saves a white picture of a figure's size, in the place of `Figure.savefig`."""
    width, height = (round(float(inches) * dpi) for inches in figure.get_size_inches())
    import_module("PIL.Image").new("RGB", (width, height), "white").save(file, format)


def serve() -> dict[str, Any] | None:
    """Answers each request with the exit code of its run.

    Returns:
        The request, in a fork that is to run it; None in the server, when no more will come.
    """
    for name in LIBRARIES:
        import_module(name)
    import_module("matplotlib.figure").Figure.savefig = save_white
    gc.freeze()  # the collector of a fork would copy all pages
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            return json.loads(line)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(
    arguments: list[str], cwd: str, environment: dict[str, str], streams: list[str]
) -> None:
    """Runs a request in this process."""
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.alarm(SECONDS)
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = ["-m", *arguments[2:]], cwd
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__" and (request := serve()) is not None:
    become(**request)
