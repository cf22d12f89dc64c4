"""Roll-back: a fit that meets non-finite numbers resumes from its checkpoint at half the rate.

The number of halvings is part of the checkpoint, and a process that was killed meets the same
numbers again: a run that has rolled back can be killed and resumed like any other.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from lightning import Trainer

from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.module import DenoiserModule, NonFiniteError
from diffem.runtime.errors import UserError
from diffem.runtime.progress import console
from diffem.storage.checkpoint import resumable


def fit(
    make_trainer: Callable[[], Trainer],
    module: DenoiserModule,
    data: ReconstructionDataModule,
    checkpoint: Path,
) -> Trainer:
    """Fits a module, from the checkpoint if there is one, and returns the trainer.

    Arguments:
        make_trainer: Makes a trainer that saves the checkpoint before its first step.
        module: The module.
        data: Its data.
        checkpoint: The file that the state of training is saved in.

    Raises:
        UserError: If numbers go bad once more than `m_step.rollbacks` allows.
    """
    while True:
        trainer = make_trainer()
        try:
            start = resumable(checkpoint, data.store.intact_digest, data.store.identity)
            trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
            return trainer
        except NonFiniteError as error:
            # Every rank meets the same number: the first one reports it.
            found, allowed = f"{error}; the last good checkpoint is {checkpoint}", module.m_step
            if module.rollbacks >= allowed.rollbacks:
                if not trainer.is_global_zero:
                    sys.exit(0)
                precise = trainer.precision == "32-true"
                raise UserError(
                    f"{found}: resume from it at half the learning rate with "
                    f"m_step.rollbacks={module.rollbacks + 1}, or start again in a new run_dir "
                    f"with a lower {module.rates}"
                    + ("" if precise else " or trainer.precision=32-true")
                ) from error
            module.rollbacks += 1
            if trainer.is_global_zero:
                rate = f"{0.5**module.rollbacks:g} of the learning rate"
                line = f"warning: {found}; resuming from it at {rate}"
                console.print(line, soft_wrap=True)
