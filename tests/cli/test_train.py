"""The command as a user runs it: what it writes, on one and two processes, to W&B."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from command import SHORT, train
from wandb_file import config, history, step_metrics

from diffem.cli.classify import Training, classify
from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.metric import diversity_metrics, ssim

CANARY = "canary-3f9c"
SECRETS = (
    f"+note.api_key={CANARY}-given",
    "+note.where=${oc.env:CANARY}",
    "+note.too=${note.where}",
)
RUN = (*SHORT, "init.iterations=3", "init.components=10", *SECRETS)  # a round 0 to go on from
COLUMNS = {
    "round",
    "psnr",
    "ssim",
    "psnr_mean",
    "residual_chi2",
    "diversity",
    "effective_rank",
    "posterior_std",
    "e_step_seconds",
    "m_step_seconds",
}


def read_summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run with W&B offline, which most tests look at."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    done = train(
        *RUN, f"run_dir={run_dir}", "logger=wandb",
        WANDB_MODE="offline", CANARY=CANARY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("summary.json", "metrics.jsonl", "figures", "reconstructions", "checkpoints"):
        assert f"wrote {run_dir / name}" in done.stdout
    assert not any(w in done.stderr for w in ("Traceback", "Warning", "GPU available", "AMP"))
    return run_dir


def test_summary(run_dir: Path) -> None:
    summary = read_summary(run_dir)
    assert summary["dataset"] == "digits" and summary["corruption"] == "mask"
    assert summary["method"] == "diffem" and summary["seed"] == 0
    assert summary["devices"]["devices"] == 1 and summary["wall_seconds"] > 0
    assert {"torch", "lightning", "azula"} <= summary["versions"].keys()
    assert [row["round"] for row in summary["rounds"]] == [0, 1, 2]
    assert all(COLUMNS <= row.keys() for row in summary["rounds"])
    final = summary["final"]
    assert {"psnr", "ssim", "psnr_mean", "residual_chi2", "init_psnr_mean"} <= final.keys()
    truth = diversity_metrics(Digits([1, 8, 8], train=200).load().heldout[:20])
    assert {name: final[f"{name}_truth"] for name in truth} == pytest.approx(truth)
    assert {"measurement_energy_distance", "measurement_energy_distance_truth"} <= final.keys()
    assert (
        final["diversity"] > 0
        and final["posterior_std"] > 0
        and 1 <= final["effective_rank"] <= 19
    )
    assert final["prior"]["frechet_pixels"] > final["prior"]["frechet_pixels_truth"] > 0


def test_round_0_is_scored_from_the_store(run_dir: Path) -> None:
    """PSNR, SSIM and χ² of the summary, computed again from the files alone."""
    chunks = sorted((run_dir / "reconstructions" / "round_000").glob("*.npy"))
    x = np.concatenate([np.load(chunk) for chunk in chunks])
    truth = Digits([1, 8, 8], train=200).load().train
    assert x.shape == tuple(truth.shape)
    mse = ((x - truth.numpy()) ** 2).mean(axis=(1, 2, 3))
    row = read_summary(run_dir)["rounds"][0]
    assert row["psnr"] == pytest.approx(float((10 * np.log10(4 / mse)).mean()), abs=1e-4)
    similarity = ssim(torch.from_numpy(x), truth)
    assert row["ssim"] == pytest.approx(float(similarity.mean()), abs=1e-5)
    measurements = simulate_measurements(
        truth, make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.05)), seed=0, split="train"
    )
    y, mask, _ = (field.numpy() for field in measurements.select(slice(None)))
    chi2 = ((mask * (x - y) / 0.05) ** 2).sum(axis=(1, 2, 3)) / mask.sum(axis=(1, 2, 3))
    assert row["residual_chi2"] == pytest.approx(float(chi2.mean()), rel=1e-4)
    flat = x.reshape(len(x), -1).astype(np.float64)
    assert row["diversity"] == pytest.approx(float(flat.var(axis=0, ddof=1).mean() ** 0.5))
    p = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False) ** 2
    p = p[p > 1e-12 * p[0]] / p.sum()
    assert row["effective_rank"] == pytest.approx(float(np.exp(-(p * np.log(p)).sum())))


def test_files(run_dir: Path) -> None:
    assert {p.name for p in (run_dir / ".hydra").iterdir()} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {
        "SHA256SUMS",
        "SHA256SUMS.copy",
        "best.safetensors",
        "last.ckpt",
        "last.e_step.ckpt",
        "last.e_step.previous.ckpt",
        "last.previous.ckpt",
        "posterior.safetensors",
        "prior.ckpt",
        "prior.previous.ckpt",
        "prior.safetensors",
    }
    figures = {p.name for p in (run_dir / "figures").iterdir()}
    assert {"round_000.png", "round_002.png", "heldout.png", "curves.png", "prior.png"} <= figures
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if "round" in line] == [0, 1, 2]
    assert [line["step"] for line in lines if "m_step/loss" in line] == [1, 3, 5, 7, 9, 11]


def test_wandb_offline_holds_rounds_steps_and_panels(run_dir: Path) -> None:
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    defined, rows = step_metrics(file), history(file)
    assert defined["round/*"] == "round" and defined["m_step/*"] == "step"
    rounds = [row for row in rows if "round/psnr" in row]
    assert [row["round"] for row in rounds] == [0, 1, 2]
    summary = read_summary(run_dir)["rounds"]
    assert [row["round/psnr"] for row in rounds] == pytest.approx([row["psnr"] for row in summary])
    assert all(row["round/panel/_type"] == "image-file" for row in rounds)
    media = file.parent / "files"
    assert all((media / row["round/panel/path"]).is_file() for row in rounds)
    assert [row["step"] for row in rows if "m_step/loss" in row] == [1, 3, 5, 7, 9, 11]


def test_no_file_holds_a_secret_or_the_environment(run_dir: Path) -> None:
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    given = "- +note.api_key=${oc.env:DIFFEM_NOTE_API_KEY}\n"
    assert given in (run_dir / ".hydra" / "overrides.yaml").read_text()
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    shown = config(file)
    assert (
        shown["corruption"]["rho"] == 0.5 and shown["logger"]["wandb"]["name"] == "digits-mask-0"
    )
    assert shown["note"] == {
        "api_key": "${oc.env:DIFFEM_NOTE_API_KEY}",
        "where": "${oc.env:CANARY}",
        "too": "${oc.env:CANARY}",
    }


def test_a_run_that_goes_on_is_the_same_wandb_run_and_loses_no_row(
    run_dir: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(run_dir, again, symlinks=True)
    with (again / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "m_st\n')  # as a kill may leave it
    done = train(
        f"resume={again}", "em.rounds=3", "+note.api_key=another",
        WANDB_MODE="offline", CANARY=CANARY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = sorted(again.glob("wandb/offline-run-*/run-*.wandb"))
    assert first.name == second.name  # the W&B run's name
    before, rows = history(first), history(second)
    assert [row["_step"] for row in before] == list(range(len(before)))
    told = [row["_step"] for row in rows]
    assert told == list(range(len(told)))  # the cut line made room
    assert [row["round"] for row in rows if "round/psnr" in row] == [0, 1, 2, 3]


def test_wandb_without_an_account_stays_offline(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "WANDB_API_KEY": ""}
    done = train(
        *SHORT, f"run_dir={tmp_path / 'run'}", "logger=wandb", "prior=null", **environment
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("run/wandb/offline-run-*")
    assert f"W&B: the run is kept offline; later: wandb sync {folder}" in done.stderr


def test_a_run_directory_of_another_config_is_not_touched(run_dir: Path) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in run_dir.rglob("*")}

    before = state()
    other = train(*RUN, f"run_dir={run_dir}", "corruption.rho=0.4")
    assert other.returncode == 1
    assert "holds a run of another config: corruption.rho was 0.5 and is 0.4" in other.stderr
    assert "or the same values\n" in other.stderr
    same = train(*RUN, f"run_dir={run_dir}")
    assert same.returncode == 1 and "holds a finished run" in same.stderr
    assert state() == before


def test_init_goes_on_from_another_run(run_dir: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = train(
        *(o for o in SHORT if not o.startswith("init.")),
        f"run_dir={again}",
        "init=checkpoint",
        f"init.path={run_dir}",
        "prior=null",
    )
    assert done.returncode == 0, done.stderr
    first, second = read_summary(run_dir), read_summary(again)
    assert second["final"]["prior"] is None and "init_psnr_mean" not in second["final"]
    # Its round 0 is drawn by the other run's last posterior, whose mean the row of the last round
    # is of too: equal but for the noise of 16 images' PSNR (about 2 dB each).
    assert second["rounds"][0]["psnr_mean"] == pytest.approx(
        first["rounds"][-1]["psnr_mean"], abs=4 * 2 / 16**0.5
    )
    assert second["rounds"][0]["psnr"] < first["rounds"][-1]["psnr"] - 4  # which the guard kept


def test_two_processes_reconstruct_every_observation_once(tmp_path: Path) -> None:
    """Law 3: with the weights held still, one and two processes write the same bytes."""
    digests = []
    for devices in (1, 2):
        run_dir = tmp_path / str(devices)
        done = train(
            *SHORT, f"run_dir={run_dir}", "corruption=blur", "m_step.optimizer.lr=1e-18",
            "trainer.accelerator=cpu", f"trainer.devices={devices}",
            OMP_NUM_THREADS="1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        manifests = [
            json.loads(
                (run_dir / "reconstructions" / f"round_{k:03d}" / "manifest.json").read_text()
            )
            for k in range(3)
        ]
        digests.append([(m["weights_sha256"], m["chunks"]) for m in manifests])
        rows = [np.load(p) for p in (run_dir / "reconstructions/round_002").glob("*.npy")]
        assert sum(len(r) for r in rows) == 200 and not list(run_dir.rglob("*.tmp*"))
        assert read_summary(run_dir)["devices"]["devices"] == devices
        assert done.stdout.count("summary.json") == 1  # the second process is silent
    assert digests[0] == digests[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_batch_that_two_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    odd = train(
        *SHORT,
        f"run_dir={tmp_path / 'odd'}",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "em.batch_size=9",
    )
    assert odd.returncode == 1
    assert (
        "error: em.batch_size must be a multiple of the number of devices, 2, got 9" in odd.stderr
    )
    assert "Traceback" not in odd.stderr


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=supervised",),
        (
            "corruption=downsample",
            "corruption/noise=poisson_gaussian",
            "sampler=multistep",
            "init=measurement",
        ),
        ("corruption=denoising", "sampler=heun", "init=clean", "logger=csv"),
        ("sampler=pc", "logger=tensorboard", "em.steps_per_round=null", "em.epochs_per_round=1"),
    ],
    ids=lambda o: " ".join(o),
)
def test_choices_run(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    dropped = "init." if any(o.startswith("init=") for o in overrides) else ()
    kept = [o for o in SHORT if not o.startswith(dropped)]
    done = train(*kept, *overrides, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert ("LEARNS FROM CLEAN IMAGES" in done.stderr) == ("method=supervised" in overrides)
    assert len(read_summary(tmp_path / "run")["rounds"]) == 3


def test_scores_in_feature_spaces_of_local_files(tmp_path: Path) -> None:
    """A classifier of the data set, and LPIPS on a backbone that is not the published one."""
    classifier, alexnet = tmp_path / "digits.safetensors", tmp_path / "alexnet.pth"
    classify("digits", classifier, Training(epochs=2, seed=0))
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), alexnet)
    run_dir = tmp_path / "run"
    done = train(
        *SHORT, "metric=classifier", f"run_dir={run_dir}", "em.rounds=1",
        f"metric.features.0.path={classifier}",
        f"metric.lpips={{_target_:diffem.metric.LPIPS,weights:{alexnet}}}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    final = read_summary(run_dir)["final"]
    assert final["lpips_stand_in"] > 0 and not {"lpips", "fid"} & final.keys()
    for name, row in (("held-out", final), ("prior", final["prior"])):
        assert row["fd_classifier"] > row["fd_classifier_truth"] > 0
        assert f"{name}: fd_classifier {row['fd_classifier']:.3f}" in done.stdout
