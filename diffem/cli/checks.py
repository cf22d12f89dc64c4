"""What a run's settings are checked for, against one another and the data, before it begins."""

from collections.abc import Iterator
from dataclasses import replace

from omegaconf import DictConfig

from diffem.cli.compose import is_chosen, is_given
from diffem.corruption import Channel, LinearChannel, LinearGaussianChannel
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet
from diffem.em import Augment, EMSettings, Guard, MStep, Objective, Replay, relaxation
from diffem.em.guard import ENTRIES, FEW, MSE
from diffem.em.init import Mixture
from diffem.em.plateau import LEAST
from diffem.metric import Evaluation
from diffem.posterior.posterior import chunk_count, has_spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn

LAWS = tuple(f"corruption.{key}" for key in ("acceleration", "centre", "ratio", "rho"))
"""The keys that say how a benchmark draws operators, and nothing of one that is at hand."""
UNIFORM = 5.0  # the noise level from which on folded noise is uniform, to 1e-13


def check_objective(objective: str | None, evaluation: Evaluation) -> None:
    """Refuses a sweep's objective that is no held-out score of the run.

    Raises:
        UserError: If it is none.
    """
    names = [score.name for score in evaluation.scores]
    if objective is not None and objective not in (
        *names,
        *(f"{name}_truth" for name in names),
        "init_psnr_mean",
    ):
        raise UserError(
            f"objective must be a score of this run, got {objective!r}; it has {', '.join(names)}"
        )


def check_m_step(cfg: DictConfig, m_step: MStep, objective: Objective, channel: Channel) -> None:
    """Refuses settings of the M-step that have no effect or contradict one another.

    Arguments:
        cfg: The configuration.
        m_step: The settings.
        objective: The objective of the M-step.
        channel: The channel.

    Raises:
        UserError: If there is one.
    """
    if isinstance(m_step.augment, Augment):
        m_step.augment.check(cfg.dataset.shape)
    for key in ("augment", "clean"):
        if getattr(m_step, key) is not None and objective.weighs_rows(channel):
            raise UserError(
                f"m_step.{key} takes away what was measured of an image, by which "
                "method.objective.imputed weighs its errors; set method.objective.imputed=1, or "
                f"m_step.{key}=null"
            )
    ignored = {
        "m_step.augment": m_step.augment,
        "m_step.clean": m_step.clean,
        "method.supervised": cfg.method.supervised,
        "memory": m_step.memory.remembers,
        "balance": m_step.balance.balances,
    }
    for key, value in ignored.items():
        if value and not objective.uses_reconstructions:
            raise UserError(
                f"{key} has no effect on method.objective={type(objective).__name__}, which "
                "learns from the measurements; leave it out"
            )
    others = (
        ("m_step.clean", m_step.clean is not None),
        ("memory", isinstance(m_step.memory, Replay)),
    )
    for key, chosen in others:
        if chosen and m_step.balance.balances:
            raise UserError(
                f"{key} puts images of no group in the place of a group's, by which balance="
                f"{type(m_step.balance).__name__.lower()} weighs them; set balance=none, or leave "
                f"{key} out"
            )


def checked_settings(
    cfg: DictConfig,
    settings: EMSettings,
    objective: Objective,
    train: MeasurementSet,
    *,
    heldout: int,
) -> EMSettings:
    """Warns of settings that have no effect or do not fit the data, and of what they assume.

    Arguments:
        cfg: The configuration.
        settings: The EM loop's settings.
        objective: The objective of its M-steps.
        train: The training measurements.
        heldout: The number of held-out measurements.

    Returns:
        The EM loop's settings, without the guard where there is nothing that it could hide, and
        without over-relaxed E-steps where there are none.

    Raises:
        UserError: If `em.stop` needs a figure that the run does not have.
    """
    channel = train.channel
    for key, reason in unused_settings(cfg, objective, channel):
        warn(f"{key} has no effect: {reason}")
    unguarded = no_guard(cfg, objective, channel)
    if unguarded:
        settings = replace(settings, guard=None)
    if settings.stop is not None:
        check_stop(settings, heldout, unguarded or "em.guard=null")
    if not_relaxed(cfg, objective, channel):
        settings = replace(settings, relax=None)
    if settings.relax is not None and heldout < FEW and is_given("em.relax"):
        warn(f"em.relax has no effect: it needs {FEW} held-out measurements, there are {heldout}")
    chunks = chunk_count(len(train), settings.chunk_size)
    if is_given("em.refresh") and settings.refreshed(chunks) == chunks:
        warn(
            f"em.refresh has no effect: {settings.refresh} of {chunks} chunks, rounded up, is "
            "all of them; set a smaller em.chunk_size"
        )
    for line in (
        weak_noise(cfg, channel),
        trivial_noise(cfg),
        assumed_independence(objective, channel),
        train.doubt(),
    ):
        if line:
            warn(line)
    return settings


def unused_settings(
    cfg: DictConfig, objective: Objective, channel: Channel
) -> Iterator[tuple[str, str]]:
    """Yields what the command line sets without effect, and why.

    A comparison gives such settings to all of its rows, so they are no reason to refuse a run.
    """
    learned = cfg.prior is not None and objective.learns_prior
    mixture = cfg.init["_target_"] == "diffem.em.init.Mixture"
    one = mixture and not Mixture.fits(channel)
    gaussian = f"{channel} has no spectrum at hand, so that one Gaussian is fitted (init=gaussian)"
    unguarded = no_guard(cfg, objective, channel)
    unrelaxed = not_relaxed(cfg, objective, channel)
    for key, unused, reason in (
        ("prior", learned, "the network of this method is the prior too"),
        ("metric.prior", cfg.prior is None, "prior=null"),
        ("blind", not channel.learn, "corruption.learn is empty"),
        ("em.guard", unguarded is not None, unguarded or ""),
        ("em.relax", cfg.em.relax is not None and unrelaxed is not None, unrelaxed or ""),
        ("init.components", one, gaussian),
        ("init.shrinkage", one, gaussian),
        *(
            (key, has_records(channel), "a recorded operator is drawn from those of the file")
            for key in LAWS
        ),
    ):
        if unused and is_given(key):
            yield key, reason
    if one and is_chosen("init"):
        yield "init=mixture", gaussian


def has_records(channel: Channel) -> bool:
    """Returns whether a channel draws its operators from those of the measurements."""
    return isinstance(channel, LinearChannel) and isinstance(channel.forward_operator, Recorded)


def not_learned(cfg: DictConfig, objective: Objective) -> str | None:
    """Returns why what E-steps draw changes nothing that is learned, if it does not."""
    if cfg.method.supervised or not objective.uses_reconstructions:
        return "the M-step of this method does not learn from the reconstructions"
    return None


def no_guard(cfg: DictConfig, objective: Objective, channel: Channel) -> str | None:
    """Returns why hidden parts of y are not scored, if there is a reason."""
    if unlearned := not_learned(cfg, objective):
        return unlearned
    if channel.learn:
        return "the channel is learned, and scores under different channels do not compare"
    if not Guard.fits(channel):
        return f"no part of what {channel} measures can be hidden"
    return None


def not_relaxed(cfg: DictConfig, objective: Objective, channel: Channel) -> str | None:
    """Returns why no E-step is over-relaxed, if there is a reason."""
    if unlearned := not_learned(cfg, objective):
        return unlearned
    if channel.learn:
        return "the channel is learned, from reconstructions that must spread as samples do"
    if not relaxation.fits(channel):
        return f"{channel} has no spectrum at hand, which says what y tells of each coefficient"
    return None


def check_stop(settings: EMSettings, heldout: int, unguarded: str) -> None:
    """Refuses a figure of `em.stop` that the run does not have; warns of a stop that does not fit.

    Arguments:
        settings: The EM loop's budget, with a stop.
        heldout: The number of held-out measurements.
        unguarded: Why hidden entries are not scored, if they are not.

    Raises:
        UserError: If the run does not have the figure.
    """
    stop = settings.stop
    assert stop is not None
    if stop.figure in (ENTRIES, MSE) and settings.guard is None:
        raise UserError(
            f"em.stop.figure={stop.figure} is not scored: {unguarded}; choose "
            "em.stop.figure=measurement_energy_distance"
        )
    if heldout < LEAST:
        raise UserError(
            f"em.stop needs {LEAST} held-out measurements, and there are {heldout}; hold more "
            "out, by a larger dataset.heldout, or set em.stop=null"
        )
    if stop.patience >= settings.rounds:
        warn(
            f"em.stop has no effect: em.stop.patience={stop.patience} rounds do not fit into "
            f"em.rounds={settings.rounds}"
        )
    elif not settings.restart:
        warn(
            "em.stop may end EM before the learning rate has fallen, which it does over all of "
            "em.rounds; set em.restart=true for rounds that each are a training of their own"
        )


def weak_noise(cfg: DictConfig, channel: Channel) -> str | None:
    """Returns what to set where the noise is much weaker than what sampling leaves in x.

    A sample keeps noise of about the standard deviation σ_min, so that its residual χ² is about
    1 + (σ_min / σ_y)²; the last step of sampler=sde knows what a y that is fused with x_t says.
    """
    if not isinstance(channel, LinearGaussianChannel) or "sigma_min" not in cfg.schedule:
        return None
    exact = cfg.sampler["_target_"] == "diffem.posterior.SDESampler"
    fuses = cfg.method.get("condition", {"fuse": False})["fuse"] is not False
    if exact and fuses and has_spectrum(channel):
        return None
    std, left = channel.noise.parameters["std"].bounds[0], cfg.schedule.sigma_min
    if 2 * std >= left:
        return None
    return (
        f"corruption.noise.std is {std:.3g} on the scale of [-1, 1], and samples keep noise of "
        f"schedule.sigma_min={left}: their residual χ² is about {1 + (left / std) ** 2:.2g} in "
        f"place of 1; set schedule.sigma_min={std / 3:.3g}"  # with which it is about 1.1
    )


def trivial_noise(cfg: DictConfig) -> str | None:
    """Returns what to set where a reflected run learns from noise without an image in it."""
    reflected = cfg.method.posterior["_target_"] == "diffem.posterior.Reflected"
    if not reflected or cfg.schedule.sigma_max <= UNIFORM:
        return None
    return (
        f"schedule.sigma_max={cfg.schedule.sigma_max}: nothing is left of an image under folded "
        f"noise of more than {UNIFORM:g}, which method=reflected need not learn from; set "
        f"schedule.sigma_max={UNIFORM:g}"
    )


def assumed_independence(objective: Objective, channel: Channel) -> str | None:
    """Returns what `method.objective.imputed` assumes of recorded operators; None if nothing."""
    if not objective.weighs_rows(channel) or not isinstance(channel, LinearChannel):
        return None
    if channel.forward_operator.covers is not None:
        return None
    return (
        "method.objective.imputed below 1 is right only where what is measured does not depend on "
        "the image (as clouds do, or saturated pixels); if it may, set it to null"
    )
