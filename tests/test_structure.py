"""Law 7: imports run one way, groups and folders match, every experiment composes and builds."""

import ast
from pathlib import Path

import pytest
import torch
from command import ROOT
from omegaconf import DictConfig, OmegaConf

from diffem.cli.composition import compose
from diffem.cli.parts import build_module
from diffem.cli.study import known_studies, read_study
from diffem.config.build import build
from diffem.result import build_channel, build_posterior

PACKAGE = ROOT / "diffem"
CONF = ROOT / "conf"
BASE = {"runtime", "storage"}
SCIENCE = {"corruption", "network", "metric", "denoiser", "posterior", "data"}
ALLOWED = {  # what each folder may import of the package, besides itself
    "runtime": set(),
    "storage": {"runtime", "config"},
    "config": {"runtime"},
    "logging": BASE,
    "corruption": {"runtime"},
    "network": {"runtime"},
    "metric": {"corruption", *BASE},
    "data": {"corruption", "runtime"},
    "inspection": {"corruption", "data", "runtime"},
    "denoiser": {"corruption", "runtime"},
    "posterior": {"corruption", "denoiser", "runtime"},
    "result": {*SCIENCE, *BASE, "config"} - {"metric"},
    "em": {*SCIENCE, *BASE} - {"metric"},
    "report": {*SCIENCE, *BASE, "em", "logging"},
    "cli": {*SCIENCE, *BASE, "em", "inspection", "logging", "report", "result", "config"},
    "__main__": {"cli"},
    "__init__": {"corruption", "data", "result", "cli", "runtime"},  # the public names, lazily
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def imports(path: Path) -> set[str]:
    """Returns the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_run_one_way() -> None:
    for path in [*PACKAGE.rglob("*.py"), ROOT / "train.py"]:
        folder = folder_of(path) if path.is_relative_to(PACKAGE) else "__main__"
        ours = {m.split(".")[1] for m in imports(path) if m.startswith("diffem.")}
        extra = ours - ALLOWED[folder] - {folder}
        assert not extra, f"{path} imports {extra}"


def test_lightning_and_hydra_stay_where_they_belong() -> None:
    for path in PACKAGE.rglob("*.py"):
        roots = {module.split(".")[0] for module in imports(path)}
        if folder_of(path) not in {"em", "logging", "cli", "storage"}:
            assert "lightning" not in roots, path
        if folder_of(path) not in {"cli", "config", "storage"}:
            assert not roots & {"hydra"}, path


def targets(path: Path) -> list[str]:
    found = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.extend([node["_target_"]] if "_target_" in node else [])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(OmegaConf.to_container(OmegaConf.load(path)))
    return found


def test_groups_target_their_folders() -> None:
    elsewhere = {
        "sampler": (
            *("azula.sample", "diffem.posterior.ReflectedSampler", "diffem.posterior.SDESampler"),
        ),
        "init": "diffem.em.init",
        "dataset": "diffem.data",
        "logger": ("diffem.logging", "lightning.pytorch.loggers"),
    }
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    for group in (path for path in CONF.iterdir() if path.is_dir()):
        for path in group.glob("*.yaml"):
            first = targets(path)[:1]
            if group.name in elsewhere:
                assert first[0].startswith(elsewhere[group.name]), path
            elif group.name in folders:
                assert first[0].startswith(f"diffem.{group.name}."), path


def composed(*overrides: str) -> DictConfig:
    return compose([*overrides, "run_dir=/tmp/unused"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose_and_build(experiment: str) -> None:
    cfg = composed(f"experiment={experiment}")
    channel = build_channel(cfg.corruption, cfg.dataset.shape)
    build(cfg.dataset, "dataset")
    network = build(
        cfg.network,
        "network",
        shape=list(cfg.dataset.shape),
        cond_channels=build(cfg.method.condition, "method.condition").channels(channel),
    )
    for key in ("em", "schedule", "sampler", "init", "metric"):
        build(cfg[key], key)
    optimizer = build(cfg.m_step, "m_step").optimizer(network.parameters())
    assert optimizer.param_groups[0]["lr"] == cfg.m_step.optimizer.lr


METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_methods_compose_and_build(method: str) -> None:
    """Each says what it is, and makes its objective and its posterior."""
    cfg = composed(f"method={method}", "sampler.steps=16")
    channel = build_channel(cfg.corruption, cfg.dataset.shape)
    measurement = channel.draw(torch.zeros(2, *cfg.dataset.shape), torch.Generator())
    objective = build(cfg.method.objective, "method.objective")
    denoiser = build_module(cfg, objective, channel, "m_step").denoiser
    posterior = build_posterior(cfg)(denoiser, channel)
    posterior.fit(torch.randn(70, *cfg.dataset.shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        assert posterior.sample(measurement, 2).shape == (2, 2, *cfg.dataset.shape)
    assert (CONF / "method" / f"{method}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_begin_with_their_command(experiment: str) -> None:
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# diffem train experiment={experiment}")


@pytest.mark.parametrize("study", known_studies())
def test_studies_compose(study: str) -> None:
    read = read_study(study)
    for overrides in read.rows.values():
        cfg = composed(*read.common, *overrides)
        # What is assumed of a channel are keys that the channel has.
        OmegaConf.merge(cfg.corruption, cfg.get("assumed", {}))


@pytest.mark.parametrize("study", known_studies())
def test_studies_begin_with_their_command(study: str) -> None:
    lines = (CONF / "study" / f"{study}.yaml").read_text().splitlines()
    assert lines[0] == f"# diffem compare --study {study} --out runs/{study}"
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert "# Cost: " in comment and "Expect: " in comment


@pytest.mark.parametrize("study", known_studies())
def test_studies_name_the_command_that_they_need_first(study: str) -> None:
    """Otherwise all their runs fail, one after the other."""
    read = read_study(study)
    text = (CONF / "study" / f"{study}.yaml").read_text()
    for overrides in read.rows.values():
        given = dict(o.split("=", 1) for o in (*read.common, *overrides))
        if given.get("metric") == "classifier":
            name = given.get("dataset", "digits")
            assert f"\n# After `diffem classify --dataset {name} --out features/{name}." in text


@pytest.mark.parametrize(
    "name",
    ["em.rounds", "em.steps_per_round", "sampler.steps", "corruption.rho", "corruption.noise.std",
     "trainer.devices", "trainer.accelerator", "seed", "run_dir", "prior"],
)  # fmt: skip
def test_names_that_stay(name: str) -> None:
    assert OmegaConf.select(composed(), name) is not None


def test_names_that_stay_in_other_choices() -> None:
    assert OmegaConf.select(composed("corruption=blur"), "corruption.kernel_size") == 5
    assert OmegaConf.select(composed("corruption=blur"), "corruption.sigma") == 1.0
    assert OmegaConf.is_missing(composed("init=checkpoint").init, "path")
    assert all("path" in composed(f"dataset={d}").dataset for d in ("fashion_mnist", "cifar10"))
    assert composed("prior=null").prior is None
    assert set(composed("logger=wandb").logger) == {"jsonl", "wandb"}


@pytest.mark.parametrize("metric", sorted(path.stem for path in (CONF / "metric").glob("*.yaml")))
def test_metrics_keep_their_keys(metric: str) -> None:
    cfg = composed(f"metric={metric}").metric
    keys = {"samples", "subset", "heldout", "prior", "metrics", "features", "lpips"}
    assert keys <= cfg.keys() and cfg._target_ == "diffem.metric.Evaluation"
