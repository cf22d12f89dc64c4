"""What makes all tests faster, and changes nothing that they look at."""

import gc
import os
from collections.abc import Iterator

import pytest
from warm_python import save_white

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bytes are compared with those of the processor

LONG = (  # files of half a minute, and what would come last
    *("test_any_device", "test_docs", "test_every_number_has_a_range", "test_train"),
    *("test_export", "test_nothing_is_ignored", "test_bad_input", "test_sweep", "test_compare"),
    *("test_ways_in", "test_launch", "test_run_dir", "test_registry_is_harmless"),
    *("test_extending", "test_notebooks", "test_trust_study", "test_unseen", "test_wheel"),
    *("test_structure", "test_sequences", "test_bench", "test_invariants", "test_result"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first: one that is begun last leaves the other process idle."""
    items.sort(
        key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
    )


@pytest.fixture(autouse=True, scope="session")
def fewer_collections() -> Iterator[None]:
    """Looks for garbage less often: what the libraries hold is looked through each time."""
    before = gc.get_threshold()
    gc.set_threshold(10_000, *before[1:])
    yield
    gc.set_threshold(*before)


@pytest.fixture(autouse=True, scope="session")
def no_fsync() -> Iterator[None]:
    """Processes are killed here, and not the machine: what was written is there without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def white_figures() -> Iterator[None]:
    """Draws no figures, where a file's tests do not look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", save_white)
        yield
