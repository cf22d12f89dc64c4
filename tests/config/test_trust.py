"""`trust=[PACKAGE]`: what a command line trusts may be built, and nothing else may."""

import sys
from pathlib import Path

import pytest

from diffem.cli.compose import check_arguments, complete, compose_config
from diffem.cli.study import methods_study, read_study
from diffem.config.allow_list import check_targets
from diffem.config.trust import package_folders, trusted_packages
from diffem.runtime.errors import UserError

OWN = ["trust=[ownpackage]", "corruption=own"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the current directory, which fails when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    files = {
        "__init__.py": "raise ImportError('by the test')",
        "conf/corruption/own.yaml": "_target_: ownpackage.channel.Own\ngain: 2.0\n",
        "conf/experiment/mine.yaml": "# @package _global_\ntrust: [ownpackage]\n",
        "conf/method/own_method.yaml": "supervised: false\n",
    }
    for name, text in files.items():
        file = tmp_path / "ownpackage" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "ownpackage"


def test_its_files_are_choices_and_it_is_not_imported(package: Path) -> None:
    cfg = compose_config([*OWN, "corruption.gain=3.0"])
    assert (cfg.corruption._target_, cfg.corruption.gain) == ("ownpackage.channel.Own", 3.0)
    assert cfg.trust == ["ownpackage"] and "ownpackage" not in sys.modules
    with pytest.raises(UserError, match=r"corruption\.gain must be a finite number, got 'a'"):
        compose_config([*OWN, "corruption.gain=a"])


def test_the_search_path_is_extended_once(package: Path) -> None:
    mine = "hydra.searchpath=['file:///my conf']"
    once = complete([*OWN, mine])
    assert once == [*OWN, f"hydra.searchpath=['file:///my conf','file://{package / 'conf'}']"]
    assert complete(once) == once and complete(["seed=1", mine]) == ["seed=1", mine]


def test_what_is_trusted_may_be_built_where_something_is_built(package: Path) -> None:
    own = {"_target_": "ownpackage.Own"}
    check_targets({"corruption": own, "sampler": {"x": own}}, trust=["ownpackage"])
    for config in ({"note": own}, {"sampler": {"_target_": "ownpackages.Own"}}):
        with pytest.raises(UserError, match="is not allowed"):
            check_targets(config, trust=["ownpackage"])


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        (
            "ownpackage.Own",
            "; if ownpackage is a package that you trust, add trust=[ownpackage] (to sample and "
            "generate: --trust ownpackage)",
        ),
        ("subprocess.run", ""),
        ("torch.load", ""),
        ("diffem.cli.main.main", ""),
        ("absent.Own", ""),
        ("${oc.env:HOME}", ""),
    ],
)
def test_advice_is_given_where_it_helps(target: str, advice: str, package: Path) -> None:
    with pytest.raises(UserError) as refused:
        check_targets({"corruption": {"_target_": target}})
    assert str(refused.value).endswith(f"diffem.corruption.Weighting{advice}")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trust=ownpackage", "trust must be a list of packages without dots, as in trust=[mypa"),
        ("trust=[ownpackage.channel]", "got 'trust=[ownpackage.channel]'"),
        ("trust=null", "trust must be a list"),
        ("~trust", "trust must be a list"),
        ("trust=[absent]", "trust=[absent]: no such package is installed or in the current dir"),
        ("trust=[os]", "trust=[os] is part of Python; give a package of your own"),
    ],
)
def test_mistakes(override: str, sentence: str, package: Path) -> None:
    with pytest.raises(UserError) as refused:
        compose_config([override])
    assert sentence in str(refused.value)


def test_a_file_cannot_trust(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = f"hydra.searchpath=['file://{package / 'conf'}']"
    with pytest.raises(UserError, match=r"trust=\['ownpackage'\] is in a file, and taken from"):
        check_arguments([searched, "experiment=mine"])
    (package / "s.yaml").write_text("rows: {a: ['trust=[ownpackage]']}")
    monkeypatch.setattr("diffem.cli.study.STUDIES", package)
    with pytest.raises(UserError, match=r"rows\.a has trust, which is taken from the command"):
        read_study("s")


def test_a_choice_does_not_hide_behind_one_of_diffem(package: Path) -> None:
    (package / "conf" / "corruption" / "mask.yaml").write_text("_target_: ownpackage.Mask\n")
    with pytest.raises(UserError, match=r"mask\.yaml has the name of .*mask\.yaml; give it anoth"):
        compose_config(OWN)


def test_its_methods_are_compared(package: Path) -> None:
    assert list(methods_study(["diffem", "own_method"], OWN).rows) == ["diffem", "own_method"]
    with pytest.raises(UserError, match="got own_method"):
        methods_study(["own_method"])


@pytest.mark.parametrize("name", ["../own", "", "own package", ".own", "/"])
def test_what_is_no_name_is_no_package(name: str) -> None:
    with pytest.raises(UserError, match="no such package is installed"):
        package_folders([name])


def test_the_last_word_counts() -> None:
    assert trusted_packages(["trust=[a]", "seed=1", "trust=[b,b,c]"]) == ["b", "c"]
    assert trusted_packages(["seed=1"]) == [] and package_folders([]) == []
