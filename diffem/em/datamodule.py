"""The data of the EM loop: the measurements, and the reconstructions D_k of the current round."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from diffem.data.measurements import MeasurementSet
from diffem.em.budget import EMSettings
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator
from diffem.storage.reconstructions import Batch
from diffem.storage.store import ReconstructionStore

SAMPLE = 4096


class StepSampler(Sampler[list[int]]):
    """The batches of a range of optimiser steps, a function of a key and the step alone.

    Step j takes rows j B … (j + 1) B of an endless stream of permutations of the N samples, so no
    sample is dropped and each is used equally often. Rank r of W takes every W-th of them from r.

    Arguments:
        size: The number N of samples.
        batch_size: The global batch size B.
        steps: The range of steps.
        key: What the permutations depend on.
        rank: This process's rank and the number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        steps: range,
        key: Sequence[int | str],
        rank: tuple[int, int] = (0, 1),
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.steps = steps
        self.key = key
        self.rank, self.world_size = rank

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        number, permutation = -1, torch.empty(0)
        for step in self.steps:
            batch: list[int] = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.size != number:
                    number = position // self.size
                    permutation = torch.randperm(self.size, generator=generator(*self.key, number))
                batch.append(int(permutation[position % self.size]))
            yield batch[self.rank :: self.world_size]


class CleanImages(Dataset[Batch]):
    """The truth in place of the reconstructions, for the supervised upper bound."""

    def __init__(self, x: Tensor, round: int) -> None:
        self.x = x
        self.round = round

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the images at the indices."""
        index = torch.as_tensor(indices)
        return Batch(self.x[index], self.round, index)


class ReconstructionDataModule(LightningDataModule):
    """Serves the reconstructions of the current round as batches of the M-step.

    Arguments:
        observed: The training measurements.
        store: The rounds on disk.
        settings: The EM loop's batch size and epoch length.
        steps: The number of optimiser steps of one M-step.
        seed: The run's seed.

    Attributes:
        round: The round k whose reconstructions D_k are served; -1 before round 0 exists.
        epoch: The Lightning epochs of this round that are over.
        due: Whether the next round's E-step is due: the weights are ready, the round is not whole.
        supervised: Whether to serve the truth instead (the upper bound).
    """

    def __init__(
        self,
        observed: MeasurementSet,
        store: ReconstructionStore,
        settings: EMSettings,
        *,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.observed = observed
        self.store = store
        self.batch_size = settings.batch_size
        self.steps = steps
        self.steps_per_epoch = min(steps, settings.steps_per_epoch)
        self.seed = seed
        self.round = -1
        self.epoch = 0
        self.due = True
        self.supervised = False

    @property
    def epochs(self) -> int:
        """The number of Lightning epochs of one round."""
        return -(-self.steps // self.steps_per_epoch)

    def sample(self) -> Tensor | None:
        """Returns reconstructions of the current round, (n, *shape), n <= 4,096; None if none."""
        if self.round < 0:
            return None
        return self.store.open(self.round).__getitems__(range(min(SAMPLE, len(self.observed)))).x

    def setup(self, stage: str) -> None:
        """Checks that the devices share a batch evenly."""
        assert self.trainer is not None
        if self.batch_size % self.trainer.world_size:
            raise UserError(
                f"em.batch_size must be a multiple of the number of devices, "
                f"{self.trainer.world_size}, got {self.batch_size}"
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the loader of this epoch of this round."""
        assert self.trainer is not None
        rank = self.trainer.global_rank, self.trainer.world_size
        start = self.epoch * self.steps_per_epoch
        sampler = StepSampler(
            len(self.observed),
            self.batch_size,
            steps=range(start, min(self.steps, start + self.steps_per_epoch)),
            key=(self.seed, "order", self.round),
            rank=rank,
        )
        data = (
            CleanImages(self.observed.truth, self.round)
            if self.supervised
            else self.store.open(self.round)
        )
        return DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the loop is, from which all else follows."""
        return {"round": self.round, "epoch": self.epoch, "due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores where the loop is."""
        self.round, self.epoch = state_dict["round"], state_dict["epoch"]
        self.due = state_dict["due"]
