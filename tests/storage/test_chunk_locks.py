"""Ranks take the chunks of an E-step: each chunk once, and a slow rank fewer of them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diffem.storage.reconstructions import ChunkLocks, ReconstructionStore, assign_chunks

SIZE, CHUNK = 45, 2


def open_store(path: Path) -> ReconstructionStore:
    return ReconstructionStore(path, size=SIZE, chunk_size=CHUNK)


def make(store: ReconstructionStore, chunk: int) -> None:
    x = torch.arange(SIZE).float().view(-1, 1)
    store.write(0, chunk, x[store.rows(chunk)])


def process(
    path: Path,
    rank: int,
    ranks: int,
    before: Callable[[int], None] = lambda chunk: None,
    attempt: str = "now",
) -> list[int]:
    """Does what a process does in an E-step and returns the chunks that it made."""
    store, made = open_store(path), []
    store.begin(0, "w", attempt, first=rank == 0)
    for chunk in assign_chunks(store, 0, attempt, rank=(rank, ranks)):
        before(chunk)
        make(store, chunk)
        made.append(chunk)
    assert store.is_intact(0)
    return made


@pytest.fixture
def alone(tmp_path: Path) -> str:
    assert process(tmp_path / "alone", 0, 1) == list(range(23))
    return open_store(tmp_path / "alone").digest(0) or ""


def together(path: Path, ranks: int, before: Callable[[int, int], None]) -> list[list[int]]:
    with ThreadPoolExecutor(ranks) as pool:
        jobs = [
            pool.submit(process, path, rank, ranks, lambda chunk, rank=rank: before(rank, chunk))
            for rank in range(ranks)
        ]
        return [job.result(timeout=60) for job in jobs]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_process_makes_fewer_chunks(slow: int, alone: str, tmp_path: Path) -> None:
    made = together(tmp_path / "r", 3, lambda rank, _: time.sleep(0.2 if rank == slow else 0.005))
    assert sorted(chunk for one in made for chunk in one) == list(range(23))
    # The others make 8 chunks each, and the slow one's 7, in a fraction of a second.
    assert len(made[slow]) <= 4
    assert open_store(tmp_path / "r").digest(0) == alone
    assert not list((tmp_path / "r" / "round_000").glob("locks_*"))


def first_late(path: Path) -> list[int]:
    """Returns the chunks that two processes make, the second of which is there long before."""

    def late(rank: int) -> list[int]:
        time.sleep(0.3 * (rank == 0))
        return process(path, rank, 2, attempt="again")

    with ThreadPoolExecutor(2) as pool:
        made = pool.map(late, range(2), timeout=60)
        return [chunk for one in made for chunk in one]


def test_locks_of_killed_processes_hold_nothing_up(alone: str, tmp_path: Path) -> None:
    """An attempt that was killed left two chunks, a round opened for the same weights, locks."""
    store = open_store(tmp_path / "r")
    store.begin(0, "w", "before")
    dead = ChunkLocks(store.folder(0), "before")
    dead.open()
    for chunk in (0, 3, 5):
        assert dead.take(chunk) and not dead.take(chunk)
    make(store, 0)
    make(store, 3)

    assert sorted(first_late(tmp_path / "r")) == [1, 2, *range(4, 23)]
    assert store.digest(0) == alone
    assert not dead.take(7)


def test_a_round_that_was_damaged_is_waited_for(alone: str, tmp_path: Path) -> None:
    """It has a commit, so that a process which did not wait would take it for done."""
    path = tmp_path / "r"
    process(path, 0, 1)
    (path / "round_000" / "chunk_00002.npy").write_bytes(b"")
    assert first_late(path) == [2]
    assert open_store(path).digest(0) == alone


@pytest.mark.parametrize("damage", [b"", None])
def test_a_chunk_damaged_before_the_commit_is_made_again(
    damage: bytes | None, alone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r" / "round_000" / "chunk_00004.npy"

    def before(rank: int, chunk: int) -> None:
        if chunk == 21 and path.exists():
            data = path.read_bytes()
            path.write_bytes(data[:-1] + b"\x01" if damage is None else damage)

    made = together(tmp_path / "r", 1, before)[0]
    assert sorted(made) == sorted([*range(23), 4])
    assert open_store(tmp_path / "r").digest(0) == alone
    told = capsys.readouterr().err
    assert told == f"warning: {path} is damaged; it is drawn again\n"
