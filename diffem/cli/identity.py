"""What a run is bound to: its settings, its measurements, and what it reads from other files."""

from collections.abc import Iterator

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffem.cli.compose import assumed_corruption
from diffem.corruption.array_file import array_files, read_array
from diffem.data.digest import data_digest
from diffem.data.measurements import MeasurementSet
from diffem.em import MStep
from diffem.storage.identity import RunIdentity
from diffem.storage.run_dir import config_hash


def run_identity(
    cfg: DictConfig, m_step: MStep, train: MeasurementSet, heldout: MeasurementSet
) -> RunIdentity:
    """Returns the hashes of a run's settings and of its data.

    Arguments:
        cfg: The configuration.
        m_step: The settings of the M-step, whose clean images were read.
        train: The training measurements.
        heldout: The held-out measurements.
    """
    data = data_digest(train, heldout, others=_other_files(cfg, m_step))
    return RunIdentity(config_hash(cfg), data)


def _other_files(cfg: DictConfig, m_step: MStep) -> Iterator[Tensor]:
    """Yields what a run reads from files besides its measurements.

    Arguments:
        cfg: The configuration.
        m_step: The settings of the M-step, whose clean images were read.
    """
    if m_step.clean is not None and m_step.clean.path is not None:
        yield m_step.clean.images
    for node in (cfg.corruption, assumed_corruption(cfg)):
        plain = OmegaConf.to_container(node, resolve=True)
        assert isinstance(plain, dict)
        for part, key in array_files(plain):
            yield torch.from_numpy(read_array(key, part[key]))
