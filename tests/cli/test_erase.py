"""Withdrawing measurements from a finished run."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from in_process import run_here

import diffem
from diffem.cli import erase, erase_run, erase_source, report
from diffem.cli.erase_source import Source
from diffem.cli.evaluate import build_finished_data, compose_finished
from diffem.config.build import build
from diffem.data.format import new_folder
from diffem.data.withdrawn import rows_named
from diffem.em.erase import Erasing, membership_auc
from diffem.posterior import DenoiserPosterior
from diffem.result import read_weights
from diffem.runtime.device import precision_of
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage.checkpoint import load_checkpoint
from diffem.storage.run_dir import is_finished

WITHDRAWN = [3, 4, 40]
SMALL = ("em.rounds=2", "prior={steps: 2}", "metric.prior=8")


def said(command: Callable[[Sequence[str]], None], *arguments: object) -> tuple[int, str]:
    """Runs a command in this process; returns its exit code and what it said."""
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(text):
        try:
            command([str(argument) for argument in arguments])
        except SystemExit as exit:
            return int(exit.code or 0), text.getvalue()
    return 0, text.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    """Returns what is in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".owner")
    }


Erased = tuple[Path, Path, str, dict[str, bytes]]


@pytest.fixture(scope="module")
def erased(tmp_path_factory: pytest.TempPathFactory) -> Erased:
    """A run, the run without three measurements, what was said, and the run before."""
    folder = tmp_path_factory.mktemp("erase")
    run = run_here(folder / "run", *SMALL)
    (folder / "rows.txt").write_text("# withdrawn\n" + "\n".join(map(str, WITHDRAWN)) + "\n")
    before, new = files(run), folder / "new"
    code, text = said(
        erase.main, run, "--rows", folder / "rows.txt", "--out", new, "--steps", 3,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, text
    return run, new, text, before


def test_the_run_is_left_as_it_is(erased: Erased) -> None:
    run, _, text, before = erased
    assert files(run) == before
    assert f"delete {run}" in text and "no certificate" in text


def test_nothing_of_the_run_is_in_the_new_one(erased: Erased) -> None:
    """No earlier round, no weights, no reconstruction and no moments of gradients."""
    run, new, _, before = erased
    held = files(new)
    assert [p.name for p in (new / "reconstructions").iterdir()] == ["round_002"]
    assert not {*(p.name for p in (new / "checkpoints").glob("*e_step*"))}
    old = {content for name, content in before.items() if name.startswith(("recon", "check"))}
    assert not old & set(held.values())
    x, y = (diffem.load(folder).posterior.posterior for folder in (run, new))
    assert isinstance(x, DenoiserPosterior) and isinstance(y, DenoiserPosterior)
    for a, b in zip(x.denoiser.parameters(), y.denoiser.parameters(), strict=True):
        assert not torch.equal(a, b) or not a.any()
    checkpoint = load_checkpoint(new / "checkpoints" / "last.ckpt")
    assert not any(optimizer["state"] for optimizer in checkpoint["optimizer_states"])
    assert str(new) not in str(list(new.parent.glob(".*tmp*")))


def test_its_measurements_lack_the_rows(erased: Erased) -> None:
    run, new, _, _ = erased
    parts = []
    for folder in (run, new):
        weights = read_weights(folder / "checkpoints" / "posterior.safetensors")
        cfg = compose_finished(folder, weights)
        train, _ = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
        parts.append((train, weights.about.size))
    (train, n), (left, m) = parts
    assert (n, m) == (60, 57) == (len(train), len(left))
    kept = [row for row in range(60) if row not in WITHDRAWN]
    assert torch.equal(left.select(slice(None)).y, train.select(torch.tensor(kept)).y)


def test_it_is_a_run_like_any_other(erased: Erased, tmp_path: Path) -> None:
    _, new, text, _ = erased
    assert is_finished(new)
    result = diffem.load(new)
    assert result.prior is not None and result.posterior.sample(torch.zeros(2, 8, 8)).shape[1] == 2
    assert said(report.main, new, "--out", tmp_path / "page.html")[0] == 0
    assert f"wrote {new / 'summary.json'}" in text and ".tmp" not in text
    assert "resuming" not in text and not (new / ".hydra" / "resumed.jsonl").exists()
    more = shutil.copytree(new, tmp_path / "more")
    run_here(more, *SMALL[1:], "em.rounds=3", "withdrawn=${run_dir}/rows_withdrawn.txt")
    rounds = json.loads((more / "summary.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [2, 3]


def test_the_record_says_what_was_done(erased: Erased) -> None:
    run, new, text, _ = erased
    record = json.loads((new / "erased.json").read_text())
    assert len({*record["erased"]}) == 3 and all(len(h) == 64 for h in record["erased"])
    assert record["target"] == "heldout" and len(record["lambda"]) == record["steps"] == 3
    spent = record["evaluations"]
    # Each step: 8 rows that stay and 32 erased ones forward and backward, and 32 unseen ones
    # forward. Two steps of the sampler draw the 3 erased ones before each step, and the unseen
    # ones, half of 512, in 11 chunks of 24.
    assert spent["erasing"] == 3 * (2 * 8 + 3 * 32 + 2 * 3) + 2 * 264
    assert spent["redrawing"] > 0 and spent["share"] > 0
    for when in ("before", "after"):
        found = record["audit"][when]
        assert 0 <= found["auc"] <= 1 and found["leaks"] == (
            abs(found["auc"] - 0.5) > 2 * found["auc_error"]
        )
    assert record["delete"] == str(run) and "audit before: AUC" in text
    assert record["held_out"] == 0 and "held-out measurements among" not in text


def test_a_second_erasure_names_rows_as_the_first_one(erased: Erased, tmp_path: Path) -> None:
    """Rows 3, 4 and 40 of 60 are gone: row 5 is at place 3."""
    run, new, _, _ = erased
    rows = run.parent / "rows.txt"
    code, text = said(erase.main, new, "--rows", rows, "--out", tmp_path / "again")
    assert code == 1 and "--rows: 3 is no measurement of the data; the first one is 0" in text
    weights = read_weights(new / "checkpoints" / "posterior.safetensors")
    cfg = compose_finished(new, weights)
    train, _ = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
    assert rows_named(train, ["5", "39", "41", "59"]).tolist() == [3, 37, 38, 56]


def test_rows_of_files_are_named_as_they_are(tmp_path: Path) -> None:
    """Also held-out ones are withdrawn; of recorded masks those of the others alone are drawn."""
    rng = np.random.default_rng(0)
    y = rng.normal(0, 0.5, (200, 8, 8)).astype(np.float32)
    y[:, 0, 0] = np.nan
    y[17, :4] = np.nan  # a mask of its own
    np.save(tmp_path / "y.npy", y)
    given = ("dataset=measurements", f"dataset.path={tmp_path / 'y.npy'}", "dataset.range=[-1,1]",
             "corruption=mask", "corruption.noise.std=0.3", "dataset.heldout=0.3")  # fmt: skip
    run = run_here(tmp_path / "run", *given)
    (tmp_path / "rows.txt").write_text("17\n" + "\n".join(map(str, range(20, 30))) + "\n")
    code, text = said(
        erase.main, run, "--rows", tmp_path / "rows.txt", "--out", tmp_path / "new", "--steps", 1
    )
    assert code == 0, text
    record = json.loads((tmp_path / "new" / "erased.json").read_text())
    held_out = record["held_out"]
    assert held_out > 0 and held_out + len(record["erased"]) == 11
    assert f"held-out measurements among the withdrawn ones: {held_out}; nothing was" in text
    weights = read_weights(tmp_path / "new" / "checkpoints" / "posterior.safetensors")
    cfg = compose_finished(tmp_path / "new", weights)
    sets = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
    assert sum(map(len, sets)) == 189
    assert weights.recorded is not None and not (weights.recorded.flatten(1).mean(1) < 0.9).any()
    code, text = said(
        erase.main, run, "--rows", tmp_path / "rows.txt", "--out", tmp_path / "new", "--steps", 1
    )
    assert code == 1 and "exists and is not empty" in text


@pytest.mark.parametrize(
    ("rows", "out", "sentence"),
    [
        ("60\n", "a", "60 is no measurement of the data; the first one is 0"),
        ("\ufeff60\n", "a", "--rows: 60 is no measurement"),  # after the mark of the encoding
        ("# nothing\n", "b", "names no measurement; give one name a line"),
        (None, "c", "cannot be read"),
        ("\n".join(map(str, range(59))), "d", "too few measurements are left; withdraw fewer"),
    ],
)
def test_what_cannot_be_erased_is_refused(
    erased: Erased, tmp_path: Path, rows: str | None, out: str, sentence: str
) -> None:
    run, *_ = erased
    file = tmp_path / "rows.txt"
    if rows is not None:
        file.write_text(rows)
    code, text = said(erase.main, run, "--rows", file, "--out", tmp_path / out)
    assert code == 1 and sentence in text and "\n" not in text.strip()
    assert not (tmp_path / out).exists()


def unlearned(*_: object, **__: object) -> None:
    raise AssertionError("the work began")


def test_groups_of_which_one_is_withdrawn_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Balance was refused after minutes of unlearning."""
    run = run_here(tmp_path / "run", "dataset.groups=[[4]]", "balance=oversample")
    weights = read_weights(run / "checkpoints" / "posterior.safetensors")
    cfg = compose_finished(run, weights)
    train, _ = build_finished_data(cfg, build(cfg.dataset, "dataset"), weights)
    assert train.groups is not None
    rows = (train.groups == 0).nonzero().flatten().tolist()
    assert 0 < len(rows) < 60
    (tmp_path / "rows.txt").write_text("\n".join(map(str, rows)))
    monkeypatch.setattr(Source, "audit", unlearned)
    out = ("--rows", tmp_path / "rows.txt", "--out", tmp_path / "new")
    code, text = said(erase.main, run, *out)
    assert code == 1 and "balance=oversample needs at least two groups" in text
    assert [path.name for path in tmp_path.iterdir()] in (["run", "rows.txt"], ["rows.txt", "run"])


def test_a_full_disk_is_refused_before_any_work(
    erased: Erased, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = erased[0], erased[0].parent / "rows.txt"
    full = SimpleNamespace(free=100_000)  # less than the weights
    monkeypatch.setattr("diffem.data.format.shutil.disk_usage", lambda _: full)
    monkeypatch.setattr(Source, "audit", unlearned)
    code, text = said(erase.main, run, "--rows", rows, "--out", tmp_path / "new")
    assert code == 1 and "0.0001 GB are free; free some, or choose another disk" in text
    assert not any(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_refused_before_any_work(
    erased: Erased, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(erased[0], tmp_path / "run")
    for file in (run / "checkpoints").glob("last*"):
        file.unlink()
    monkeypatch.setattr(Source, "audit", unlearned)
    rows = erased[0].parent / "rows.txt"
    code, text = said(erase.main, run, "--rows", rows, "--out", tmp_path / "new")
    assert code == 1 and "no intact checkpoint is left" in text


@pytest.mark.parametrize("setting", ["em.refresh=0.5", "em.warm_start=0.5"])
def test_a_file_by_which_reconstructions_would_stay_is_refused(
    erased: Erased, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """Overrides of the run were replaced; what an experiment's file sets was not."""
    compose = erase_run.compose_run
    monkeypatch.setattr(erase_run, "compose_run", lambda given, f: compose([setting, *given], f))
    monkeypatch.setattr(Source, "audit", unlearned)
    rows = erased[0].parent / "rows.txt"
    code, text = said(erase.main, erased[0], "--rows", rows, "--out", tmp_path / "new")
    assert code == 1 and "sets em.refresh or em.warm_start" in text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rounds", [3, [], {"a": 1}, [{"nfe": "many", "optimizer_steps": 1}]])
def test_a_damaged_summary_is_refused(erased: Erased, tmp_path: Path, rounds: object) -> None:
    """It ended in a traceback, at once or after minutes of unlearning."""
    run = shutil.copytree(erased[0], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"rounds": rounds}))
    rows = erased[0].parent / "rows.txt"
    code, text = said(erase.main, run, "--rows", rows, "--out", tmp_path / "new")
    assert code == 1 and "summary.json does not say what the run cost" in text


@pytest.mark.parametrize("target", ["heldout", "noise"])
def test_unseen_rows_are_the_target_that_was_chosen(
    target: str, erased: Erased, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, given = [], []
    draw, train = Source.drawn, Erasing.run
    monkeypatch.setattr(Source, "drawn", lambda *a: drawn.append(a[-1]) or draw(*a))
    monkeypatch.setattr(Erasing, "run", lambda *a, **k: given.append(a[4]) or train(*a, **k))
    rows = erased[0].parent / "rows.txt"
    out = ("--out", tmp_path / "new", "--steps", 2, "--device", "cpu", "--target", target)
    code, text = said(erase.main, erased[0], "--rows", rows, *out)
    assert code == 0, text
    assert ("target" in drawn) is (target == "heldout") is (given != [None])
    assert json.loads((tmp_path / "new" / "erased.json").read_text())["target"] == target


@pytest.mark.parametrize("given", [["--lr", 1000], ["--lr", 1000, "--target", "noise"]])
def test_a_rate_that_is_too_large_is_named(
    erased: Erased, tmp_path: Path, given: list[object]
) -> None:
    """The advice was to lower m_step.optimizer.lr, which the command does not have."""
    rows = erased[0].parent / "rows.txt"
    out = ("--out", tmp_path / "new", "--steps", 2, "--device", "cpu")
    code, text = said(erase.main, erased[0], "--rows", rows, *out, *given)
    assert code == 1
    line = text.strip().splitlines()[-1]
    assert line == "error: --lr=1000 leads to numbers that are not finite; give a lower one"
    assert not any(tmp_path.iterdir())


def test_a_run_of_other_devices_is_erased_from_on_this_one(erased: Erased, tmp_path: Path) -> None:
    """A run that was trained on several GPUs was refused, and no argument could change it."""
    run = shutil.copytree(erased[0], tmp_path / "run")
    file = run / ".hydra" / "overrides.yaml"
    more = "- trainer.devices=512\n- trainer.num_nodes=2\n- strategy=ddp\n- em.relax=2\n"
    file.write_text(file.read_text().replace("- trainer.accelerator=cpu\n", more))
    assert "num_nodes" in file.read_text()
    code, text = said(
        erase.main, run, "--rows", erased[0].parent / "rows.txt", "--out", tmp_path / "new",
        "--steps", 1, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, text
    kept = (tmp_path / "new/.hydra/overrides.yaml").read_text()
    assert "- trainer.accelerator=cpu\n" in kept and "- em.relax=2\n" in kept
    *_, row = json.loads((tmp_path / "new/rounds.json").read_text())["rounds"]
    assert row["draws"] == 1  # of each, as in every run's last round


def test_a_run_in_float16_is_erased_from_without_a_gpu(
    erased: Erased, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused with the advice to give another trainer.precision, which nothing takes."""
    run, of = shutil.copytree(erased[0], tmp_path / "run"), erase_source.Source.of

    def in_float16(*arguments: Any, **named: Any) -> Source:
        source = of(*arguments, **named)
        sampling = replace(source.result.posterior.sampling, precision="16-mixed")
        source.result.posterior.sampling = sampling
        return source

    monkeypatch.setattr(Source, "of", in_float16)
    file = run / ".hydra" / "overrides.yaml"
    file.write_text(file.read_text().replace("precision=32-true", "precision=16-mixed"))
    assert "16-mixed" in file.read_text()
    code, text = said(
        erase.main, run, "--rows", erased[0].parent / "rows.txt", "--out", tmp_path / "new",
        "--steps", 1, "--device", "cpu:3",  # which is the CPU, as for other commands
    )  # fmt: skip
    assert code == 0, text
    overrides = (tmp_path / "new/.hydra/overrides.yaml").read_text()
    assert f"- trainer.precision={precision_of('auto', 'cpu')}\n" in overrides


def test_what_is_said_names_the_folder_that_the_run_will_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings and errors named a temporary one that was gone."""
    after, shown = tmp_path / "new", io.StringIO()
    with (
        pytest.raises(UserError) as error,
        new_folder(after) as before,
        erase.named(before, after, shown),
    ):
        print(f"wrote {before}")
        warn(f"look at {before / 'figures'}")
        raise UserError(f"{before} is full")
    assert str(error.value) == f"{after} is full" and shown.getvalue() == f"wrote {after}\n"
    assert capsys.readouterr().err == f"warning: look at {after / 'figures'}\n"


def test_the_new_run_knows_its_own_folder(erased: Erased) -> None:
    """Its page showed a command on a folder of a temporary name that was gone."""
    for file in erased[1].rglob("*"):
        if file.suffix in (".html", ".json", ".jsonl", ".yaml"):
            assert ".tmp" not in file.read_text(), file
    assert f">{erased[1]}</p>" in (erased[1] / "report.html").read_text()


def test_a_folder_in_the_run_is_refused(erased: Erased) -> None:
    """The run is to be deleted, and the new one with it."""
    run, *_ = erased
    code, text = said(erase.main, run, "--rows", run.parent / "rows.txt", "--out", run / "new")
    assert code == 1 and "which is to be deleted; give another folder" in text
    assert not (run / "new").exists()


def test_other_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("1\n")
    code, text = said(
        erase.main, tmp_path, "--rows", tmp_path / "rows.txt", "--out", tmp_path / "new"
    )
    assert code == 1 and "holds no finished run" in text


def test_the_audit_knows_a_ranking() -> None:
    """Below, above, and on both sides, against the area by counting."""
    low, high = torch.arange(4.0), torch.arange(4.0, 10.0)
    assert membership_auc(low, high)[0] == 1.0 and membership_auc(high, low)[0] == 0.0
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0, 3.0])
    assert membership_auc(a, b)[0] == pytest.approx((1 + 0 + 1 + 0.5 + 0 + 1) / 6)
    # Of random ranks the area has this standard deviation.
    gen = torch.Generator().manual_seed(0)
    drawn = [
        membership_auc(*torch.randn(30, generator=gen).split([10, 20]))[0] for _ in range(800)
    ]
    error = membership_auc(low.repeat(3)[:10], high.repeat(4)[:20])[1]
    assert np.std(drawn) == pytest.approx(error, rel=4.5 / (2 * 800) ** 0.5)
