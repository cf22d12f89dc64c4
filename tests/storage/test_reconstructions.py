"""Law 6: a round is complete or absent."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffem.runtime.errors import UserError
from diffem.storage.reconstructions import ReconstructionStore


@pytest.fixture
def store(tmp_path: Path) -> ReconstructionStore:
    return ReconstructionStore(tmp_path / "r", size=10, chunk_size=4, config_hash="c")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(10, 1, 3, 3)


def write_all(store: ReconstructionStore, round: int, x: torch.Tensor) -> None:
    for chunk in store.chunks:
        store.write(round, chunk, x[store.rows(chunk)])


def test_chunks_cover_every_row_once(store: ReconstructionStore) -> None:
    rows = [row for chunk in store.chunks for row in range(10)[store.rows(chunk)]]
    assert rows == list(range(10))
    assert [len(range(10)[store.rows(c)]) for c in store.chunks] == [4, 4, 2]


def test_a_round_exists_once_it_is_committed(store: ReconstructionStore, x: torch.Tensor) -> None:
    assert store.missing(1) == [0, 1, 2]
    store.write(1, 1, x[4:8])
    assert store.missing(1) == [0, 2]
    with pytest.raises(ValueError, match=r"chunks \[0, 2\] are missing"):
        store.commit(1, "w")
    with pytest.raises(UserError, match="not a finished round"):
        store.open(1)
    write_all(store, 1, x)
    assert not store.committed(1)
    store.commit(1, "w")
    assert store.committed(1) and not store.committed(2)


def test_batches_are_fetched_in_order(store: ReconstructionStore, x: torch.Tensor) -> None:
    write_all(store, 3, x)
    store.commit(3, "w")
    data = store.open(3)
    batch = data.__getitems__([9, 0, 4, 4, 7])
    assert len(data) == 10 and batch.round == 3
    assert torch.equal(batch.x, x[[9, 0, 4, 4, 7]])


def test_manifest_holds_checksums_and_hashes(store: ReconstructionStore, x: torch.Tensor) -> None:
    write_all(store, 0, x)
    store.commit(0, "weights")
    manifest = json.loads((store.folder(0) / "manifest.json").read_text())
    assert manifest["weights_sha256"] == "weights" and manifest["config_sha256"] == "c"
    assert sorted(manifest["chunks"]) == [f"chunk_{c:05d}.npy" for c in range(3)]
    digest = store.digest(0)
    write_all(store, 1, x + 1e-6)
    store.commit(1, "weights")
    assert store.digest(1) != digest


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_never_get_in(
    store: ReconstructionStore, x: torch.Tensor, value: float
) -> None:
    x[5, 0, 1, 1] = value
    with pytest.raises(FloatingPointError, match="round 1, chunk 1"):
        store.write(1, 1, x[4:8])
    assert store.missing(1) == [0, 1, 2]


def test_a_chunk_of_another_length_is_refused(store: ReconstructionStore, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="has 4 rows, got 3"):
        store.write(1, 0, x[:3])


def test_a_failed_write_leaves_the_old_chunk(
    store: ReconstructionStore, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(1, 0, x[:4])

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("diffem.storage.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        store.write(1, 0, x[4:8])
    np.testing.assert_array_equal(np.load(store.folder(1) / "chunk_00000.npy"), x[:4].numpy())
    assert {p.name for p in store.folder(1).iterdir()} == {"chunk_00000.npy", "chunk_00000.sha256"}


def test_what_other_weights_left_is_removed(store: ReconstructionStore, x: torch.Tensor) -> None:
    for round in (1, 2):
        store.begin(round, "a")
        write_all(store, round, x)
    store.begin(2, "a")
    assert store.missing(2) == [] and store.opened_for(2) == "a"
    store.begin(1, "b")
    assert store.missing(1) == [0, 1, 2] and store.opened_for(1) == "b"
    assert store.opened_for(2) is None and store.missing(2) == [
        0,
        1,
        2,
    ]  # it followed from round 1


def test_old_rounds_are_removed_whole(store: ReconstructionStore, x: torch.Tensor) -> None:
    for round in (8, 9, 10):
        write_all(store, round, x)
        store.commit(round, "w")
    store.write(11, 0, x[:4])  # a round in the making stays
    store.prune(2)
    assert [k for k in (8, 9, 10) if store.committed(k)] == [9, 10]
    assert not store.folder(8).exists() and store.missing(11) == [1, 2]


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_committed_chunk_that_is_damaged_is_refused(
    store: ReconstructionStore, x: torch.Tensor
) -> None:
    write_all(store, 1, x)
    store.commit(1, "w")
    flip(store.folder(1) / "chunk_00001.npy")
    assert store.committed(1) and not store.is_intact(1)
    with pytest.raises(UserError, match=r"chunk_00001\.npy is damaged; start the same command"):
        store.open(1)


def test_a_round_is_read_through_once_a_process(
    store: ReconstructionStore, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in each epoch."""
    write_all(store, 1, x)
    store.commit(1, "w")
    store.open(1)
    monkeypatch.setattr(
        "diffem.storage.reconstructions.matches", lambda *_: pytest.fail("read again")
    )
    store.open(1)


def test_what_is_damaged_when_a_round_is_begun_again_is_made_again(
    store: ReconstructionStore, x: torch.Tensor
) -> None:
    store.begin(1, "w")
    write_all(store, 1, x)
    store.commit(1, "w")
    store.begin(1, "w")
    assert store.committed(1) and store.missing(1) == []
    flip(store.folder(1) / "chunk_00001.npy")
    store.begin(1, "w")
    assert not store.committed(1) and store.missing(1) == [1]
    flip(store.folder(1) / "chunk_00002.sha256")
    store.begin(1, "w")
    assert store.missing(1) == [1, 2]
    assert torch.equal(torch.from_numpy(np.load(store.folder(1) / "chunk_00000.npy")), x[:4])


@pytest.mark.parametrize("text", ["", "{", "[]", '"w"', '{"sha256": 1}', "\x00" * 9])
def test_records_that_are_damaged_are_as_good_as_absent(
    text: str, store: ReconstructionStore, x: torch.Tensor
) -> None:
    store.begin(1, "w")
    store.write_channel(1, [{"noise": 0.1}])
    write_all(store, 1, x)
    store.commit(1, "w")
    assert store.is_intact(1) and store.channel(1) == [{"noise": 0.1}]
    for name in ("manifest.json", "weights.json", "channel.json"):
        (store.folder(1) / name).write_text(text)
    assert not store.committed(1) and store.opened_for(1) is None and store.channel(1) is None
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        ReconstructionStore(store.path, size=10, chunk_size=4, config_hash="c").open(1)


def test_levels_that_are_damaged_are_not_committed(
    store: ReconstructionStore, x: torch.Tensor
) -> None:
    store.begin(1, "w")
    store.write_channel(1, [{"noise": 0.1}])
    write_all(store, 1, x)
    flip(store.folder(1) / "channel.json")
    with pytest.raises(UserError, match=r"channel\.json is damaged"):
        store.commit(1, "w")
    store.begin(1, "w")
    assert not (store.folder(1) / "channel.json").exists()
