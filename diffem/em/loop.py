"""The EM loop.

round 0   x̂_i ~ p_0(x | y_i)                             the init
M-step    d_θ learns from D_k, corrupted afresh          Lightning's training epochs
E-step    x̂_i ~ p_θ(x | y_i), θ the EMA weights → D_k+1  at a round's last epoch, unless the
                                                         guard keeps D_0

The state of training is saved after each epoch, and before and after each E-step: a process that
was killed anywhere resumes from there, to the same weights.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from diffem.corruption import Channel
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Denoiser
from diffem.em.blind import Blind, Estimates
from diffem.em.budget import EMSettings
from diffem.em.callbacks import StateCheckpoint
from diffem.em.datamodule import ReconstructionDataModule
from diffem.em.guard import ENTRIES, FEW, MSE, Guard
from diffem.em.init import Init
from diffem.em.module import DenoiserModule
from diffem.em.relaxation import relaxed, spreads_too_much
from diffem.em.round import Round
from diffem.em.state import EMState
from diffem.posterior import DenoiserPosterior, Posterior, Start, reconstruct
from diffem.runtime.progress import progress_bar, say, warn
from diffem.runtime.rng import generator
from diffem.storage.checkpoint import before_e_step
from diffem.storage.reconstructions import (
    Batch,
    ReconstructionStore,
    assign_chunks,
    wait_until,
)

PosteriorFactory = Callable[[Denoiser, Channel], DenoiserPosterior]
"""Makes the posterior that a method samples in its E-step from the denoiser and the channel."""

HiddenScores = Mapping[str, Sequence[float]]
"""How well a posterior predicts what is hidden of each held-out measurement, by name (`Guard`)."""

OnRound = Callable[[DenoiserModule, Round], Mapping[str, Sequence[float]] | None]
"""Reports a committed round; may return figures without ground truth, each a value of every
held-out measurement."""


def e_step(
    posterior: Posterior,
    measurements: MeasurementSet,
    store: ReconstructionStore,
    state: EMState,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    attempt: str = "",
    rank: tuple[int, int] = (0, 1),
    kept: Collection[int] = (),
    warm_start: float | None = None,
    draws: int = 1,
) -> None:
    """Draws x̂_i ~ p(x | y_i) for every measurement: the next round of the store.

    Ranks lock chunks and poll the store until the round is committed; there is no collective,
    since one that waits for a slow rank would end the run.

    Arguments:
        posterior: p(x | y).
        measurements: The measurements y_i.
        store: The rounds on disk, in which the next one was begun.
        state: Where the loop is; it is at the next round when this returns.
        seed: The run's seed: chunk c of round k is drawn from (seed, "e-step", k, c), and draw s
            of it, s > 0, from (seed, "e-step", k, c, s).
        device: Where to sample.
        attempt: What the round was begun with.
        rank: This process's rank and the number of ranks.
        kept: The chunks that stay as they are in the current round.
        warm_start: The time in (0, 1) that the current round's reconstructions are brought back
            to, to be drawn again from there; None: the next ones are drawn from noise alone.
        draws: How many draws x̂_i is made of: more than one in an over-relaxed E-step.
    """
    k = state.round + 1
    last = store.open(k - 1) if warm_start is not None and k > 0 else None
    with progress_bar(f"round {k}  E-step", len(store.missing(k)), "chunks") as advance:
        for chunk in assign_chunks(store, k, attempt, rank=rank):
            if chunk in kept:
                store.carry_over(k, chunk)
            else:
                rows, key, start = store.rows(chunk), (seed, "e-step", k, chunk), None
                if last is not None and warm_start is not None:
                    start = Start(last.__getitems__(range(store.size)[rows]).x, warm_start)
                given = measurements.select(rows)
                drawn = [
                    reconstruct(
                        posterior, given,
                        size=store.chunk_size, key=own, device=device, start=start,
                    )
                    for own in (key, *((*key, s) for s in range(1, draws)))
                ]  # fmt: skip
                x = relaxed(drawn, measurements.channel, given) if draws > 1 else drawn[0]
                store.write(k, chunk, x)
            advance(f"{len(kept)} kept" if kept else "")
    state.end_e_step()


class EMLoop(StateCheckpoint):
    """Runs an E-step after the init and after each round's M-step.

    Arguments:
        init: The init.
        make_posterior: Makes the E-step's posterior.
        state: Where the loop is.
        settings: The EM loop's budget.
        blind: How unknown parameters of the channel are learned.
        checkpoint: The file that the state of training is saved in.
        heldout: Measurements that are not trained on, which the guard of E-steps predicts.
        on_round: Called on the first process with each committed round; it returns figures of the
            round, by which `em.stop` may end the loop.
    """

    def __init__(
        self,
        init: Init,
        make_posterior: PosteriorFactory,
        *,
        state: EMState,
        settings: EMSettings,
        blind: Blind,
        checkpoint: Path,
        heldout: MeasurementSet,
        on_round: OnRound,
    ) -> None:
        super().__init__(state, checkpoint)
        self.init = init
        self.make_posterior = make_posterior
        self.settings = settings
        self.blind = blind
        self.heldout = heldout
        self.on_round = on_round
        self._losses: list[Tensor] = []
        self._lap_start = time.perf_counter()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the round that is pending: round 0, or the one that a killed process was at."""
        _, data = _parts(trainer)
        learned = data.store.channel(self.state.round) if self.state.round > 0 else None
        data.measurements = self.blind.start(data.given, learned or [])
        self._losses.clear()
        self._lap()
        if self.state.e_step_pending:
            self.next_round(trainer)
        self.prune(trainer)  # a kill may have come before, or in the middle
        self.stop_if_exhausted(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Keeps the loss for the round's report."""
        assert isinstance(outputs, Mapping)
        self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the next round when this one's M-step is over."""
        module, data = _parts(trainer)
        self.state.end_epoch(self._lap(), torch.stack(self._losses).tolist())
        self._losses.clear()
        if self.state.epoch < data.epochs:
            self.save(trainer)
            return
        if self.settings.restart:
            module.restart()
        self.state.end_m_step()
        self.save(trainer)
        self.next_round(trainer)
        module.set_rate()
        self.save(trainer)
        self.prune(trainer)
        self.stop_if_exhausted(trainer)

    def next_round(self, trainer: Trainer) -> None:
        """Draws round 0 from the init's posterior, any other with the averaged weights."""
        module, data = _parts(trainer)
        with module.averaged() as denoiser:
            posterior = self.make_posterior(denoiser, data.measurements.channel)
            if self.state.round < 0:
                posterior = self.init.prepare(module, data, posterior)
            else:
                posterior.fit(data.sample())
            attempt = trainer.strategy.broadcast(secrets.token_hex(4))
            data.store.begin(
                self.state.round + 1, module.weights_hash(), attempt, first=trainer.is_global_zero
            )
            path = self.learn_channel(trainer, posterior)
            posterior = posterior.under(data.measurements.channel)
            scores = self.scores(trainer, posterior)
            kept = self.kept_chunks(data, scores)
            draws = self.draws(trainer, posterior, kept)
            rank = (trainer.global_rank, trainer.world_size)
            e_step(
                posterior, data.measurements, data.store, self.state,
                seed=module.seed, device=module.device, attempt=attempt, rank=rank, kept=kept,
                warm_start=self.settings.warm_start, draws=draws,
            )  # fmt: skip
            self.report(trainer, posterior, path, scores=scores, kept=kept, draws=draws)
        self._lap()

    def report(
        self,
        trainer: Trainer,
        posterior: Posterior,
        path: list[Estimates],
        *,
        scores: HiddenScores | None,
        kept: Collection[int],
        draws: int,
    ) -> None:
        """Closes a committed round's account and reports the round.

        Arguments:
            trainer: The trainer.
            posterior: What drew the round.
            path: The estimates of the channel's parameters, if they are learned.
            scores: The guard's scores of the posterior, if there are any.
            kept: The chunks that are those of the round before.
            draws: How many draws each reconstruction is made of.
        """
        module, data = _parts(trainer)
        redrawn = (len(data.store.chunks) - len(kept)) / len(data.store.chunks)
        costs = self.close_round(trainer) | _means_and_errors(scores) | {"redrawn": redrawn}
        if self.settings.relax is not None:
            costs["draws"] = draws
        first = bool(redrawn) and (self.state.score is not None or self.state.round == 1)
        if redrawn:  # the guard asks until a network has overtaken the init, and no longer
            asks = self.state.round == 0 and Guard.holds_back(data.measurements.channel)
            self.state.score = costs[ENTRIES] if asks else None
        figures: dict[str, Sequence[float]] = dict(scores or {})
        if trainer.is_global_zero:
            k, uncounted = self.state.round, posterior.uncounted()
            round = Round(k, uncounted, data.measurements, costs, path)
            figures |= self.on_round(module, round) or {}
        self.compare(trainer, figures, first=first)

    def compare(
        self, trainer: Trainer, figures: Mapping[str, Sequence[float]], *, first: bool
    ) -> None:
        """Keeps the figure by which EM stops, if this round improved it.

        All processes take that of the first one.

        Arguments:
            trainer: The trainer.
            figures: The round's figures of each held-out measurement.
            first: Whether this round is the first that a network drew.
        """
        stop, state = self.settings.stop, self.state
        if stop is None:
            state.improved = (-1, ())  # a later process may stop by another figure
            return
        if state.round == 0:  # no network drew it
            return
        if first:  # those that learn from it are worse at first, and better later
            state.improved = (-1, ())
            return
        values = trainer.strategy.broadcast(figures.get(stop.figure))
        k, best = state.improved
        if values is not None and (k < 0 or stop.improves(values, best)):
            state.improve(values)

    def close_round(self, trainer: Trainer) -> dict[str, float | None]:
        """Closes a committed round's account, and returns what the round cost."""
        module, _ = _parts(trainer)
        self.state.spend(_sum_over_ranks(trainer, module.take_nfe()))
        costs = self.state.end_round(self._lap())
        # Of the first process: each has its own clock, and all must take the same rate.
        progress = self.settings.progress(self.state.seconds, self.state.nfe)
        self.state.progress = trainer.strategy.broadcast(progress)
        return costs

    def scores(self, trainer: Trainer, posterior: Posterior) -> HiddenScores | None:
        """Returns the guard's scores of the posterior that the next round is due to be drawn from.

        All processes get those of the first one, so that they keep the same chunks.

        Returns:
            The scores of each held-out measurement; None without a guard, or of too few.
        """
        module, data = _parts(trainer)
        guard, scores = self.settings.guard, None
        if guard is not None and trainer.is_global_zero:
            heldout = self.heldout.under(data.measurements.channel)
            scores = guard.scores(
                posterior, heldout,
                seed=module.seed, chunk_size=data.store.chunk_size, device=module.device,
            )  # fmt: skip
            if scores is None and self.state.round < 0:
                stop = self.settings.stop
                stops = stop is not None and stop.figure in (ENTRIES, MSE)
                warn(
                    f"E-steps are not guarded: fewer than {FEW} held-out measurements had an "
                    f"entry hidden{', and em.stop has no effect' * stops}; hold more out, by "
                    "a larger dataset.heldout in a new run_dir"
                )
        plain = None if scores is None else {name: own.tolist() for name, own in scores.items()}
        return trainer.strategy.broadcast(plain)

    def draws(self, trainer: Trainer, posterior: Posterior, kept: Collection[int]) -> int:
        """Returns of how many draws the next round's reconstructions are made.

        It is one in the last round, from which no M-step learns. All processes get the number of
        the first one.

        Arguments:
            trainer: The trainer.
            posterior: The posterior that the next round is due to be drawn from.
            kept: The chunks that are not drawn.
        """
        module, data = _parts(trainer)
        relax, k = self.settings.relax, self.state.round + 1
        if relax is None or k in (0, self.settings.rounds) or len(kept) == len(data.store.chunks):
            return 1
        wide = False
        if trainer.is_global_zero:
            wide = spreads_too_much(
                posterior, self.heldout.under(data.measurements.channel),
                seed=module.seed, chunk_size=data.store.chunk_size, device=module.device,
            )  # fmt: skip
        return relax if trainer.strategy.broadcast(wide) else 1

    def kept_chunks(
        self, data: ReconstructionDataModule, scores: HiddenScores | None
    ) -> frozenset[int]:
        """Returns the chunks of the next round that are those of the current one.

        Arguments:
            data: The rounds.
            scores: The guard's scores of the posterior that the others are drawn from, if any.
        """
        chunks, k = data.store.chunks, self.state.round + 1
        score = _means_and_errors(scores)[ENTRIES]
        if k == 0:
            return frozenset()
        if score is not None and self.state.score is not None and score > self.state.score:
            return frozenset(chunks)
        order = torch.randperm(len(chunks), generator=generator(data.seed, "refresh", k)).tolist()
        return frozenset(order[self.settings.refreshed(len(chunks)) :])

    def learn_channel(self, trainer: Trainer, posterior: Posterior) -> list[Estimates]:
        """Learns the channel's unknown parameters before a round's E-step.

        The first process learns them; the others read what it wrote. Round 0 has the parameters
        that the channel starts from.

        Returns:
            The estimates of each iteration; none if nothing is learned.
        """
        module, data = _parts(trainer)
        store, k = data.store, self.state.round + 1
        if not data.measurements.channel.learn or k == 0:
            return []
        if trainer.is_global_zero and store.channel(k) is None:
            key, device = (module.seed, "channel", k), module.device
            path = self.blind.fit(posterior, data.measurements, key=key, device=device)
            store.write_channel(k, path)
        wait_until(lambda: store.channel(k) is not None)
        path = store.channel(k) or []
        data.measurements = self.blind.start(data.given, path)
        return path

    def stop_if_exhausted(self, trainer: Trainer) -> None:
        """Begins no further round when a budget is spent; one decision for all processes."""
        state = self.state
        over = state.round >= self.settings.rounds or (
            state.round > 0 and self.settings.exhausted(state.seconds, state.nfe, state.last)
        )
        stop, (improved, _) = self.settings.stop, state.improved
        if not over and stop is not None and 0 < improved <= state.round - stop.patience:
            over = True
            if trainer.is_global_zero:
                say(
                    f"em.stop: {stop.figure} has not improved since round {improved} by more than "
                    f"its noise; EM ends with round {state.round}"
                )
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(over, all=False)

    def prune(self, trainer: Trainer) -> None:
        """Removes the rounds that `em.keep_rounds` does not keep."""
        _, data = _parts(trainer)
        if self.settings.keep_rounds is not None and trainer.is_global_zero:
            data.store.prune(self.settings.keep_rounds, newest=self.state.round)

    def save(self, trainer: Trainer) -> None:
        """Saves the state of training; what makes a round is kept until the next one is made."""
        module, _ = _parts(trainer)
        self.state.spend(module.take_nfe() * trainer.world_size)
        pending = self.state.e_step_pending
        trainer.save_checkpoint(before_e_step(self.checkpoint) if pending else self.checkpoint)

    def _lap(self) -> float:
        """Returns the seconds since the last call."""
        before, self._lap_start = self._lap_start, time.perf_counter()
        return self._lap_start - before


def _means_and_errors(scores: HiddenScores | None) -> dict[str, float | None]:
    """Returns the means of the guard's scores, and their standard errors if there are any."""
    found: dict[str, float | None] = {ENTRIES: None, MSE: None}
    for name, values in (scores or {}).items():
        each = torch.tensor(values, dtype=torch.float64)
        found[name] = float(each.mean())
        found[f"{name}_error"] = float(each.std() / len(each) ** 0.5)
    return found


def _sum_over_ranks(trainer: Trainer, count: int) -> int:
    """Returns the sum of the ranks' counts: a slow rank draws fewer chunks than another."""
    local = torch.tensor(count, device=trainer.strategy.root_device)
    total = trainer.strategy.reduce(local, reduce_op="sum")
    assert isinstance(total, Tensor)
    return int(total)


def _parts(trainer: Trainer) -> tuple[DenoiserModule, ReconstructionDataModule]:
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, DenoiserModule)
    assert isinstance(data, ReconstructionDataModule)
    return module, data
