"""Law 6: a round is complete or absent."""

import json
import math
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_here

from diffem.runtime.errors import UserError
from diffem.storage.atomic import read_record, write_record
from diffem.storage.identity import RunIdentity, bind
from diffem.storage.reconstructions import ReconstructionStore

OWN = RunIdentity("config", "data")
OTHERS = (RunIdentity("another", "data"), RunIdentity("config", "another"))


@pytest.fixture
def store(tmp_path: Path) -> ReconstructionStore:
    return ReconstructionStore(tmp_path / "r", size=10, chunk_size=4, identity=OWN)


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
    assert manifest["weights_sha256"] == "weights"
    assert (manifest["config_sha256"], manifest["data_sha256"]) == OWN
    assert manifest["previous_sha256"] is None
    assert sorted(manifest["chunks"]) == [f"chunk_{c:05d}.npy" for c in range(3)]
    digest = store.digest(0)
    write_all(store, 1, x + 1e-6)
    store.commit(1, "weights")
    assert store.digest(1) != digest
    assert json.loads((store.folder(1) / "manifest.json").read_text())["previous_sha256"] == digest


@pytest.mark.parametrize("key", ["previous_sha256", "channel", "chunks"])
def test_a_manifest_of_an_earlier_state_of_diffem_is_no_traceback(
    key: str, store: ReconstructionStore, x: torch.Tensor
) -> None:
    """`evaluate`, `export` and `erase` ended in a KeyError."""
    for k in (0, 1):
        write_all(store, k, x)
        store.commit(k, "w")
    file = store.folder(1) / "manifest.json"
    held = read_record(file) or {}
    write_record(file, {name: value for name, value in held.items() if name != key})
    again = ReconstructionStore(store.path, size=10, chunk_size=4, identity=OWN)
    assert again.damaged(1) == file and not again.is_intact(1)


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
    store.folder(7).mkdir()  # of a kill while it was removed (issue 11, B10)
    backup = store.path / "round_007_backup"  # by a user (issue 11, B10)
    backup.mkdir()
    store.prune(2, newest=10)
    assert [k for k in (8, 9, 10) if store.committed(k)] == [9, 10]
    assert not store.folder(8).exists() and store.missing(11) == [1, 2]
    assert not store.folder(7).exists() and backup.exists()
    store.begin(11, "others")
    store.check_own()
    assert backup.exists()


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
        ReconstructionStore(store.path, size=10, chunk_size=4, identity=OWN).open(1)


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


@contextmanager
def open_files(most: int) -> Iterator[None]:
    """Opens a scope in which this process may have so many files open, as under `ulimit -n`."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_round_of_a_thousand_chunks_needs_few_files_open(tmp_path: Path) -> None:
    """Issue 11, B 2: two rounds at once with 32 more files; each batch has every chunk."""
    x = torch.randn(1999, 3)
    store = ReconstructionStore(tmp_path / "r", size=1999, chunk_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        for k in (0, 1):
            write_all(store, k, x + k)
            store.commit(k, "w")
    held = len(os.listdir("/proc/self/fd"))
    order = torch.randperm(1999).tolist()
    with open_files(held + 32):
        rounds = [store.open(k) for k in (0, 1)]
        for k, data in enumerate(rounds):
            assert torch.equal(data.__getitems__(order).x, (x + k)[order])
            assert torch.equal(data.__getitems__(range(1999)).x, x + k)
    assert len(os.listdir("/proc/self/fd")) == held


def test_rows_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    """Runs of rows that are longer than a call of the kernel takes; one row, none, twice one."""
    x = torch.randn(3000, 5)
    store = ReconstructionStore(tmp_path / "r", size=3000, chunk_size=2500)
    write_all(store, 0, x)
    store.commit(0, "w")
    data = store.open(0)
    draw = np.random.default_rng(0)
    many = draw.integers(0, 3000, 4000).tolist()
    for indices in ([], [2999], [7, 7, 2500, 7], many, [*range(3000)]):
        assert torch.equal(data.__getitems__(indices).x, x[torch.tensor(indices).long()])
    transposed = torch.randn(5, 3000).T  # F-contiguous
    write_all(store, 1, transposed)
    store.commit(1, "w")
    assert torch.equal(store.open(1).__getitems__(range(3000)).x, transposed)


@pytest.mark.parametrize("left", [None, 0, 100, 200])
def test_a_chunk_that_is_cut_while_it_is_read_is_a_sentence(
    store: ReconstructionStore, x: torch.Tensor, left: int | None
) -> None:
    """Of a map it would be SIGBUS."""
    write_all(store, 1, x)
    store.commit(1, "w")
    data = store.open(1)
    chunk = store.folder(1) / "chunk_00001.npy"
    chunk.unlink() if left is None else chunk.write_bytes(chunk.read_bytes()[:left])
    with pytest.raises(UserError, match=r"chunk_00001\.npy (has another size|cannot be)"):
        data.__getitems__([0, 5])


# Issue 11, B 5: foreign pieces.


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("file", ["manifest.json", "weights.json", "channel.json"])
def test_a_round_of_another_run_is_refused(
    store: ReconstructionStore, x: torch.Tensor, other: RunIdentity, file: str, tmp_path: Path
) -> None:
    """The manifest, what opened the round, and the channel's record, of another run."""
    foreign = ReconstructionStore(tmp_path / "f", size=10, chunk_size=4, identity=other)
    for each in (store, foreign):
        each.begin(1, "w")
        each.write_channel(1, [{"noise": 0.1}])
        write_all(each, 1, x)
        each.commit(1, "w")
    store.check_own()
    shutil.copy(foreign.folder(1) / file, store.folder(1) / file)
    with pytest.raises(UserError, match=rf"{file} is of another run") as error:
        store.check_own()
    assert "\n" not in str(error.value)
    again = ReconstructionStore(store.path, size=10, chunk_size=4, identity=OWN)
    assert again.is_intact(1) == (file == "weights.json")
    assert again.channel(1) == (None if file == "channel.json" else [{"noise": 0.1}])


def test_a_channel_that_other_weights_learned_is_learned_again(store: ReconstructionStore) -> None:
    store.begin(1, "a")
    store.write_channel(1, [{"noise": 0.1}])
    held = (store.folder(1) / "channel.json").read_bytes()
    store.begin(1, "b")
    (store.folder(1) / "channel.json").write_bytes(held)
    assert store.channel(1) is None
    store.begin(1, "b")
    assert not (store.folder(1) / "channel.json").exists()


def test_a_round_that_follows_from_another_is_not_intact(
    store: ReconstructionStore, x: torch.Tensor
) -> None:
    for k in (0, 1):
        write_all(store, k, x)
        store.commit(k, "w")
    write_all(store, 0, x + 1)
    store.commit(0, "w")
    again = ReconstructionStore(store.path, size=10, chunk_size=4, identity=OWN)
    assert again.is_intact(0) and not again.is_intact(1)


def test_a_run_is_bound_to_its_settings_and_its_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bind(tmp_path, OWN, threads=1)
    held = (tmp_path / "run.json").read_bytes()
    bind(tmp_path, OWN, threads=1)
    for other, words in zip(OTHERS, ("of another run", "not those that the run"), strict=True):
        with pytest.raises(UserError, match=words) as error:
            bind(tmp_path, other, threads=1)
        assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""
    assert (tmp_path / "run.json").read_bytes() == held


def test_another_number_of_threads_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, B 9."""
    bind(tmp_path, OWN, threads=4)
    bind(tmp_path, OWN, threads=1)
    told = capsys.readouterr().err
    assert "began with 4 threads a process and is resumed with 1" in told
    assert told.count("\n") == 1 and told.startswith("warning: ") and "OMP_NUM_THREADS=4" in told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
def test_a_run_of_a_thousand_chunks_a_round_needs_few_files_open(tmp_path: Path) -> None:
    """Issue 11, B 2: E-steps, M-steps and evaluation under `ulimit -n 256`."""
    with open_files(256):
        run_dir = run_here(tmp_path / "run", "dataset.train=1000", "em.chunk_size=1")
    assert len(list(run_dir.glob("reconstructions/round_001/*.npy"))) == 1000
    assert (run_dir / "summary.json").is_file()
