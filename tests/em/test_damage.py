"""Whatever happens to a file of a run, what goes on is what was saved, or says why it does not."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffem.runtime.errors import UserError
from diffem.storage.checkpoint import load_checkpoint, resumable, save_checkpoint
from diffem.storage.reconstructions import ReconstructionStore, assign_chunks

ROUNDS = 3
# (round, due) of each checkpoint in the order of saving.
SAVED = [(0, 0), (0, 1), (1, 0), (1, 0), (1, 1), (2, 0), (2, 0), (2, 1)]
NEWEST = len(SAVED) - 1
LEVELS = [{"noise": 0.125}]


class World:
    """A run that was killed in the E-step of round 3: its store, its checkpoints, the truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.ckpt"
        # A store for each process: what one has read through, the next has not.
        self.store = ReconstructionStore(path / "r", size=10, chunk_size=4)

    def truth(self, round: int) -> torch.Tensor:
        return torch.randn(10, 5, generator=torch.Generator().manual_seed(round))

    def saved(self, i: int) -> dict[str, Any]:
        round, due = SAVED[i]
        where = {"round": round, "e_step_pending": due, "step": i}
        weights = torch.randn(30, generator=torch.Generator().manual_seed(100 + i))
        bound = self.store.binding(round)
        return {"em_state": where, "state_dict": {"w": weights}, "run": bound}

    def make(self) -> "World":
        for k in range(ROUNDS):
            self.e_step(k)
        self.store.begin(ROUNDS, f"w{ROUNDS}", "a")
        self.store.write_channel(ROUNDS, LEVELS)
        for chunk in (0, 1):
            self.store.write(ROUNDS, chunk, self.truth(ROUNDS)[self.store.rows(chunk)])
        for i in range(len(SAVED)):
            name = "last.e_step.ckpt" if SAVED[i][1] else "last.ckpt"
            save_checkpoint(self.saved(i), self.last.with_name(name))
        return self

    def e_step(self, round: int) -> int:
        """Makes a round as the loop does; returns the number of chunks that were made."""
        store, made = self.store, 0
        store.begin(round, f"w{round}", "a")
        if store.channel(round) is None:
            store.write_channel(round, LEVELS)
        for chunk in assign_chunks(store, round, "a", rank=(0, 1)):
            store.write(round, chunk, self.truth(round)[store.rows(chunk)])
            made += 1
        return made

    def go_on(self) -> tuple[int, list[int]]:
        """Goes on to the end of the run; returns the checkpoint, and the chunks made a round."""
        start = resumable(self.last, self.store.intact_digest)
        i, round = -1, -1
        if start is not None:
            checkpoint = load_checkpoint(start)
            i = checkpoint["em_state"]["step"]
            round, expected = SAVED[i][0], self.saved(i)
            assert checkpoint["em_state"] == expected["em_state"]
            assert torch.equal(checkpoint["state_dict"]["w"], expected["state_dict"]["w"])
        made = [0] * (ROUNDS + 1)
        for k in range(max(round, 0), ROUNDS + 1):
            if k > round:
                made[k] = self.e_step(k)
            opened = self.store.open(k).__getitems__(range(10)).x
            assert torch.equal(opened, self.truth(k))
            assert self.store.channel(k) == LEVELS
        return i, made


PATTERNS = ("**/*.npy", "**/*.sha256", "**/*.json", "**/*.ckpt", "**/SHA256SUMS*")


def hurt(path: Path, draw: random.Random) -> tuple[Path, str]:
    """Damages a file of a run; returns it and how."""
    pattern = draw.choice(PATTERNS)
    file = draw.choice(sorted(p for p in path.glob(pattern) if p.stat().st_size))
    data = bytearray(file.read_bytes())
    how = draw.choice(["flipped", "truncated", "emptied"])
    if how == "flipped":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data if how == "flipped" else data[: draw.randrange(len(data))])
    if how == "emptied":
        file.write_bytes(b"")
    return file, how


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)  # what a power cut leaves is not asked here
        yield World(tmp_path_factory.mktemp("world") / "w").make()


def test_undamaged_it_goes_on_from_the_newest(world: World, tmp_path: Path) -> None:
    assert World(shutil.copytree(world.path, tmp_path / "w")).go_on() == (NEWEST, [0, 0, 0, 1])


@pytest.mark.parametrize(("count", "files"), [(200, 1), (60, 3)])
def test_no_damage_is_used_unseen(
    count: int, files: int, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file at a time, the run always goes on; three at a time, it may say that it cannot.

    `go_on` holds every checkpoint and every round that is used to what was saved.
    """
    draw, outcomes = random.Random(files), Counter[str]()
    for n in range(count):
        copy = World(shutil.copytree(world.path, tmp_path / str(n)))
        hurts = dict(hurt(copy.path, draw) for _ in range(files))
        capsys.readouterr()
        try:
            i, made = copy.go_on()
        except UserError:
            assert files > 1
            outcomes["a sentence"] += 1
            continue
        told = capsys.readouterr().err
        assert all(f"{file} is damaged" in told for file in hurts if file.suffix == ".ckpt")
        if i < NEWEST:
            outcomes["an earlier checkpoint" if i >= 0 else "the init"] += 1
        elif made != [0, 0, 0, 1]:
            outcomes["a chunk made again"] += 1
        else:
            outcomes["not needed, or kept twice"] += 1
        shutil.rmtree(copy.path)
    print(count, files, dict(outcomes))
    assert outcomes["an earlier checkpoint"] > count / 10
    assert outcomes["a chunk made again"] > count / 20
