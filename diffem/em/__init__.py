"""The EM loop: store, init, module, datamodule, callback."""

from diffem.em.augment import Augment
from diffem.em.blind import Blind
from diffem.em.callback import EMRounds
from diffem.em.datamodule import Epochs, ReconstructionDataModule
from diffem.em.module import DenoiserModule, MStep
from diffem.em.objective import Objective, ObjectiveFactory, Unconditional
from diffem.em.observe import Observed, observe
from diffem.em.round import Round
from diffem.em.schedule import Cosine, Linear
from diffem.em.settings import EMSettings
from diffem.em.store import ReconstructionStore

__all__ = [
    "Augment",
    "Blind",
    "Cosine",
    "DenoiserModule",
    "EMRounds",
    "EMSettings",
    "Epochs",
    "Linear",
    "MStep",
    "Objective",
    "ObjectiveFactory",
    "Observed",
    "ReconstructionDataModule",
    "ReconstructionStore",
    "Round",
    "Unconditional",
    "observe",
]
