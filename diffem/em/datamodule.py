"""The data of the EM loop: the measurements, and the reconstructions D_k of the current round."""

from collections.abc import Iterator, Sequence

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from diffem.data.measurements import MeasurementSet
from diffem.em.budget import EMSettings
from diffem.em.state import EMState
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator
from diffem.storage.reconstructions import Batch, ReconstructionStore

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
        order: The rows that are the samples, (N,); None for 0 … N - 1.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        steps: range,
        key: Sequence[int | str],
        rank: tuple[int, int] = (0, 1),
        order: Tensor | None = None,
    ) -> None:
        self.order = order
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
            while (missing := self.batch_size - len(batch)) > 0:
                place = step * self.batch_size + len(batch)
                if place // self.size != number:
                    number = place // self.size
                    permutation = torch.randperm(self.size, generator=generator(*self.key, number))
                start = place % self.size
                rows = permutation[start : start + missing]
                batch += (rows if self.order is None else self.order[rows]).tolist()
            yield batch[self.rank :: self.world_size]


def check_batch(batch_size: int, devices: int) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
        UserError: If the batch size is no multiple of their number.
    """
    if batch_size % devices:
        raise UserError(
            f"em.batch_size must be a multiple of the number of devices, {devices}, got "
            f"{batch_size}; choose another number of devices, or start again in a new run_dir "
            "with another em.batch_size"
        )


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
        measurements: The training measurements, under the channel as it is configured.
        store: The rounds on disk.
        settings: The EM loop's batch size and epoch length.
        state: Where the loop is; read here, never written.
        seed: The run's seed.
        supervised: Whether to serve the truth instead (the upper bound).

    Attributes:
        given: The measurements as they were given.
        measurements: The measurements under the channel as it is assumed now; the loop replaces
            them where the channel is learned.
    """

    def __init__(
        self,
        measurements: MeasurementSet,
        store: ReconstructionStore,
        settings: EMSettings,
        *,
        state: EMState,
        seed: int,
        supervised: bool = False,
    ) -> None:
        super().__init__()
        self.given = self.measurements = measurements
        self.store = store
        self.settings = settings
        self.batch_size = settings.batch_size
        self.state = state
        self.seed = seed
        self.supervised = supervised

    @property
    def steps(self) -> int:
        """The number of optimiser steps of the current round's M-step."""
        return self.settings.steps(len(self.given), self.state.round)

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimiser steps of a Lightning epoch."""
        return min(self.steps, self.settings.steps_per_epoch)

    @property
    def epochs(self) -> int:
        """The number of Lightning epochs of the current round."""
        return -(-self.steps // self.steps_per_epoch)

    def progress(self, step: int) -> float:
        """Returns the progress in [0, 1] that the learning rate follows.

        Arguments:
            step: The number of optimiser steps since the optimiser was made.
        """
        if self.settings.restart:
            return step / self.steps
        return max(step / self.settings.total_steps(len(self.given)), self.state.progress)

    def sample(self) -> Tensor:
        """Returns reconstructions of the current round, (n, *shape), n <= 4,096."""
        rows = range(min(SAMPLE, len(self.measurements)))
        return self.store.open(self.state.round).__getitems__(rows).x

    def setup(self, stage: str) -> None:
        """Checks that the devices share a batch evenly."""
        assert self.trainer is not None
        check_batch(self.batch_size, self.trainer.world_size)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Moves a batch's reconstructions; its rows index what is on the CPU, and stay there."""
        return batch._replace(x=batch.x.to(device, non_blocking=True))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the loader of this epoch of this round."""
        assert self.trainer is not None
        rank = self.trainer.global_rank, self.trainer.world_size
        start = self.state.epoch * self.steps_per_epoch
        module = self.trainer.lightning_module
        order: Tensor | None = module.m_step.balance.order  # type: ignore[attr-defined]
        sampler = StepSampler(
            len(self.measurements) if order is None else len(order),
            self.batch_size,
            steps=range(start, min(self.steps, start + self.steps_per_epoch)),
            key=(self.seed, "order", self.state.round),
            rank=rank,
            order=order,
        )
        data = (
            CleanImages(self.measurements.known_truth("method.supervised=true"), self.state.round)
            if self.supervised
            else self.store.open(self.state.round)
        )
        return DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)
