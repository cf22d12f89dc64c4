"""The EM loop."""

from diffem.em.augment import Augment
from diffem.em.blind import Blind
from diffem.em.budget import EMSettings
from diffem.em.callbacks import CheckpointEachEpoch
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.loop import EMLoop
from diffem.em.module import DenoiserModule, MStep
from diffem.em.objective import Objective, ObjectiveFactory, Unconditional
from diffem.em.round import Round
from diffem.em.schedule import Cosine, Linear

__all__ = [
    "Augment",
    "Blind",
    "CheckpointEachEpoch",
    "Cosine",
    "DenoiserModule",
    "EMLoop",
    "EMSettings",
    "Linear",
    "MStep",
    "Objective",
    "ObjectiveFactory",
    "ReconstructionDataModule",
    "Round",
    "Unconditional",
]
