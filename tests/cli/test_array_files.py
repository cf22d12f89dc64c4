"""A point spread function, coils or clean images in a file: runs are bound to what it holds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command import NASTY
from in_process import run_here

import diffem
from diffem.cli.compose import OPERATOR, SIMULATED, check_arguments
from diffem.cli.evaluate import evaluate_run
from diffem.config.paths import OR_NUMBERS, quote_paths
from diffem.config.types import TEXTS_TOO
from diffem.corruption import LinearChannel
from diffem.corruption.array_file import KEYS, array_files, carried, read_array
from diffem.corruption.coils import simulated_maps
from diffem.result.candidate import Candidate
from diffem.result.export import export_run
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES

Choices = Callable[[Path], list[str]]
HOLDS = r"a file of m_step\.clean, corruption\.coils, corruption\.kernel or .*masks holds"


def kernel(path: Path) -> list[str]:
    np.save(path, np.ones((3, 3)))
    return ["corruption=point_spread", f"corruption.kernel={path}"]


def coils(path: Path) -> list[str]:
    np.save(path, simulated_maps(3, (8, 8)).numpy())
    return ["corruption=multicoil", "corruption.acceleration=2", f"corruption.coils={path}"]


def masks(path: Path) -> list[str]:
    np.save(path, np.random.default_rng(0).uniform(0, 6, (2, 8, 8)))
    return ["corruption=phase_retrieval", f"corruption.masks={path}"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{NASTY}.npy"


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (kernel, r"corruption\.kernel must be a list, got True"),
        (coils, r"corruption\.coils must be a finite number, got True"),
        (masks, r"corruption\.masks must be a finite number, got True"),
    ],
)
def test_a_value_may_be_the_path_of_a_file(choices: Choices, sentence: str, file: Path) -> None:
    given = choices(file)
    check_arguments(quote_paths(given))
    key = given[-1].partition("=")[0]
    with pytest.raises(UserError, match=sentence):
        check_arguments([*given[:-1], f"{key}=true"])


@pytest.mark.parametrize(
    ("choices", "measured"),
    [
        (kernel, {"y": np.zeros((1, 8, 8))}),
        (coils, {"y": np.zeros((1, 6, 8, 8)), "operator": np.ones((1, 8))}),
        (masks, {"y": np.ones((1, 2, 8, 8))}),
    ],
)
def test_a_finished_run_does_not_need_its_file(
    choices: Choices, measured: dict[str, np.ndarray], file: Path, tmp_path: Path
) -> None:
    run = run_here(tmp_path / "run", *choices(file))
    file.unlink()
    evaluate_run(run, [])
    final, again = (
        json.loads((run / name).read_text())["final"]
        for name in ("summary.json", "evaluation_001.json")
    )
    assert again["psnr"] == final["psnr"]
    result = diffem.load(run, device="cpu")
    assert result.posterior.sample(**measured, n=1).isfinite().all()  # type: ignore[arg-type]
    export_run(run, tmp_path / "exported", reconstructions=None)
    assert "(in the weights)" in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.parametrize(
    ("choices", "other"),
    [
        (kernel, np.eye(3)),
        (coils, simulated_maps(3, (8, 8)).numpy().conj()),
        (masks, np.ones((2, 8, 8))),
    ],
)
def test_a_run_is_not_resumed_with_another_file_under_the_same_name(
    choices: Choices, other: np.ndarray, file: Path, tmp_path: Path
) -> None:
    given = choices(file)
    run = run_here(tmp_path / "run", *given)
    np.save(file, other)
    with pytest.raises(UserError, match=HOLDS):
        run_here(run, *given, "em.rounds=2", "resume=auto")


def test_a_candidate_s_file_may_have_any_name(file: Path, tmp_path: Path) -> None:
    """As `--channel` of `diffem score` names it."""
    run = run_here(tmp_path / "run", *kernel(file), "prior={steps:2}")
    np.save(file, np.eye(3))
    result = diffem.load(run, device="cpu")
    channel = Candidate.of(result, [f"corruption.kernel={file}"]).channel
    assert isinstance(channel, LinearChannel)
    seen = channel.apply(torch.eye(64).reshape(64, 1, 8, 8), torch.empty(64, 0))
    assert (seen[27, 0, 2:5, 2:5] > 0.1).float().equal(torch.eye(3))


def test_a_run_is_not_resumed_with_other_clean_images_under_the_same_name(tmp_path: Path) -> None:
    np.save(tmp_path / "clean.npy", np.zeros((4, 8, 8)))
    clean = f"{{_target_: diffem.em.CleanShare, share: 0.5, path: '{tmp_path / 'clean.npy'}'}}"
    given = ["corruption=blur", f"m_step.clean={clean}"]
    run = run_here(tmp_path / "run", *given)
    np.save(tmp_path / "clean.npy", np.ones((4, 8, 8)))
    with pytest.raises(UserError, match=HOLDS):
        run_here(run, *given, "em.rounds=2", "resume=auto")


def test_a_run_with_a_large_file_is_read_again(file: Path, tmp_path: Path) -> None:
    """Whose text is longer than any other in a configuration may be."""
    np.save(file, simulated_maps(20, (16, 16)).numpy())
    given = ["corruption=multicoil", "corruption.acceleration=2", f"corruption.coils={file}"]
    y = np.random.default_rng(0).standard_normal((8, 40, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "y.npz", y=y, operator=np.ones((8, 16)))
    run = run_here(
        tmp_path / "run",
        *("dataset=measurements", f"dataset.path={tmp_path / 'y.npz'}", *given),
        *("dataset.shape=[2,16,16]", "dataset.range=[-3,3]"),
    )
    x = diffem.load(run, device="cpu").posterior.sample(y[:1], operator=np.ones((1, 16)))
    assert x.shape == (1, 1, 2, 16, 16)


def test_every_list_of_keys_has_those_of_files() -> None:
    assert set(TEXTS_TOO) == set(KEYS) and set(KEYS) <= set(OPERATOR)
    assert {*KEYS, "groups"} == set(OR_NUMBERS)
    numbers = {k.rpartition(".")[2] for k, r in RANGES.items() if "path of a .npy" in r.advice}
    assert set(SIMULATED) == numbers


def test_what_a_file_holds_is_carried_bit_for_bit(file: Path) -> None:
    for values in (np.array([[0.1, 1 / 3]]), simulated_maps(2, (3, 4)).numpy() / 3):
        np.save(file, values)
        node = {"parts": [{"kernel": str(file)}, {"noise": 1}], "coils": 4}
        ((part, key),) = array_files(node)
        part[key] = carried(read_array(key, part[key]))
        file.unlink()
        assert np.array_equal(read_array(key, part[key]), values)
    with pytest.raises(UserError, match=r"corruption\.kernel=\[…\] cannot be read as numbers"):
        read_array("kernel", part[key][:-8])
