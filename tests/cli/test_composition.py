"""A configuration is composed once, and is checked as it is."""

from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.errors import HydraException

from diffem.cli.compose import compose_config, compose_run


def test_a_run_is_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing takes most of the seconds before a run begins."""
    given = ["corruption=blur", "em.rounds=3"]
    compose_run(given, tmp_path)  # what the chosen files say is composed beside it, and kept
    composed = []

    def compose(name: str, overrides: list[str], **others: bool) -> object:
        composed.append(overrides)
        return original(name, overrides, **others)

    original = hydra.compose
    monkeypatch.setattr(hydra, "compose", compose)
    assert compose_run([*given, "seed=7"], tmp_path).seed == 7
    assert composed == [[*given, "seed=7"]]
    assert "hydra" not in compose_config(given)


def test_a_file_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the files takes a third of composing; what Hydra changes of one is a copy."""
    given = ["corruption=blur", "method=em_mmps", "run_dir=runs/one"]
    first = compose_config(given)
    monkeypatch.setattr(FileConfigSource, "load_config", None)
    assert compose_config(given) == first


def test_a_file_of_one_s_own_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    for value, other, wrong in (("1", "2", "a"), ("a", "b", "[c]")):
        file.write_text(f"# @package _global_\nnote: {{x: {value}}}\n")
        given = [f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"]
        assert str(compose_config([*given, f"note.x={other}"]).note.x) == other
        with pytest.raises(ValueError, match=r"note\.x must be a"):
            compose_config([*given, f"note.x={wrong}"])


@pytest.mark.parametrize("override", ["seed=1,2", "seed=choice(1)", "seed=range(1,3)", "-m"])
def test_a_sweep_is_not_one_configuration(override: str) -> None:
    with pytest.raises(HydraException):
        compose_config([override])
