"""README and docs say what is so: their commands are accepted, their links and names exist."""

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
import warm_python
import yaml
from command import ROOT, SHORT

import diffem
from diffem.cli.compose import CONF, compose_config
from diffem.cli.main import COMMANDS, MODULES
from diffem.cli.study import read_study
from diffem.corruption import (
    Blur,
    Composition,
    Fourier,
    GaussianNoise,
    LinearChannel,
    LinearOperator,
    Mask,
    MultiCoil,
    make_channel,
)
from diffem.data import MeasurementFiles
from diffem.data.arrays import measurement_of
from diffem.data.files import FileRows
from diffem.data.held import open_measurements
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# The files, choices and commands of docs/extending.md are made by tests/test_extending.py.
KNOWN = [page for page in PAGES if page.name != "extending.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^\n(?:    .*\n)+)", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
ELLIPSIS = "…"


class Parsed(Exception):
    """A command's arguments are accepted; raised so that the command is not run."""


def lines(text: str) -> Iterator[str]:
    """Yields the lines of a page's code blocks, continued ones joined, and its code spans."""
    prose = FENCED.sub("\n", text)
    blocks = [block for _, block in FENCED.findall(text)] + INDENTED.findall(prose)
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()
    yield from spans(text)


def spans(text: str) -> Iterator[str]:
    """Yields the code spans of a page."""
    for span in SPAN.findall(INDENTED.sub("\n", FENCED.sub("\n", text))):
        yield span.replace("\n", " ").replace("\\|", "|")


def command(line: str) -> tuple[str, ...]:
    """Returns `diffem`'s command in a line with its arguments; nothing if there is none."""
    try:
        words = shlex.split(re.sub(r"\$\w+|\$\(\w+\)", "1", line), comments=True)
    except ValueError:  # prose with an apostrophe
        return ()
    words = [word for word in words if word != ELLIPSIS]
    for i, word in enumerate(words):
        if word in ("train.py", "docs/slurm.sbatch"):
            return ("train", *words[i + 1 :])
        if word == "diffem" and words[i + 1 : i + 2] and (i == 0 or words[i - 1] == "-m"):
            return tuple(words[i + 1 :])
    return ()


def commands() -> list[tuple[str, ...]]:
    """Returns the commands of all pages, each once."""
    found = (command(line) for page in KNOWN for line in lines(page.read_text()))
    # `diffem compare` in a sentence names the command, and is not all of it.
    return [words for words in dict.fromkeys(found) if words[:1] == ("train",) or words[1:]]


def parse(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Returns what a command's own parser makes of its arguments."""

    def stop_after(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def parsed(*given: Any) -> None:
            raise Parsed(parse(*given))

        return parsed

    for name in ("parse_args", "parse_intermixed_args"):
        parse_them = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(parse_them))
    monkeypatch.setattr(sys, "argv", ["diffem", *words[1:]])
    module = import_module(f"diffem.cli.{MODULES.get(words[0], words[0])}")
    with pytest.raises(Parsed) as parsed:
        module.main()
    return parsed.value.args[0]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_accepted(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Overrides compose; the other arguments parse, and name studies and methods that exist."""
    assert words[0] in COMMANDS, f"diffem {words[0]} is no command"
    if words[0] == "train":
        if "hydra/sweeper=optuna" in words and not find_spec("optuna"):
            pytest.skip("the extra optuna is not installed")
        flags = [word for word in words[1:] if word in ("-m", "--help")]
        monkeypatch.setattr(sys, "argv", ["diffem", *words[1:]])
        overrides = [word for word in words[1:] if word not in flags]
        if flags:  # a sweep does not compose to one configuration
            check_arguments = import_module("diffem.cli.compose").check_arguments
            check_arguments([*flags, *overrides])
        else:
            compose_config(overrides)
        return
    given = vars(parse(words, monkeypatch))
    common: tuple[str, ...] = ()
    if words[0] == "inspect":  # what it adds to the settings that it is given
        common = ("dataset=measurements", f"dataset.path={words[1]}")
    if given.get("study"):
        common = read_study(given["study"]).common
    for method in given.get("methods") or ["diffem"]:
        compose_config([*common, f"method={method}", *given.get("overrides", ())])


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8")))
    for target in targets:
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(ROOT) and file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", KNOWN, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.])(?:diffem|tests|conf|docs)/[\w./-]*\w/?", page.read_text(encoding="utf-8")
    )
    for name in named:
        assert (ROOT / name).exists(), name


def flatten(node: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of nested mappings and lists, the inner nodes too."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from flatten(value, f"{prefix}{key}.")


@cache
def keys() -> frozenset[str]:
    """Returns the keys that some choice of files has."""
    found = set(flatten(yaml.safe_load((CONF / "train.yaml").read_text())))
    for file in CONF.rglob("*.yaml"):
        parts = file.relative_to(CONF).parts[:-1]
        if parts and parts[0] not in ("experiment", "study"):
            prefix = reference.place(file)
            found.add(prefix)
            found.update(flatten(yaml.safe_load(file.read_text()), f"{prefix}."))
    return frozenset(found)


def check_override(text: str) -> None:
    """Checks that KEY=VALUE names a choice, or a key, that exists."""
    key, _, value = text.lstrip("+").partition("=")
    if key.isupper() or key.startswith(("hydra", "assumed.")) or not value:
        return
    if (CONF / key).is_dir():
        for choice in value.split(","):
            assert choice in ("null", ELLIPSIS) or (CONF / key / f"{choice}.yaml").is_file(), text
        return
    assert key in keys(), f"{text}: no such key"


@pytest.mark.parametrize("page", KNOWN, ids=lambda page: page.stem)
def test_choices_and_keys_that_are_named_exist(page: Path) -> None:
    """Of code spans: `GROUP=CHOICE`, `KEY=VALUE` and `group.key`."""
    for span in spans(page.read_text(encoding="utf-8")):
        words = span.split()
        if all(re.fullmatch(r"\+?[a-z_]+[\w/.]*=\S*", word) for word in words):
            for word in words:
                check_override(word)
        elif re.fullmatch(r"[a-z_]+(\.\w+)*\.(\w+|\*)", span):
            group, name = span.split(".")[0], span.removesuffix(".*")
            if group in keys() - {"hydra"} and not (ROOT / span).exists():
                assert name in keys(), f"{span}: no such key"


def test_pages_list_all_choices_and_extras() -> None:
    pages = {"method": "methods", "study": "compare", "metric": "metrics"}
    for file in CONF.rglob("*/*.yaml"):
        group = file.relative_to(CONF).parts[0]
        page = pages.get(group, "choices") if file.stem != "default" else "choices"
        text = (ROOT / "docs" / f"{page}.md").read_text()
        assert f"`{file.stem}`" in text, f"docs/{page}.md lacks {group}={file.stem}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    for extra in project["optional-dependencies"].keys() - {"all", "dev"}:
        assert f"`{extra}`" in readme, f"README.md lacks the extra {extra}"


def test_the_reference_is_what_make_reference_writes() -> None:
    """From conf/, the table of ranges and the registry."""
    page = reference.page()
    assert reference.PAGE.read_text() == page, "run `make reference`"
    names = {key.partition("@")[0] for key in RANGES if " " not in key} - {
        "n",
        "overlap",
        "cond_channels",
    }
    assert not {name for name in names if f"`{name}`" not in page and f"`+{name}`" not in page}


def python_blocks(page: Path) -> list[str]:
    """Returns the Python blocks of a page."""
    return [
        block
        for language, block in FENCED.findall(page.read_text(encoding="utf-8"))
        if language == "python"
    ]


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From arrays to samples in at most 12 lines; here with a small network, for a moment."""
    (block,) = python_blocks(ROOT / "README.md")
    assert len(block.splitlines()) <= 12
    (same,) = python_blocks(ROOT / "docs" / "python.md")
    assert [line.partition("  #")[0] for line in block.splitlines()][:7] == same.splitlines()
    rng = np.random.default_rng(0)
    y = np.linspace(2000, 40000, 64).reshape(8, 8) + rng.normal(0, 1500, (60, 8, 8))
    y[rng.random(y.shape) < 0.4] = np.nan
    np.save(tmp_path / "crops.npy", y)
    monkeypatch.chdir(tmp_path)
    fit, small = diffem.fit, [o for o in SHORT if not o.startswith(("dataset.", "em.rounds"))]
    monkeypatch.setattr(
        diffem, "fit", lambda y, **given: fit(y, **{**given, "rounds": 1, "overrides": small})
    )
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["x"].shape == (16, 4, 8, 8) and names["new"].numel() == 64**2
    # In the data's units: a sample on the scale of [-1, 1] would lie near 0.
    assert float(names["x"].mean()) > 2000


def test_the_mri_page_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its measurements are those of its channels: χ² of the true images is near 1."""
    pytest.importorskip("nibabel")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in python_blocks(ROOT / "docs" / "mri.md"):
        exec(compile(block, "mri.md", "exec"), names)
    image = names["image"] * (np.load("coils.npy").conj() * names["maps"]).sum(axis=0)
    complex_truth = np.stack([image.real, image.imag], axis=1)
    given = {"acceleration": 4.0, "centre": 0.125}
    for file, operator, x, limit in (
        ("kspace.npz", Fourier((1, 64, 48), **given), names["x"][:, None], 1.02),
        # What estimated maps do not explain of values 40 times the noise is more than nothing.
        ("multicoil.npz", MultiCoil((2, 64, 48), coils="coils.npy", **given), complex_truth, 1.2),
    ):
        source = MeasurementFiles(file, operator.shape, range=[-774, 774])
        train, _ = source.measurement_sets(make_channel(operator, GaussianNoise(20.0)))
        assert isinstance(train.channel, LinearChannel) and isinstance(train.source, FileRows)
        truth = torch.from_numpy(x[train.source.rows.numpy()] / 774).float()
        chi2 = train.channel.residual_chi2(train.select(slice(None)), truth).mean()
        assert 0.98 < chi2 < limit


TUTORIAL = ROOT / "docs" / "tutorial.md"
FEW = 24  # crops of the tutorial that its commands are tried on


def test_the_tutorial_s_commands_run(tmp_path: Path) -> None:
    """From a folder of images to reconstructions in at most five commands, with what they make."""
    text = TUTORIAL.read_text()
    make, check = python_blocks(TUTORIAL)
    (tmp_path / "crops.py").write_text(make)
    (tmp_path / "check.py").write_text(check)
    steps = [line.strip() for block in INDENTED.findall(FENCED.sub("\n", text))
             for line in block.replace("\\\n", " ").splitlines() if line.strip()]  # fmt: skip
    before = steps.index("python check.py")
    assert before <= 4 and steps[0] == "python crops.py"
    small = [o for o in SHORT if not o.startswith(("dataset.", "em.rounds"))]
    for step in steps:
        words = shlex.split(step)
        python = words[0] == "python"
        words = words[1:] if python else ["-m", *words]
        if words[:3] == ["-m", "diffem", "train"]:
            words += [*small, "em.rounds=1"]
        done = warm_python.run(*words, cwd=tmp_path, environment=os.environ)
        assert done.returncode == 0, (step, done.stderr)
        if step == "python crops.py":  # fewer from here on
            files = sorted((tmp_path / "crops").iterdir())
            assert len(files) == 1040
            for file in files[FEW:]:
                file.unlink()
            np.save(tmp_path / "clean.npy", np.load(tmp_path / "clean.npy")[:FEW])
        if step == "python check.py":
            assert re.match(r"error of the mean \d+, where the noise is 3000; cov", done.stdout)
    assert len(list((tmp_path / "reconstructions" / "samples").iterdir())) == 8 * FEW
    assert diffem.load(tmp_path / "exported", device="cpu").channel.shape == (1, 16, 16)


def test_the_exposures_of_astronomy_are_read_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script writes them; a twentieth is not measured, the truth is the mean of the rest."""
    pytest.importorskip("astropy")
    pytest.importorskip("skimage")
    (make,) = python_blocks(ROOT / "docs" / "astronomy.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(make, "astronomy.md", "exec"), {})
    held = open_measurements("frames")
    rows = np.arange(len(held.y))
    assert held.truth is not None and held.y.shape == (20, 1, 109, 100)
    y, truth = held.y[rows].astype(float), held.truth[rows].astype(float)
    missing = np.isnan(y)
    assert f"{100 * missing.mean():.0f} %" in (ROOT / "docs" / "astronomy.md").read_text()
    # The variance of photons and of the read-out, in units; pixels are independent.
    gain, offset, read = 1.9, 300, 5
    z = (y - truth) / np.sqrt((truth - offset) / gain + (read / gain) ** 2)
    n = (~missing).sum()
    assert abs(np.nanmean(z)) < 4.5 / n**0.5
    assert abs(np.nanmean(z**2) - 1) < 4.5 * (2.1 / n) ** 0.5  # Poisson's kurtosis is above 3


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """What `make docs` does; every page is in the navigation."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").is_file()


def test_troubleshooting_quotes_what_the_program_says() -> None:
    """The first cell of each row, between what differs from case to case, is in one message."""
    said = set()
    for path in sorted((ROOT / "diffem").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value for v in node.values if isinstance(v, ast.Constant))
                said.add("\0".join(str(p) for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    rows = re.findall(
        r"^\| `([^|]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 20
    for row in rows:
        pieces = [piece for piece in re.split("…", row) if piece.strip(" ;:=.")]
        assert any(all(p.strip() in text for p in pieces) for text in said), row


def test_the_columns_of_a_chain_s_parts_are_those_that_operator_has() -> None:
    shape = (3, 4, 6)  # pixels, entries, lines and angles all differ in number
    sizes = {"none": 0, "one for each pixel": 24, "one for each line": 6, "one for each angle": 5}
    sizes |= {"1": 1, "2": 2, "one for each entry": 72}
    values: dict[str, dict[str, Any]] = {
        "Blur": {"sigma": 0.7, "kernel_size": 3},
        "MotionBlur": {"length": 2.0, "angle": 5.0},
        "Mask": {"rho": 0.3},
        "Weighting": {"ratio": 2.0},
        "Fourier": {"acceleration": 2.0},
        "MultiCoil": {"acceleration": 2.0, "coils": 3},
        "Radon": {"angles": 5},
        "Gamma": {"gamma": 2.0},
        "JPEG": {"quality": 10},
        "Impulse": {"fraction": 0.1},
        "PointSpread": {"kernel": [[1, 2, 1]]},
        "Downsample": {"factor": 2},
        "Saturation": {"low": -1.0, "high": 0.5},
        "Quantisation": {"levels": 4},
    }
    page = (ROOT / "docs" / "channels.md").read_text().partition("## Chains")[2]
    page = page.partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+`) \| (.+) \|$", page, flags=re.MULTILINE)
    assert len(rows) > 5
    for names, columns in rows:
        (size,) = {sizes[start] for start in sizes if re.match(rf"{start}\b", columns)}
        for name in re.findall(r"\w+", names):
            part = getattr(diffem.corruption, name)
            if issubclass(part, LinearOperator):
                own = (1, *shape[1:]) if name in ("Fourier", "MultiCoil") else shape
                drawn = part(own, **values.get(name, {})).draw(2, torch.Generator())
                assert drawn.flatten(1).shape[1] == size, name
            else:
                assert len(part(**values.get(name, {})).parameters) == size, name


def test_an_operator_has_the_known_columns_of_a_chain_too() -> None:
    """As docs/channels.md has it."""
    shape, masks = (1, 4, 6), np.random.default_rng(0).integers(0, 2, (5, 4, 6))
    parts = [Blur(shape, sigma=0.7, kernel_size=3), Mask(shape, rho=0.3)]
    channel = make_channel(Composition(parts), GaussianNoise(0.1))
    (code,) = (
        c for _, c in FENCED.findall((ROOT / "docs/channels.md").read_text()) if "0.7)," in c
    )
    names: dict[str, Any] = {"np": np, "masks": masks}
    exec(code, names)
    y = np.zeros((5, *shape))
    found = measurement_of(y, channel, Scale(), operator=names["operator"])
    assert np.array_equal(found.operator[:, 1:], masks.reshape(5, -1))
    for wrong, says in ((masks.reshape(5, -1), "must have the shape [5, 25]"),
                        (names["operator"] * 2, "operator holds 1.4, outside")):  # fmt: skip
        with pytest.raises(UserError) as error:
            measurement_of(y, channel, Scale(), operator=wrong)
        assert says in str(error.value)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffem.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
