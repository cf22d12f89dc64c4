"""What a run remembers of earlier runs, and their measurements that it is evaluated on."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from diffem.cli.data import build_data
from diffem.config.allow_list import check_targets
from diffem.config.build import build
from diffem.config.interpolation import check_interpolations
from diffem.data.measurements import MeasurementSet
from diffem.em import DenoiserModule, Generative, Memory, Replay
from diffem.em.init import FromCheckpoint, Init
from diffem.em.memory import pooled
from diffem.report import EarlierRun
from diffem.report.record import is_sound
from diffem.result import Result, load, read_weights
from diffem.result.result import POSTERIOR, newest_round, read_summary, weights_folder
from diffem.runtime.errors import UserError
from diffem.runtime.progress import progress_bar, warn
from diffem.runtime.ranges import check
from diffem.runtime.rank import global_rank
from diffem.storage.atomic import sha256, write_file
from diffem.storage.checkpoint import digests, record_digest, was_saved
from diffem.storage.reconstructions import wait_until
from diffem.storage.run_dir import read_settings

MEMORY = "memory.safetensors"  # in checkpoints/: what the run keeps of the earlier run


def read_kept(kept: Path) -> dict[str, Tensor] | None:
    """Returns what a run has kept of the earlier run; None if it is absent or damaged."""
    if not kept.is_file() or sha256(kept) not in digests(kept.parent):
        return None
    return safetensors.torch.load_file(kept)


def check_continues(memory: Memory, init: Init) -> None:
    """Refuses to remember an earlier run that a run does not continue.

    Arguments:
        memory: The memory.
        init: The init.

    Raises:
        UserError: If the weights that it starts from are not of an earlier run.
    """
    if memory.remembers and not isinstance(init, FromCheckpoint):
        raise UserError(
            f"memory={type(memory).__name__.lower()} keeps what the weights have learned, and "
            f"needs those of an earlier run: add init=checkpoint init.path={memory.path}, or "
            "leave it out"
        )


def open_earlier(
    memory: Memory,
    kept: Path,
    *,
    shape: Sequence[int],
    device: str | None,
    trust: Sequence[str],
    otherwise: str,
) -> Result | None:
    """Returns the earlier run to remember; None if there is none to, or a copy has been kept.

    Arguments:
        memory: The memory.
        kept: The run's copy of what is remembered, which may not exist yet.
        shape: The shape of the run's images.
        device: Where to sample; None for the GPU if there is one.
        trust: Packages besides diffem whose classes the earlier run's settings may name.
        otherwise: What else to do where the copy is lost and the earlier run is gone.

    Raises:
        UserError: If the earlier run is not finished, is of other images or lacks what the
            memory needs.
    """
    if not memory.remembers or read_kept(kept) is not None:
        return None
    assert memory.path is not None
    try:
        earlier = load(memory.path, device=device, trust=trust)
    except UserError as error:
        if not was_saved(kept):
            raise UserError(f"memory.path: {error}") from error
        raise UserError(
            f"{kept} is missing or damaged, and cannot be made again from memory.path: {error}; "
            f"put one of them back, or {otherwise}"
        ) from error
    if isinstance(memory, Generative):
        if earlier.prior is None:
            raise UserError(
                f"memory=generative needs a prior, and {memory.path} has none; train that run "
                "with one, or choose memory=replay or none"
            )
    elif was_saved(own := weights_folder(memory.path) / MEMORY) and read_kept(own) is None:
        raise UserError(
            f"memory.path: {own} is missing or damaged, which has what {memory.path} kept of the "
            "runs before it; put it back, or choose memory=generative, which takes a prior, or "
            "memory=none"
        )
    if earlier.channel.shape != tuple(shape):
        raise UserError(
            f"memory.path={memory.path} is of images {list(earlier.channel.shape)}, and this "
            f"run's are {list(shape)}; give another run"
        )
    return earlier


def recall(
    module: DenoiserModule, earlier: Result | None, train: MeasurementSet, kept: Path
) -> None:
    """Fills a run's memory from the earlier run, or from the copy that the run has kept.

    The first process writes the copy; the others wait until it is there.

    Arguments:
        module: The module that is trained.
        earlier: The earlier run; None if the copy is there.
        train: The training measurements.
        kept: The run's copy.
    """
    memory = module.m_step.memory
    if not memory.remembers:
        return
    if earlier is not None and global_rank() == 0:
        content = safetensors.torch.save(gathered(module, earlier, train))
        kept.parent.mkdir(parents=True, exist_ok=True)
        # The digest first: whatever the disk makes of the file, a difference is seen.
        record_digest(kept, hashlib.sha256(content).hexdigest())
        write_file(kept, lambda file: file.write(content))
    wait_until(lambda: read_kept(kept) is not None)
    memory.recall((read_kept(kept) or {})["images"])


def gathered(module: DenoiserModule, earlier: Result, train: MeasurementSet) -> dict[str, Tensor]:
    """Returns what a memory keeps of an earlier run: `images`, and what they stand for."""
    memory, key = module.m_step.memory, (module.seed, "memory")
    assert isinstance(memory, Replay)
    assert memory.path is not None
    folder = weights_folder(memory.path)
    about, before = read_weights(folder / POSTERIOR).about, read_kept(folder / MEMORY) or {}
    if isinstance(memory, Generative):
        assert earlier.prior is not None
        x = torch.cat(list(drawn(memory, earlier, module.seed)))
        seen = about.size + int(before.get("stand_for", 0))  # by whichever run learned the prior
        return {"images": in_units_of(train, earlier, x), "stand_for": torch.tensor(seen)}
    x = newest_round(about, memory.path).__getitems__(range(about.size)).x
    held = pooled(x, before, size=memory.size, count=about.size, key=key)
    return held | {"images": in_units_of(train, earlier, held["images"])}


def drawn(memory: Generative, earlier: Result, seed: int) -> Iterator[Tensor]:
    """Yields samples of an earlier run's prior, on the scale of [-1, 1], chunk by chunk."""
    prior, step = earlier.prior, earlier.posterior.sampling.chunk_size
    assert prior is not None
    starts = range(0, memory.size, step)
    with progress_bar("samples of the earlier prior", len(starts), "chunks") as advance:
        for start in starts:
            yield prior.draw(min(step, memory.size - start), "memory", start, seed=seed)
            advance()


def in_units_of(train: MeasurementSet, earlier: Result, x: Tensor) -> Tensor:
    """Returns an earlier run's images, in its range of values, in that of a run's."""
    if earlier.scale == train.scale:
        return x
    return train.scale.normalise(earlier.scale.denormalise(x.double())).float()


def earlier_runs(
    module: DenoiserModule, train: MeasurementSet, *, trust: Sequence[str]
) -> Iterator[EarlierRun]:
    """Yields a run's earlier runs, newest first: its memory.path, that run's own, and so on.

    A run is left out with a warning if its held-out measurements are gone, or do not fit the
    network.

    Arguments:
        module: The module that is trained.
        train: The training measurements.
        trust: Packages besides diffem whose classes the runs' settings may name.
    """
    path, seen = module.m_step.memory.path, set[Path]()
    channels = module.objective.cond_channels
    while path is not None and path.resolve() not in seen:
        seen.add(path.resolve())
        following = None
        try:
            settings, _ = read_settings(path)
            if not settings:
                where = "there" if path.is_absolute() else f"there, in {Path.cwd()}"
                raise UserError(f"no run is {where}")
            check_interpolations(settings)
            parts = {key: settings[key] for key in ("dataset", "corruption", "assumed")}
            check_targets(parts, trust=trust)
            cfg = OmegaConf.create(settings)
            following = OmegaConf.select(cfg, "memory.path")
            _, heldout = build_data(cfg, build(cfg.dataset, "dataset"))
            summary = read_summary(path / "summary.json")
            if heldout.scale != train.scale or heldout.channel.shape != train.channel.shape:
                raise UserError("its images have another shape or range of values")
            if channels(heldout.channel) != channels(train.channel):
                raise UserError("its corruption is another")
            if summary is None:
                raise UserError("it is not finished")
            if not is_sound(summary):
                raise UserError("its summary.json is damaged")
            samples = check("metric.samples", summary["samples"])
            yield EarlierRun(str(path), heldout, samples, cfg.metric.heldout, summary["final"])
        except (KeyError, OmegaConfBaseException, UserError) as error:
            reason = " ".join(str(error).split())
            reason = f"its settings have no {reason}" if isinstance(error, KeyError) else reason
            warn(f"what is forgotten of memory.path={path} is not measured: {reason}")
        path = None if following is None else Path(following)
