"""train.py, in which the second process's loss is infinite at step 5 until the rate is halved."""

import os
import sys
from pathlib import Path

from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from diffem.em import DenoiserModule  # noqa: E402
from diffem.em.objective import Recorrupted  # noqa: E402
from diffem.storage.reconstructions import Batch  # noqa: E402

plain_step, plain_loss = DenoiserModule.training_step, Recorrupted.loss
bad = False


def step(self: DenoiserModule, batch: Batch) -> Tensor:
    global bad
    bad = self.trainer.global_step == 5 and not self.rollbacks
    return plain_step(self, batch)


def loss(self: Recorrupted, *arguments: object, **others: object) -> Tensor:
    value = plain_loss(self, *arguments, **others)  # type: ignore[arg-type]
    return value + float("inf") if bad and os.environ.get("LOCAL_RANK") == "1" else value


DenoiserModule.training_step, Recorrupted.loss = step, loss  # type: ignore[method-assign]
# In this very module: Lightning starts the second process with this file.
exec(compile((ROOT / "train.py").read_text(), str(ROOT / "train.py"), "exec"))
