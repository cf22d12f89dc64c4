"""Paths with any character reach the configuration as they are."""

import random
from pathlib import Path

import pytest
from command import NASTY
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from diffem.cli.compose import compose_config
from diffem.config.paths import given_path, path_override, quote_paths, quoted, unquoted
from diffem.storage.run_dir import resumed_arguments

CHARACTERS = "aZ_19é→#=()[]{},:;'\"\\%~-$!&*?|<>@+./ \t\n"
WORDS = (
    "null",
    "Null",
    "true",
    "1",
    "-1",
    "1e5",
    ".5",
    "inf",
    "NaN",
    "_",
    "../x",
    "-x",
    "~",
    "''",
)


def parsed(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def test_hydra_reads_what_was_quoted() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 6))) for _ in range(2000)]
    for text in (*texts, *WORDS, NASTY):
        assert parsed(path_override("run_dir", text)) == text
        assert unquoted(quoted(text)) == text
        assert unquoted(f'"{text}"') == text or '"' in text or "\\" in text


def test_what_needs_no_quotes_has_none() -> None:
    given = ["/data/Set-1_b/x.npz", "runs/mine", "./a.b", "../c@2+3"]
    assert [quoted(text) for text in given] == given


@pytest.mark.parametrize(
    "key",
    [
        *("run_dir", "resume", "init.path", "+dataset.path", "++metric.features.0.weights"),
        *("corruption.kernel", "corruption.parts.0.kernel", "corruption.coils"),
        *("corruption.masks", "dataset.groups"),
    ],
)
def test_a_key_that_holds_a_path(key: str) -> None:
    (override,) = quote_paths([f"{key}={NASTY}"])
    assert override.startswith(f"{key}='") and parsed(override) == NASTY
    assert quote_paths([override]) == [override]  # once is enough


@pytest.mark.parametrize(
    "argument",
    [
        "dataset.path='a,b'",
        'run_dir="a b"',
        "metric.features.0.weights=null",
        "resume=auto",
        "corruption.rho=[0.1,0.2]",
        "corruption.coils=4",
        "corruption.kernel=[[1,2],[3,4.5e-3]]",
        f"corruption.kernel=[{','.join('1' * 4096)}]",  # no name of a file is as long
        "dataset.groups=null",
        "network.channels=[16]",
        "~init.path",
        "-m",
        "run_dir=",
    ],
)
def test_what_stays(argument: str) -> None:
    assert quote_paths([argument]) == [argument]


def test_a_sweep_over_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both,of them").mkdir()
    given = {
        "dataset.path=é 1,plain,'c,d'": "dataset.path='é 1',plain,'c,d'",
        "dataset.path=both,of them": "dataset.path='both,of them'",
        "init.path=choice(a,b)": "init.path=choice(a,b)",
        "run_dir=a,b": "run_dir='a,b'",
        "corruption.coils=2,é,4": "corruption.coils=2,'é',4",
        "corruption.kernel=[[1,2]],[[3]]": "corruption.kernel=[[1,2]],[[3]]",
    }
    assert quote_paths(given, sweep=True) == list(given.values())
    assert quote_paths(["dataset.path=a,b"]) == ["dataset.path='a,b'"]


def test_a_file_whose_name_is_a_number_or_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("4", "[1]"):
        (tmp_path / name).touch()
        assert quote_paths([f"corruption.kernel={name}"]) == [f"corruption.kernel='{name}'"]
        assert given_path(f"corruption.kernel={name}") == name
    (tmp_path / "8").mkdir()  # as a sweep numbers its jobs
    assert quote_paths(["corruption.coils=8"]) == ["corruption.coils=8"]
    assert given_path("corruption.kernel=5") is None
    assert given_path(f"corruption.kernel={NASTY}") == NASTY
    assert given_path("corruption.rho=0.5") is None and given_path("dataset.groups=null") is None


def test_home_and_interpolations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/é")
    assert quote_paths(["dataset.path=~/x"]) == ["dataset.path='/home/é/x'"]
    cfg = compose_config(["run_dir=runs (${seed}) é", "seed=3"])
    assert cfg.run_dir == "runs (3) é"


def test_a_resumed_run_is_found_and_its_paths_are_read_again(tmp_path: Path) -> None:
    run_dir = tmp_path / NASTY
    (run_dir / ".hydra").mkdir(parents=True)
    OmegaConf.save(quote_paths([f"dataset.path={NASTY}"]), run_dir / ".hydra" / "overrides.yaml")
    for argument in (f"resume={run_dir}", *quote_paths([f"resume={run_dir}"])):
        path, there, how = resumed_arguments([argument])
        assert parsed(path) == NASTY and path.startswith("dataset.path=")
        assert parsed(there) == str(run_dir) and how == "resume=auto"
