"""The EM loop."""

from diffem.em.augment import Augment
from diffem.em.balance import Balance, Dual, Oversample
from diffem.em.blind import Blind
from diffem.em.budget import EMSettings
from diffem.em.callbacks import CheckpointEachEpoch
from diffem.em.clean import CleanShare
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.guard import Guard
from diffem.em.loop import EMLoop, PosteriorFactory, e_step
from diffem.em.memory import Generative, Memory, Replay
from diffem.em.module import DenoiserModule, MStep
from diffem.em.objective import Objective, Unconditional
from diffem.em.plateau import Plateau
from diffem.em.round import Round
from diffem.em.schedule import Cosine, Linear
from diffem.em.state import EMState
from diffem.em.student import DiffInstruct, StudentModule

__all__ = [
    "Augment",
    "Balance",
    "Blind",
    "CheckpointEachEpoch",
    "CleanShare",
    "Cosine",
    "DenoiserModule",
    "DiffInstruct",
    "Dual",
    "EMLoop",
    "EMSettings",
    "EMState",
    "Generative",
    "Guard",
    "Linear",
    "MStep",
    "Memory",
    "Objective",
    "Oversample",
    "Plateau",
    "PosteriorFactory",
    "ReconstructionDataModule",
    "Replay",
    "Round",
    "StudentModule",
    "Unconditional",
    "e_step",
]
