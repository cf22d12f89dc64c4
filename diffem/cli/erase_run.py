"""The run that `diffem erase` writes, without the withdrawn measurements."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffem.cli.compose import check_config, compose_run
from diffem.cli.composition import override_key
from diffem.cli.data import build_data
from diffem.cli.erase_source import Source, trusted
from diffem.cli.identity import run_identity
from diffem.cli.memory import MEMORY, open_earlier
from diffem.cli.parts import build_module
from diffem.cli.train import run
from diffem.config.build import build
from diffem.data.withdrawn import read_names, written
from diffem.denoiser import Denoiser
from diffem.em.init import KEPT_WEIGHTS, FromCheckpoint
from diffem.em.state import EMState
from diffem.runtime.device import precision_of
from diffem.runtime.errors import UserError
from diffem.storage.atomic import read_json, sha256, write_text
from diffem.storage.checkpoint import (
    before_e_step,
    digests,
    load_checkpoint,
    record_digest,
    remove_checkpoint,
    save_checkpoint,
)
from diffem.storage.identity import bind
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.run_dir import WITHDRAWN, open_run, resumed_arguments, save_config

REPLACED = (  # settings of the run that do not hold for the new one
    *("withdrawn", "em.rounds", "em.seconds", "em.nfe", "em.stop", "em/stop", "em.refresh"),
    *("em.warm_start", "dataset.range", "trainer.accelerator", "trainer.devices"),
    *("trainer.num_nodes", "trainer.precision", "trainer.strategy", "strategy"),
)


@dataclass(frozen=True)
class NewRun:
    """The directory of the new run, which is bound to its settings and measurements."""

    folder: Path
    """The directory."""
    cfg: DictConfig
    """Its configuration."""
    store: ReconstructionStore
    """Its reconstructions, of which there are none yet."""
    checkpoint: dict[str, Any]
    """The run's last checkpoint, without what it knows of the gradients of the rows."""


def open_new_run(source: Source, folder: Path) -> NewRun:
    """Opens the directory of the new run, before anything has been unlearned.

    Arguments:
        source: The run that measurements are withdrawn from.
        folder: The new run's directory, empty.

    Raises:
        UserError: If the run cannot be trained on what is left.
    """
    cfg = compose_run([*_settings(source), f"em.rounds={source.about.round}"], folder)
    check_config(cfg)
    if cfg.em.refresh < 1 or cfg.em.warm_start is not None:  # overrides that do are REPLACED
        raise UserError(
            "an experiment's file sets em.refresh or em.warm_start, with which reconstructions of "
            f"{source.path} would stay in the new run; remove the line from the file"
        )
    before = source.cfg.withdrawn and read_names(Path(source.cfg.withdrawn), "withdrawn")
    names = dict.fromkeys([*(before or ()), *source.names])
    write_text(folder / WITHDRAWN, "".join(f"{written(name)}\n" for name in names))
    # Before the run is opened: as in every run, the shape that files have is a part of it.
    train, heldout = build_data(cfg, build(cfg.dataset, "dataset"))
    open_run(cfg, HydraConfig.get(), precision=cfg.trainer.precision)
    objective = build(cfg.method.objective, "method.objective")
    m_step = build_module(cfg, objective, train.channel, "m_step").m_step
    if m_step.clean is not None:
        m_step.clean.load(train)
    m_step.balance.divide(train.groups)
    checkpoints, init = source.path / "checkpoints", build(cfg.init, "init")
    otherwise = "train again without the rows, from another init and with memory=none"
    if isinstance(init, FromCheckpoint):
        init.read(checkpoints / KEPT_WEIGHTS, otherwise=otherwise)
    open_earlier(
        m_step.memory, checkpoints / MEMORY, shape=train.channel.shape, device="cpu",
        trust=list(cfg.trust), otherwise=otherwise,
    )  # fmt: skip
    copy_kept(checkpoints, folder / "checkpoints")
    identity = run_identity(cfg, m_step, train, heldout)
    bind(folder, identity, threads=torch.get_num_threads())
    checkpoint = load_checkpoint(checkpoints / "last.ckpt")
    for optimizer in checkpoint["optimizer_states"]:
        optimizer["state"] = {}  # moments of gradients of what was erased
    checkpoint["balance"] = []  # multipliers of its losses
    store = ReconstructionStore(
        folder / "reconstructions",
        size=len(train), chunk_size=cfg.em.chunk_size, identity=identity,
    )  # fmt: skip
    return NewRun(folder, cfg, store, checkpoint)


def write_run(
    new: NewRun, source: Source, denoiser: Denoiser, x: torch.Tensor, state: EMState
) -> int:
    """Writes a run in which the denoiser draws the reconstructions anew, and finishes it.

    Arguments:
        new: The new run.
        source: The run that measurements are withdrawn from.
        denoiser: The denoiser that has unlearned them.
        x: The reconstructions of the other measurements, which a posterior may take moments of.
        state: The state of the loop before they are drawn anew.

    Returns:
        The network function evaluations of erasing and of drawing anew.

    Raises:
        FloatingPointError: If the denoiser draws numbers that are not finite.
    """
    k, folder, store, checkpoint = state.round, new.folder, new.store, new.checkpoint
    store.begin(k, "erased")
    for chunk in store.chunks:
        store.write(k, chunk, x[store.rows(chunk)])
    old = ReconstructionStore(
        source.path / "reconstructions", size=len(source.train), chunk_size=store.chunk_size
    )
    if (learned := old.channel(k + 1)) is not None:
        store.write_channel(k, learned)
    store.commit(k, "erased")
    for name, weight in denoiser.state_dict().items():
        for net in ("denoiser", "average"):
            checkpoint["state_dict"][f"{net}.{name}"] = weight.cpu()
    last = folder / "checkpoints" / "last.ckpt"
    save_checkpoint(
        checkpoint | {"em_state": asdict(state), "run": store.binding(k)}, before_e_step(last)
    )
    run(new.cfg)
    # Removes round k, whose reconstructions are the old run's; the run can be resumed without it.
    nfe = (read_json(folder / "summary.json") or {})["rounds"][-1]["nfe"]
    state = replace(state, round=k + 1, e_step_pending=False, nfe=nfe, nfe_before=nfe)
    save_checkpoint(checkpoint | {"em_state": asdict(state), "run": store.binding(k + 1)}, last)
    remove_checkpoint(before_e_step(last))
    store.prune(1, newest=k + 1)
    return nfe


def name_run(folder: Path, out: Path) -> None:
    """Puts the name that a run's directory will have in the settings that it holds.

    Arguments:
        folder: The directory under its temporary name.
        out: The name, an absolute path.
    """
    for name, key in (("config.yaml", "run_dir"), ("hydra.yaml", "hydra.runtime.output_dir")):
        file = folder / ".hydra" / name
        saved = OmegaConf.load(file)
        OmegaConf.update(saved, key, str(out))
        save_config(saved, file)


def copy_kept(source: Path, folder: Path) -> None:
    """Copies what a run has kept of the run that it continues, which may be gone.

    Arguments:
        source: The run's folder of checkpoints.
        folder: That of the new run.
    """
    folder.mkdir(exist_ok=True)
    for file in (source / KEPT_WEIGHTS, source / MEMORY):
        if file.is_file() and (digest := sha256(file)) in digests(source):
            record_digest(folder / file.name, digest)
            shutil.copyfile(file, folder / file.name)


def _settings(source: Source) -> list[str]:
    """Returns the run's overrides for a run that only draws all reconstructions anew.

    It is of this process alone, on the device that was chosen.
    """
    trust = trusted(source.cfg.trust)
    *own, _, _ = resumed_arguments([*trust, f"resume={source.path}"])
    kept = [o for o in own if not override_key(o).startswith(REPLACED)]
    scale = source.result.scale
    if source.cfg.dataset.get("range") is not None:
        kept.append(f"dataset.range=[{scale.low},{scale.high}]")  # as the weights know it
    device = source.result.posterior.sampling.device
    accelerator = "gpu" if device.type == "cuda" else device.type
    precision = source.result.posterior.sampling.precision
    if precision == "16-mixed" and accelerator != "gpu":  # which a run needs a GPU for
        precision = precision_of("auto", accelerator)
    kept += [f"trainer.accelerator={accelerator}", f"trainer.precision={precision}"]
    if accelerator == "gpu" and device.index:  # of cpu:1 it means nothing
        kept.append(f"trainer.devices=[{device.index}]")
    return [*kept, f"withdrawn=${{run_dir}}/{WITHDRAWN}"]
