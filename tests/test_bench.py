"""The benchmark: its arithmetic by known numbers, its tables, and its cheapest figures."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import ROOT
from torch import nn

import bench.__main__ as benchmark
from bench.contenders import Convolutions
from bench.cost import (
    SHARES,
    NetworkCost,
    Plan,
    count_flops,
    network_cost,
    plan_table,
    plans,
    unet_cost,
)
from bench.em import DIGITS, Case, em_figures
from bench.figure import Figure, LeftOut, alternate
from bench.report import (
    make_record,
    prediction_table,
    ratio_table,
    regressions,
    with_tables,
)
from bench.storage import store_reads
from diffem.cli.launch import quiet
from diffem.network import UNet


def record(*figures: Figure, left_out: tuple[LeftOut, ...] = ()) -> dict:
    return make_record(figures, left_out, [], seconds=1.0)


def test_alternation_changes_its_order() -> None:
    calls: list[str] = []

    def note(name: str, value: float) -> float:
        calls.append(name)
        return value

    pairs = alternate(lambda: note("a", 6.0), lambda: note("b", 2.0), 3)
    assert pairs == [(6.0, 2.0)] * 3 and "".join(calls) == "abbaab"
    assert Figure("f", "a over b", [(1, 1), (9, 1), (2, 1)]).record()["median"] == 2


@pytest.mark.parametrize(
    ("now", "more_is_better", "worse"),
    [
        *((2.3, False, True), (2.1, False, False), (1.0, False, False)),
        *((1.7, True, True), (1.9, True, False), (9.0, True, False)),
    ],
)
def test_a_figure_that_is_worse_by_a_tenth_is_named(
    now: float, more_is_better: bool, worse: bool
) -> None:
    """2 in the baseline: worse is above 2.2, or below 2 / 1.1 = 1.82 where more is better."""
    before = record(Figure("f", "a over b", [(2, 1)], more_is_better=more_is_better))
    after = record(Figure("f", "a over b", [(now, 1)], more_is_better=more_is_better))
    named = regressions(after, before)
    assert bool(named) == worse and all("f is worse" in line for line in named)
    assert not regressions(record(), before) and not regressions(after, record())


def test_the_command_s_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No baseline, a baseline, a regression; and what cannot be measured is in the table."""
    measured = [(1.0, 1.0)]
    page, threads = tmp_path / "page.md", torch.get_num_threads()
    names = ("ratios", "predictions", "plans")
    page.write_text("".join(f"<!-- bench: {name} -->\nold\n<!-- end -->\n" for name in names))
    monkeypatch.setattr(benchmark, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(benchmark, "LATEST", tmp_path / "runs" / "bench.json")
    monkeypatch.setattr(benchmark, "PAGE", page)
    monkeypatch.setattr(benchmark, "plan_table", lambda: "planned")
    found = lambda _: [Figure("f", "a over b", measured), LeftOut("g", "not here")]  # noqa: E731
    monkeypatch.setattr(benchmark, "GROUPS", {"group": found})
    assert benchmark.main([]) == 0 and "there is no" in capsys.readouterr().err
    assert benchmark.main(["--baseline"]) == 0
    assert "old" not in page.read_text() and "planned" in page.read_text()
    assert "`g` | left out: not here" in page.read_text()
    assert benchmark.main([]) == 0
    measured[:] = [(1.2, 1.0)]
    assert benchmark.main(["--only", "group"]) == 1
    assert "f is worse than the baseline" in capsys.readouterr().err
    assert json.loads((tmp_path / "runs" / "bench.json").read_text())["figures"]["f"]["max"] == 1.2
    torch.set_num_threads(threads)


def test_a_page_without_markers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="ratios 0 times"):
        with_tables("# Performance\n", {"ratios": ""})
    monkeypatch.setattr(benchmark, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("# Performance\n")
    with pytest.raises(SystemExit):  # before anything is measured or written
        benchmark.main(["--baseline"])
    assert "ratios 0 times" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"figures": {"a": {"median": "x"}}}'])
def test_a_damaged_baseline_is_refused_before_anything_is_measured(
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "BASELINE", tmp_path / "baseline.json")
    (tmp_path / "baseline.json").write_text(content)
    with pytest.raises(SystemExit) as exit:
        benchmark.main([])
    assert exit.value.code == 2 and "is damaged" in capsys.readouterr().err


def test_a_missed_limit_is_marked() -> None:
    table = ratio_table(record(Figure("f", "a over b", [(3, 1)], limit=2.0)))
    assert "≤ 2: missed" in table and "3 / 1 s" in table


def test_flops_of_a_known_convolution() -> None:
    """3 → 8 channels, 3 × 3, on 5 × 7 pixels: 2 · 3 · 9 · 8 · 35 operations.

    Backward the gradient of the weights takes as many; that of the images is not needed.
    """
    forward = 2 * 3 * 9 * 8 * 35
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert network_cost(conv, [torch.randn(4, 3, 5, 7)]) == NetworkCost(
        forward, 2 * forward, 3 * 9 * 8 + 8
    )


def test_flops_of_two_layers() -> None:
    """The second layer's backward has the gradients of its weights and of its input."""
    first, second = 2 * 5 * 6, 2 * 6 * 7
    cost = network_cost(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7)), [torch.randn(3, 5)])
    assert (cost.forward, cost.training) == (first + second, 2 * first + 3 * second)


def test_flops_of_attention_are_counted() -> None:
    """Of 4 × 4 tokens of 32 channels: 2 · 16 · 16 · 32 operations for QKᵀ, as many for the sum.

    Two blocks attend; their projections to and from 32 channels are 4 · 2 · 16 · 32 · 32 each.
    """
    plain = {"channels": [16, 32], "blocks": [1, 1]}
    without, with_it = (
        unet_cost([1, 8, 8], 2, {**plain, "attention": levels}) for levels in ([], [1])
    )
    attention = 2 * (2 * 2 * 16 * 16 * 32 + 4 * 2 * 16 * 32 * 32)
    assert with_it.forward - without.forward == attention
    network = UNet([1, 8, 8], 2, channels=[16, 32], blocks=[1, 1], attention=[1])
    inputs = (torch.randn(2, 1, 8, 8), torch.randn(2), torch.randn(2, 2, 8, 8))
    assert network_cost(network, inputs) == with_it


def test_the_convolutions_of_a_network_are_its_own() -> None:
    """As many operations as the network's, less those of what is no convolution.

    The gradient of the first one's input is not needed, and is not computed.
    """
    convolutions = [nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 2, 3, stride=2, padding=1)]
    network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(2 * 4 * 4, 5))
    loop = SimpleNamespace(
        cfg=SimpleNamespace(
            dataset=SimpleNamespace(shape=[2, 8, 8]), sampler=SimpleNamespace(steps=3)
        ),
        settings=SimpleNamespace(batch_size=4, chunk_size=6),
    )
    passes = SimpleNamespace(
        loop=loop,
        network=network,
        precision=nullcontext,
        inputs=lambda size: [torch.randn(size, 2, 8, 8)],
    )
    alone = Convolutions(passes)  # type: ignore[arg-type]
    first, second = (2 * 2 * 9 * 16 * pixels for pixels in (64, 16))
    assert count_flops(alone.step) == 4 * (2 * first + 3 * second)
    assert count_flops(lambda: alone.sample(2)) == 2 * 3 * 6 * (first + second)


def test_the_cost_of_a_plan() -> None:
    """10 measurements of 5 numbers, 3 rounds, 4 evaluations; F = 2, F' = 6, P = 100."""
    network = NetworkCost(2, 6, 100)
    plan = Plan(
        "p", network, network, size=10, entries=5, rounds=3, m_steps=7, batch_size=2,
        evaluations=4, prior_steps=1,
    )  # fmt: skip
    assert plan.e_step_flops == 80 and plan.m_step_flops == 84 and plan.prior_flops == 12
    assert plan.flops == 3 * 80 + 84 + 12
    assert plan.round_bytes == 200 and plan.state_bytes == 2000
    assert plan.all_reduce_bytes(1) == 0 and plan.all_reduce_bytes(4) == 2 * 3 / 4 * 400
    assert plan.hours(plan.flops / 3600) == pytest.approx(1)


def test_experiments_state_the_cost_that_is_counted() -> None:
    """To the two digits that their heads have."""
    paper, fast, _ = plans()
    for plan in (paper, fast):
        head = (ROOT / "conf" / "experiment" / f"{plan.name}.yaml").read_text()
        stated = f"{plan.flops:.1e}".replace("e+", "e")
        assert f"# Cost: {stated} floating-point operations" in head
    assert paper.hours(SHARES[0] * 989e12) == pytest.approx(35, abs=0.5)


def test_the_page_has_the_baseline_s_tables() -> None:
    """They are written together, by `make bench BASELINE=1`."""
    page = (ROOT / "docs" / "performance.md").read_text()
    baseline = json.loads((ROOT / "bench" / "baseline.json").read_text())
    tables = (ratio_table(baseline), prediction_table(baseline), plan_table())
    assert with_tables(page, dict(zip(benchmark.TABLES, tables, strict=True))) == page


def test_the_store_is_measured_against_a_memory_map(tmp_path: Path) -> None:
    figure = store_reads(tmp_path, size=600, batches=2, times=2)
    assert figure.name == "store_reads_in_memory" and len(figure.pairs) == 2
    assert all(rate > 0 for pair in figure.pairs for rate in pair)


def test_the_loop_is_measured_against_bare_passes(tmp_path: Path) -> None:
    """A moment of it: each figure has a round's pair, and the model its operations."""
    small = ("network.channels=[16]", "network.blocks=[1]", "init=measurement", "sampler.steps=2")
    small = (*small, "em.batch_size=8", "em.chunk_size=8", "logger=jsonl")
    case = Case(DIGITS.name, "digits", small, size=32, steps=4, rounds=2)
    with quiet():
        figures, left_out, predictions = em_figures(case, tmp_path, rivals=False)
    assert [figure.name for figure in figures] == [
        "m_step_over_bare_digits",
        "e_step_over_bare_digits",
        "m_step_over_convolutions_digits",
        "e_step_over_convolutions_digits",
    ]
    assert all(len(f.pairs) == 2 and min(f.ratios) > 0 for f in figures) and not left_out
    (m_small, e_small, m_step, e_step) = (each.flops for each in predictions)
    assert 2.5 < (m_step / (4 * 8)) / (e_step / (32 * 2)) < 3  # the first layer's input needs none
    assert [p.N for p in predictions] == [8, 8, 32, 32]
    assert (m_small, e_small) == (m_step / 2, e_step / 4)  # half of the steps, a quarter of N
