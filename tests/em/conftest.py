"""A small EM run as a fixture."""

from pathlib import Path

import pytest
from small_run import SmallRun


@pytest.fixture
def small_run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path / "reconstructions")
