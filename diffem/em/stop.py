"""Stops inside a fit: this project's signal handlers and watch in place of Lightning's."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from diffem.signals import GO_ON, stop, stop_on_signals

WATCH_SECONDS = 0.2


class Stops(Callback):
    """Takes the signals back from Lightning, and ends the run when one of its processes dies.

    Lightning's handler of SIGTERM broadcasts before it calls ours: a collective inside a signal
    handler, which hangs where another collective is under way. Its handler of SIGUSR1 requeues a
    SLURM job by itself. Its observer kills this process too, and no line says why.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers and the watch before an E-step that is due."""
        stop_on_signals()
        if processes := getattr(trainer.strategy.launcher, "procs", []):
            for thread in threading.enumerate():
                if thread.name == "child-process-observer":  # Lightning's
                    thread._child_processes = []  # type: ignore[attr-defined]
            threading.Thread(target=watch, args=(processes,), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers once Lightning has installed its own."""
        stop_on_signals()


def watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends this process, the first, as soon as one that it started does not end well."""
    while None in (codes := [process.poll() for process in processes]) or any(codes):
        for rank, code in enumerate(codes, start=1):
            if code == 1:  # it has said why
                os._exit(1)
            if code:
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                stop(f"error: process {rank} of the run was ended {how}; {GO_ON}", 1)
        time.sleep(WATCH_SECONDS)
