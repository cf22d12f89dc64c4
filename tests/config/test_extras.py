"""A choice whose optional package is missing is one sentence; the default run needs none."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from command import ROOT, SHORT, train

from diffem.cli.compose import check_arguments
from diffem.config.extras import PLUGINS, TARGETS, VECTORS, WORKSPACES
from diffem.data.reader import KNOWN
from diffem.runtime.errors import UserError

FORMATS = {known.extra for known in KNOWN.values() if known.extra}
CHOICES = {
    "corruption=deepinv": ("deepinv", "corruption._target_=diffem.corruption.Dee", "deepinv"),
    "logger=wandb": ("wandb", "logger.wandb._target_=diffem.logging.wandb.WandbLogger", "wandb"),
    "logger=tensorboard": ("tensorboard", "TensorBoardLogger", "tensorboard"),
    "metric=inception": ("torch_fidelity", "diffem.metric.Inception", "metrics"),
    "metric=dinov2": ("timm", "diffem.metric.DINOv2", "metrics"),
    "dataset=cifar10": ("datasets", "dataset._target_=diffem.data.HubImages", "hub"),
    "dataset=manifold": ("ot", "dataset.shape=[5] (vectors)", "vectors"),
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib", "joblib"),
}
# Found by Python in the processes that it is given to: hides the packages of all extras.
HIDE = """
import importlib.metadata, sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MODULES or name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def from_name(name, original=importlib.metadata.Distribution.from_name):
    if name.lower().replace("_", "-") in PACKAGES:
        raise importlib.metadata.PackageNotFoundError(name)
    return original(name)

sys.meta_path.insert(0, Hide())
importlib.metadata.Distribution.from_name = from_name
"""


@pytest.mark.parametrize("choice", CHOICES)
def test_a_missing_package_is_one_sentence(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, what, extra = CHOICES[choice]
    monkeypatch.setitem(sys.modules, module, None)
    command = f"which is not installed: pip install 'diffem[{extra}]'"
    with pytest.raises(UserError, match=re.escape(what) + ".* needs .*" + re.escape(command)):
        check_arguments([choice])
    check_arguments([])


def test_optuna_s_sweeper_takes_no_quotes() -> None:
    with pytest.raises(UserError, match="run_dir=/a b cannot be given with hydra/sweeper=optuna"):
        check_arguments(["-m", "hydra/sweeper=optuna", "run_dir='/a b'"])


def test_the_default_run_needs_no_extra(tmp_path: Path) -> None:
    extras = [*TARGETS.values(), *PLUGINS.values(), *FORMATS, VECTORS, WORKSPACES]
    modules, packages = {e.module for e in extras}, {e.package.lower() for e in extras}
    (tmp_path / "sitecustomize.py").write_text(
        f"{HIDE}\nMODULES, PACKAGES = {modules}, {packages}\n"
    )
    run_dir, path = f"run_dir={tmp_path / 'run'}", f"{tmp_path}:{ROOT}"
    refused = train("logger=wandb", run_dir, PYTHONPATH=path)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "needs the package wandb" in refused.stderr and not (tmp_path / "run").exists()
    done = train(*SHORT, run_dir, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


def test_extras_are_those_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*TARGETS.values(), *PLUGINS.values(), *FORMATS, VECTORS, WORKSPACES]
    for package, _, extra in needed:
        names = [
            re.split(r"[>=<\[]", line)[0] for line in declared["optional-dependencies"][extra]
        ]
        assert package in names
    base = {re.split(r"[>=<\[]", line)[0] for line in declared["dependencies"]}
    assert not base & {e.package for e in needed}
    assert {e.extra for e in needed} <= set(
        re.split(r"[\[\],]", declared["optional-dependencies"]["all"][0])
    )
