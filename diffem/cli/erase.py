"""Withdraws measurements from a finished run: `diffem erase RUN --rows FILE --out NEW`.

    diffem erase runs/mine --rows rows.txt --out runs/without

NEW is a run like any other, whose measurements lack the rows: a denoiser that has unlearnt them
(`diffem.em.erase`), the others' reconstructions drawn anew by it, since those of RUN are its
neighbours', and a prior (and a student) trained on these alone. No round and no checkpoint of RUN
is in it. erased.json says what was erased, what it cost, and what an audit found. RUN is left as
it is, and must be deleted by who withdraws; nothing here is a certificate.
"""

import hashlib
import io
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffem.cli.arguments import parse_erase
from diffem.cli.compose import check_config, compose_run
from diffem.cli.composition import override_key
from diffem.cli.errors import report_user_errors
from diffem.cli.evaluate import build_finished_data, compose_finished
from diffem.cli.launch import quiet
from diffem.cli.train import build_data, other_files, run
from diffem.config.build import build
from diffem.data.digest import data_digest
from diffem.data.format import new_folder
from diffem.data.measurements import MeasurementSet
from diffem.data.withdrawn import read_names, rows_named, withdraw
from diffem.denoiser import Denoiser
from diffem.em.erase import Erasing, Rows, membership_auc
from diffem.em.module import MStep
from diffem.em.objective import Objective, Recorrupted, Unconditional
from diffem.em.state import EMState
from diffem.posterior.posterior import DenoiserPosterior
from diffem.result import PosteriorSampler, Result, read_weights, restore
from diffem.result.result import POSTERIOR, newest_round
from diffem.runtime.errors import UserError
from diffem.runtime.progress import plain_console
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator
from diffem.storage.atomic import read_json, write_file
from diffem.storage.checkpoint import (
    before_e_step,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from diffem.storage.entries import check_entries
from diffem.storage.identity import RunIdentity, bind
from diffem.storage.lock import unlock_folder
from diffem.storage.reconstructions import ReconstructionStore
from diffem.storage.run_dir import ERASED, WITHDRAWN, config_hash, open_run, resumed_arguments
from diffem.storage.strict_json import to_json

SHARE = 0.1  # of the run's optimiser steps, that erasing takes
MOST = 512  # held-out measurements that are used, and withdrawn ones that are audited
FEW = 32  # held-out measurements, of which one half is the target and the other audits
REPLACED = (  # settings of the run that do not hold for the new one
    *("withdrawn", "em.rounds", "em.seconds", "em.nfe", "em.stop", "em/stop", "em.refresh"),
    *("em.warm_start", "dataset.range", "trainer.devices", "trainer.num_nodes", "strategy"),
)
NO_CERTIFICATE = (
    "the audit finds what one test finds; it is no certificate that nothing of the rows is left"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Erases measurements and writes the new run.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_erase(arguments)
    with report_user_errors(), quiet():
        for key in ("steps", "eta", "lr"):
            check(f"--{key}", getattr(chosen, key))
        source = Source.of(chosen)
        shown = io.StringIO()
        with new_folder(chosen.out) as folder:
            with redirect_stdout(shown):
                record = erase(source, folder, chosen)
            text = shown.getvalue().replace(str(folder), str(chosen.out))
        plain_console().print(text, end="", soft_wrap=True)
        report(record, chosen)


@dataclass(frozen=True)
class Source:
    """The run that measurements are withdrawn from."""

    path: Path
    """Its directory."""
    cfg: DictConfig
    """Its configuration."""
    result: Result
    """What it learned."""
    train: MeasurementSet
    """Its training measurements, under the channel as it was assumed or learned."""
    heldout: MeasurementSet
    """Its held-out measurements, without those that are withdrawn."""
    names: list[str]
    """The names of what is withdrawn."""
    rows: torch.Tensor
    """Their rows among the training measurements."""
    optimizer_steps: int
    """The optimiser steps of its M-steps."""
    nfe: int
    """The network function evaluations of its E- and M-steps."""

    @classmethod
    def of(cls, chosen: Namespace) -> "Source":
        """Reads a run and which of its measurements are withdrawn.

        Raises:
            UserError: If the run is not finished, or nothing can be erased from it.
        """
        path, file = chosen.run, chosen.run / "checkpoints" / POSTERIOR
        check_entries(path, writing=False)
        if not file.is_file():
            raise UserError(f"{path} holds no finished run: {file} is missing; finish it first")
        weights, names = read_weights(file), read_names(chosen.rows, "--rows")
        cfg = compose_finished(path, weights, trusted(chosen.trust))
        if cfg.method.supervised:
            raise UserError(
                "method.supervised=true learns from clean images, which erase does not withdraw; "
                "train without them"
            )
        result = restore(path, weights, device=chosen.device, trust=chosen.trust)
        train, heldout = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
        rows = rows_named(train, names)
        _, unseen = withdraw(train, heldout, names, key="--rows")
        if not len(rows):
            raise UserError(f"--rows={chosen.rows} names held-out measurements alone, and nothing "
                            "was learned from them; leave them out of the evaluation")  # fmt: skip
        if len(unseen) < FEW:
            raise UserError(f"{path} has {len(unseen)} held-out measurements, and erase needs "
                            f"{FEW}; train again without the rows")  # fmt: skip
        if (path / "measurements.npz").is_file():
            raise UserError(f"{path} holds its measurements itself, as diffem.fit keeps them; "
                            "call diffem.fit again without the rows")  # fmt: skip
        last = ((read_json(path / "summary.json") or {}).get("rounds") or [{}])[-1]
        if not (last.get("nfe") and last.get("optimizer_steps")):
            raise UserError(f"{path / 'summary.json'} does not say what the run cost; give a "
                            "finished run")  # fmt: skip
        own = result.channel if weights.about.estimates else train.channel
        return cls(
            path, cfg, result, train.under(own), unseen.under(own), names, rows,
            last["optimizer_steps"], last["nfe"],
        )  # fmt: skip

    def drawn(self, denoiser: Denoiser, measurements: MeasurementSet, name: str) -> Rows:
        """Returns measurements with reconstructions that the posterior of a denoiser draws."""
        own = self.result.posterior
        assert isinstance(own.posterior, DenoiserPosterior)
        posterior = copy(own.posterior)
        posterior.denoiser = denoiser
        sampler = PosteriorSampler(posterior, own.channel, own.scale, own.sampling)
        x = torch.cat([x[0] for x in sampler.draw(measurements, 1, "erase", name)])
        return Rows(x, measurements)

    def halves(self) -> tuple[MeasurementSet, MeasurementSet]:
        """Returns the held-out measurements whose loss is the target, and those that audit."""
        order = torch.randperm(
            len(self.heldout), generator=generator(self.cfg.seed, "erase halves")
        )
        target, audit = (part(self.heldout, half) for half in order[:MOST].chunk(2))
        return target, audit

    def audit(self, erasing: Erasing, denoiser: Denoiser) -> dict[str, Any]:
        """Returns whether the loss of a denoiser tells withdrawn from held-out measurements.

        It is that of reconstructions which the denoiser itself draws, with their measurements:
        those of a network that knew the rows would be strange to another.
        """
        parts = {"members": part(self.train, self.rows[:MOST]), "unseen": self.halves()[1]}
        with self.result.posterior.sampling.context():
            members, unseen = (
                erasing.row_losses(denoiser, self.drawn(denoiser, each, name), seed=self.cfg.seed)
                for name, each in parts.items()
            )
        auc, error = membership_auc(members, unseen)
        return {
            "auc": auc,
            "auc_error": error,
            "leaks": abs(auc - 0.5) > 2 * error,
            "loss_withdrawn": float(members.mean()),
            "loss_heldout": float(unseen.mean()),
        }


def part(measurements: MeasurementSet, rows: torch.Tensor) -> MeasurementSet:
    """Returns some measurements, read into memory."""
    return MeasurementSet(measurements.select(rows), measurements.channel)


def erase(source: Source, folder: Path, chosen: Namespace) -> dict[str, Any]:
    """Writes the new run into a folder, and returns what erased.json says.

    Arguments:
        source: The run.
        folder: The new run's directory, empty.
        chosen: The command's arguments.

    Raises:
        UserError: If the run's method cannot unlearn.
    """
    cfg, result = source.cfg, source.result
    objective: Objective = build(cfg.method.objective, "method.objective")
    if not isinstance(objective, Recorrupted | Unconditional):
        raise UserError(
            f"method.objective={type(objective).__name__} learns from the measurements, not from "
            "reconstructions that could be erased; train again without the rows"
        )
    steps = chosen.steps or max(1, round(SHARE * source.optimizer_steps))
    erasing = Erasing(
        objective, build(cfg.m_step, "m_step"), steps, chosen.eta, chosen.lr,
        noise=chosen.target == "noise",
    )  # fmt: skip
    about = read_weights(source.path / "checkpoints" / POSTERIOR).about
    x = newest_round(about, source.path).__getitems__(range(about.size)).x
    stays = torch.ones(len(x), dtype=torch.bool)
    stays[source.rows] = False
    kept = Rows(x[stays], part(source.train, stays.nonzero().flatten()))
    posterior = result.posterior.posterior
    assert isinstance(posterior, DenoiserPosterior)
    old, denoiser = posterior.denoiser, deepcopy(posterior.denoiser)
    before = source.audit(erasing, old)
    checked = old.take_nfe()
    unseen = source.drawn(old, source.halves()[0], "target")
    gone = part(source.train, source.rows)
    with result.posterior.sampling.context():
        path = erasing.run(
            denoiser,
            kept,
            lambda k: source.drawn(denoiser, gone, f"erased {k}"),
            unseen,
            batch_size=cfg.em.batch_size,
            seed=cfg.seed,
        )
    spent = denoiser.take_nfe() + old.take_nfe()
    after = source.audit(erasing, denoiser)
    state = EMState(about.round - 1, nfe=spent, optimizer_steps=steps)
    nfe = finish(source, folder, denoiser, kept.x, state)
    record = {
        "erased": [row_hash(gone, row) for row in range(len(source.rows))],
        "target": chosen.target,
        "steps": steps, "eta": chosen.eta, "lr": chosen.lr,
        "evaluations": {
            "erasing": spent, "redrawing": nfe - spent, "of_the_run": source.nfe,
            "share": nfe / source.nfe,
            "audit": checked + denoiser.take_nfe(),
        },
        "lambda": path,
        "audit": {"before": before, "after": after},
        "not_a_certificate": NO_CERTIFICATE,
        "delete": str(source.path.absolute()),
    }  # fmt: skip
    text = to_json(record, indent=1) + "\n"
    write_file(folder / ERASED, lambda file: file.write(text.encode()))
    return record


def finish(
    source: Source, folder: Path, denoiser: Denoiser, x: torch.Tensor, state: EMState
) -> int:
    """Has a run with the denoiser draw the reconstructions anew, and end as every run does.

    Arguments:
        source: The run that measurements are withdrawn from.
        folder: The new run's directory, empty.
        denoiser: The denoiser that has unlearnt them.
        x: The reconstructions of the other measurements, which a posterior may take moments of.
        state: The state of the loop before they are drawn anew.

    Returns:
        The network function evaluations of erasing and of drawing anew.
    """
    k = state.round
    cfg = compose_run([*settings(source), f"em.rounds={k + 1}"], folder)
    check_config(cfg)
    before = source.cfg.withdrawn and read_names(Path(source.cfg.withdrawn), "withdrawn")
    lines = "".join(f"{name}\n" for name in dict.fromkeys([*(before or ()), *source.names]))
    write_file(folder / WITHDRAWN, lambda file: file.write(lines.encode()))
    # Before the run is opened: as in every run, the shape that files have is a part of it.
    train, heldout = build_data(cfg, build(cfg.dataset, "dataset"))
    open_run(cfg, HydraConfig.get())
    m_step: MStep = build(cfg.m_step, "m_step")
    if m_step.clean is not None:
        m_step.clean.load(train)
    others = other_files(cfg, m_step)
    identity = RunIdentity(config_hash(cfg), data_digest(train, heldout, others=others))
    bind(folder, identity, threads=torch.get_num_threads())
    store = ReconstructionStore(
        folder / "reconstructions",
        size=len(train), chunk_size=cfg.em.chunk_size, identity=identity,
    )  # fmt: skip
    store.begin(k, "erased")
    for chunk in store.chunks:
        store.write(k, chunk, x[store.rows(chunk)])
    old = ReconstructionStore(
        source.path / "reconstructions", size=len(source.train), chunk_size=cfg.em.chunk_size
    )
    if (learned := old.channel(k + 1)) is not None:
        store.write_channel(k, learned)
    store.commit(k, "erased")
    checkpoint = load_checkpoint(source.path / "checkpoints" / "last.ckpt")
    for name, weight in denoiser.state_dict().items():
        for net in ("denoiser", "average"):
            checkpoint["state_dict"][f"{net}.{name}"] = weight.cpu()
    for optimizer in checkpoint["optimizer_states"]:
        optimizer["state"] = {}  # moments of gradients of what was erased
    last = folder / "checkpoints" / "last.ckpt"
    save_checkpoint(
        checkpoint | {"em_state": asdict(state), "run": store.binding(k)}, before_e_step(last)
    )
    run(cfg)
    # What was drawn by the run that knew the rows goes; the run can go on from what is left.
    row = (read_json(folder / "summary.json") or {})["rounds"][-1]
    nfe = row["nfe"]
    state = EMState(
        k + 1, e_step_pending=False, nfe=nfe, nfe_before=nfe,
        optimizer_steps=state.optimizer_steps,
    )  # fmt: skip
    save_checkpoint(checkpoint | {"em_state": asdict(state), "run": store.binding(k + 1)}, last)
    remove_checkpoint(before_e_step(last))
    store.prune(1, newest=k + 1)
    unlock_folder(folder)
    return nfe


def trusted(packages: Sequence[str]) -> list[str]:
    """Returns the override that trusts packages; none for no package."""
    return [f"trust=[{','.join(packages)}]"] if packages else []


def settings(source: Source) -> list[str]:
    """Returns the overrides of a run for one that draws all its reconstructions anew and ends."""
    trust = trusted(source.cfg.trust)
    *own, _, _ = resumed_arguments([*trust, f"resume={source.path}"])
    kept = [o for o in own if not override_key(o).startswith(REPLACED)]
    scale = source.result.scale
    if source.cfg.dataset.get("range") is not None:
        kept.append(f"dataset.range=[{scale.low},{scale.high}]")  # as the weights know it
    return [*kept, f"withdrawn=${{run_dir}}/{WITHDRAWN}"]


def row_hash(measurements: MeasurementSet, row: int) -> str:
    """Returns the sha256 of a measurement: of y, of its operator and of its noise."""
    digest = hashlib.sha256()
    for field in measurements.select(slice(row, row + 1)):
        digest.update(field.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def report(record: Mapping[str, Any], chosen: Namespace) -> None:
    """Prints what the audit found, what it cost, and what is left to do."""
    console, audit, spent = plain_console(), record["audit"], record["evaluations"]
    for name, text in (("before", "before"), ("after", "after")):
        found = audit[name]
        side = "" if not found["leaks"] else (
            ": the network still knows them" if found["auc"] > 0.5
            else ": their loss is above that of unseen ones, which tells that they were erased"
        )  # fmt: skip
        console.print(
            f"audit {text}: AUC {found['auc']:.3f} ± {found['auc_error']:.3f} of the loss of "
            f"withdrawn against held-out measurements, 0.5 tells nothing{side}",
            soft_wrap=True,
        )
    console.print(
        f"network evaluations: {spent['erasing'] + spent['redrawing']:,}, "
        f"{spent['share']:.1%} of what {chosen.run} took",
        soft_wrap=True,
    )
    console.print(NO_CERTIFICATE, soft_wrap=True)
    console.print(
        f"delete {chosen.run}, and every copy, export and comparison of it: it still holds the "
        "rows",
        soft_wrap=True,
    )
    console.print(f"wrote {chosen.out}: {ERASED} says what was erased", soft_wrap=True)
