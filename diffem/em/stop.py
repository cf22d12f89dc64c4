"""Stops inside a fit: this project's signal handlers in place of Lightning's."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from diffem.signals import stop_on_signals


class Stops(Callback):
    """Takes the signals back from Lightning.

    Its handler of SIGTERM broadcasts before it calls ours: a collective inside a signal handler,
    which hangs where another collective is under way.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers before an E-step that is due."""
        stop_on_signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the handlers once Lightning has installed its own."""
        stop_on_signals()
