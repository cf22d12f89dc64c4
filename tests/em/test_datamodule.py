"""Batches are a function of the step alone, and use every sample equally often."""

from collections import Counter

import pytest
import torch

from diffem.em import EMSettings
from diffem.em.datamodule import StepSampler
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator


def batches(steps: range, **kwargs: object) -> list[list[int]]:
    return list(StepSampler(10, 4, steps=steps, key=(0, "order", 1), **kwargs))  # type: ignore[arg-type]


def test_every_sample_is_used_equally_often() -> None:
    count = Counter(i for batch in batches(range(5)) for i in batch)  # 20 draws of 10 samples
    assert count == Counter({i: 2 for i in range(10)})


def test_batches_depend_on_the_step_alone() -> None:
    whole = batches(range(7))
    assert batches(range(3, 7)) == whole[3:]
    assert whole != list(StepSampler(10, 4, steps=range(7), key=(0, "order", 2)))


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (12, 4), (3, 8), (1, 2), (7, 7)])
def test_batches_are_read_off_the_stream_of_permutations(size: int, batch_size: int) -> None:
    key, steps = (0, "order", 1), range(2, 9)
    length = steps.stop * batch_size
    stream = [
        int(row)
        for number in range(-(-length // size))
        for row in torch.randperm(size, generator=generator(*key, number))
    ]
    assert list(StepSampler(size, batch_size, steps=steps, key=key)) == [
        stream[step * batch_size : (step + 1) * batch_size] for step in steps
    ]


def test_ranks_share_each_batch_out() -> None:
    whole = batches(range(4))
    shares = [batches(range(4), rank=(r, 2)) for r in range(2)]
    for step, batch in enumerate(whole):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(batch)


def settings(**changes: object) -> EMSettings:
    values: dict[str, object] = {
        "rounds": 2,
        "steps_per_round": 5,
        "epochs_per_round": None,
        "steps_per_epoch": 3,
        "batch_size": 4,
        "chunk_size": 8,
    }
    return EMSettings(**(values | changes))  # type: ignore[arg-type]


def test_epochs_count_passes_over_the_reconstructions() -> None:
    assert settings().steps(10) == 5
    assert settings(steps_per_round=None, epochs_per_round=3).steps(10) == 9  # 3 × ⌈10 / 4⌉


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rounds": 0}, "em.rounds must be a whole number of at least 1, got 0"),
        ({"rounds": "many"}, "got 'many'"),
        ({"steps_per_round": None}, "give one of em.steps_per_round and em.epochs_per_round"),
        ({"epochs_per_round": 2}, "got 5 and 2"),
        ({"batch_size": -1}, "em.batch_size"),
        ({"chunk_size": 1.5}, "em.chunk_size"),
        ({"seconds": 0}, "em.seconds must be a positive number, got 0"),
    ],
)
def test_bad_settings(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings(**changes)
