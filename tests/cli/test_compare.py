"""The comparison: rows × seeds in one folder, which the same command resumes."""

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import NASTY, ROOT, SHORT, run_jobs, wait_until
from html_page import check_page

from diffem.cli import study
from diffem.cli.compare import main
from diffem.cli.comparison import compare
from diffem.cli.study import Study, methods_study, read_study
from diffem.runtime import process
from diffem.runtime.errors import UserError
from diffem.runtime.process import Job

COMMON = (*SHORT, "em.rounds=1", "prior=null")
FAKE = """
import json, os, subprocess, sys, time
from pathlib import Path

given = dict(argument.lstrip("+").split("=", 1) for argument in sys.argv[1:])
run_dir = Path(given["run_dir"])
run_dir.mkdir(parents=True)
with (run_dir.parents[1] / "order").open("a") as order:
    order.write(f"{run_dir.parent.name}{given['seed']} ")
if "hang" in given:  # with a rank of its own
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (run_dir / "pids").write_text(f"{os.getpid()} {rank.pid}")
    time.sleep(60)
if "killed" in given:
    os.kill(os.getpid(), int(given["killed"]))
if "fail" in given:
    sys.exit("error: as it was told")
end = time.monotonic() + 20
while len(list(run_dir.parents[1].glob("*/seed_*/"))) < int(given.get("together", 1)):
    if time.monotonic() > end:
        sys.exit("error: alone")
    time.sleep(0.01)
row = {"round": 0, "e_step_seconds": 1.0, "m_step_seconds": 1.0, "psnr_mean": 10.0}
final = {"psnr_mean": float(given.get("psnr", 10)), "psnr": 9.0}
score = {"label": "PSNR of mean", "unit": "dB", "digits": 2, "better": "higher", "of_mean": True}
summary = {"seed": int(given["seed"]), "wall_seconds": 1.0, "rounds": [row], "final": final}
summary["metrics"] = {"psnr_mean": score}
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
summary["environment"] = {name: os.environ.get(name) for name in names}
(run_dir / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for train.py, and the folder of a comparison."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(process, "TRAIN", (str(tmp_path / "fake.py"),))
    monkeypatch.setattr(process, "POLL_SECONDS", 0.01)
    return tmp_path / "out"


def environment(folder: Path) -> dict[str, str | None]:
    return json.loads((folder / "summary.json").read_text())["environment"]


def began(run_dir: Path) -> Path:
    """Makes the folder of a run that has begun and not finished."""
    (run_dir / ".hydra").mkdir(parents=True, exist_ok=True)
    (run_dir / ".hydra" / "config.yaml").write_text("seed: 0\n")
    return run_dir


def test_a_comparison_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / NASTY
    both = Study(
        {"diffem": ("method=diffem",), "pnp": ("method=em_pnp", "method.posterior.sweeps=2")},
        COMMON,
        (0,),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffem.cli.comparison.run_jobs", run_jobs)  # the second is started
        assert compare(Study({"diffem": ("method=diffem",)}, COMMON, (0,)), out) == []
    first = (out / "diffem" / "seed_0" / "summary.json").stat().st_mtime_ns
    unfinished = out / "pnp" / "seed_0" / "reconstructions"
    unfinished.mkdir(parents=True)  # as a killed job leaves it
    (unfinished.parent / "summary.json").write_text('{"seed": 0, ')
    began(unfinished.parent)
    assert compare(both, out) == []
    assert (out / "diffem" / "seed_0" / "summary.json").stat().st_mtime_ns == first
    with (out / "table.csv").open() as file:
        assert [row[0] for row in csv.reader(file)][1:3] == ["diffem", "pnp"]
    page = check_page(out / "report.html")
    assert [a["alt"] for a in page.all("img")] == ["heldout of diffem", "heldout of pnp"]


def test_a_failed_job_is_marked_and_the_others_run(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"a": ("+fail=1",), "b": ()}
    failed = compare(Study(rows, seeds=(0, 1)), fake)
    assert failed == [
        Job(f"a, seed {s}", fake / "a" / f"seed_{s}", ("+fail=1", f"seed={s}")) for s in (0, 1)
    ]
    error = capsys.readouterr().err
    assert re.search(
        r"^a, seed 0: failed in \d+ s: error: as it was told$", error, re.M
    )  # at once
    assert "b, seed 1: finished in" in error
    assert error.count("\nfailed: a, seed") == 2  # and at the end
    assert "0 (2 failed)" in (fake / "table.md").read_text()
    assert (fake / "order").read_text() == "a0 b0 a1 b1 "  # all rows of a seed, then the next
    compare(Study({"b": ()}, seeds=(2,)), fake)  # the folder's report holds what was there before
    table = (fake / "table.md").read_text()
    assert "0 (2 failed)" in table and "| 3 |" in table
    assert (fake / "order").read_text() == "a0 b0 a1 b1 b2 "


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (36, "signal 36")])
def test_a_killed_job_is_marked_and_the_others_run(
    number: int, name: str, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A realtime signal has no name."""
    compare(Study({"a": (f"+killed={int(number)}",), "b": ()}, seeds=(0,)), fake)
    error = capsys.readouterr().err
    assert re.search(rf"^a, seed 0: failed in \d+ s: killed by {name}", error, re.M)
    assert "b, seed 0: finished in" in error


@pytest.mark.parametrize("change", [{"rounds": 3}, {"rounds": []}, {"final": {"psnr_mean": "9"}}])
def test_a_summary_of_other_types_is_left_out_of_the_report(
    change: dict[str, object], fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is kept: its weights may be what they were."""
    study = Study({"a": (), "b": ()}, seeds=(0,))
    compare(study, fake)
    file = fake / "a" / "seed_0" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    compare(study, fake)
    assert "0 (1 failed)" in (fake / "table.md").read_text()
    assert (fake / "order").read_text() == "a0 b0 "
    assert f"{file} is damaged" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1" + 400 * "0"])
def test_absurd_numbers_are_shown(number: str, fake: Path) -> None:
    study = Study({"a": (), "b": (f"+psnr={number}",)}, seeds=(0, 1))
    compare(study, fake)
    file = fake / "a" / "seed_1" / "summary.json"
    file.write_text(file.read_text().replace("10.0", number).replace("9.0", number))
    compare(study, fake)
    assert (fake / "table.md").read_text().count("\n") == 4


def test_jobs_run_at_the_same_time(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "_cores", lambda: 7)
    monkeypatch.setattr(process, "_gpus", lambda: ["0", "1", "2", "3"])
    study = Study({"a": (), "b": (), "c": ()}, ("+together=3",), (0,))
    assert compare(study, fake, jobs=3) == []
    jobs = [environment(fake / row / "seed_0") for row in "abc"]
    assert [c["OMP_NUM_THREADS"] for c in jobs] == ["2", "2", "2"]
    assert [c["CUDA_VISIBLE_DEVICES"] for c in jobs] == ["0,3", "1", "2"]


def test_what_jobs_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "_cores", lambda: 2)
    assert process.slot_environments(1) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert process.slot_environments(3) == [{"OMP_NUM_THREADS": "1"}] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    jobs = process.slot_environments(2)
    assert [c["CUDA_VISIBLE_DEVICES"] for c in jobs] == ["5", "GPU-7"]
    assert process.slot_environments(3) == [{"OMP_NUM_THREADS": "1"}] * 3  # fewer GPUs than jobs


def test_threads_that_the_user_chose_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two comparisons of four jobs on 16 cores ran eight times four threads."""
    monkeypatch.setattr(process, "_cores", lambda: 16)
    monkeypatch.setattr(process, "_gpus", list)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert process.slot_environments(4) == [{"OMP_NUM_THREADS": "1"}] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert process.slot_environments(4) == [{"OMP_NUM_THREADS": "4"}] * 4


ONE = Study({"a": ()}, seeds=(0,))


@pytest.mark.parametrize("held", [".", "a/seed_0"])
def test_what_another_process_writes_is_not_removed(held: str, fake: Path) -> None:
    """Issue 11, B4: a second `compare` on the same folder removed a running run."""
    chunk = began(fake / "a" / "seed_0") / "reconstructions" / "round_000" / "chunk_00000.npy"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(b"x")
    with (fake / held / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written by another process"):
            compare(ONE, fake)
    assert chunk.exists()
    assert compare(ONE, fake) == []  # "wait for it"
    assert not chunk.exists()


@pytest.mark.parametrize("name", ["thesis.tex", "reconstructions/x", "run/.hydra/config.yaml"])
def test_what_no_run_has_written_is_not_removed(name: str, fake: Path) -> None:
    """Issue 11, B4: a foreign OUT/diffem/seed_0 that holds other files."""
    file = fake / "a" / "seed_0" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(UserError, match=r"is not of a run, and .* move it away"):
        compare(ONE, fake)
    assert file.read_text() == "precious"
    file.rename(fake.parent / "moved")  # the advice
    shutil.rmtree(fake / "a" / "seed_0")
    assert compare(ONE, fake) == []


def test_a_file_beside_an_unfinished_run_and_a_link_are_not_removed(fake: Path) -> None:
    thesis = began(fake / "a" / "seed_0") / "thesis.tex"
    thesis.write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex is not of a run"):
        compare(ONE, fake)
    elsewhere = fake.parent / "elsewhere"
    (fake / "a" / "seed_0").rename(elsewhere)
    (fake / "a" / "seed_0").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is no folder, where a run would be; move it away"):
        compare(ONE, fake)
    assert (elsewhere / "thesis.tex").read_text() == "precious"


def test_a_foreign_page_is_not_overwritten(fake: Path) -> None:
    fake.mkdir()
    (fake / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"report\.html is not of a comparison"):
        compare(ONE, fake)
    assert (fake / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"rows": {}}', '{"overrides": [], "rows": {"a": 1}}', "[" * 9999],
)
def test_a_damaged_record_is_refused(content: str, fake: Path) -> None:
    fake.mkdir()
    (fake / "overrides.json").write_text(content)
    with pytest.raises(UserError, match=r"overrides\.json is damaged, or of an older comparison"):
        compare(ONE, fake)
    assert (fake / "overrides.json").read_text() == content


def test_a_folder_that_cannot_be_written(fake: Path) -> None:
    """Issue 11, C2."""
    fake.write_text("a file", encoding="utf-8")
    for out in (fake, fake / "below", Path("/proc/out"), fake.parent / ("x" * 300)):
        with pytest.raises(UserError, match=r"cannot be written .*; choose another --out"):
            compare(ONE, out)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_behind(number: signal.Signals, fake: Path) -> None:
    def pids() -> list[int]:
        return [int(p) for f in fake.glob("*/seed_0/pids") for p in f.read_text().split()]

    methods = ["--methods", "diffem", "em_mmps", "--jobs", "2", "--out", str(fake)]
    code = (
        "import sys; from diffem.cli.main import run; from diffem.runtime import process; "
        f"process.TRAIN, process.GRACE_SECONDS = ({process.TRAIN[0]!r},), 0.5; run('compare')"
    )
    command = [sys.executable, "-c", code, *methods, "--", "+hang=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    comparison = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever pytest has
    )
    try:
        wait_until(lambda: len(pids()) == 4, seconds=60)
        comparison.send_signal(number)
        _, said = comparison.communicate(timeout=60)
    finally:
        comparison.kill()
    assert comparison.returncode == 128 + number
    assert said == f"stopped by {number.name}; start the same command again\n"
    assert len(pids()) == 4
    wait_until(lambda: not any(map(alive, pids())), seconds=10)  # the killed die soon, not at once
    assert (fake / "order").read_text().count("0") == 2  # no further job was started


def test_a_study_is_a_file(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = fake.parent / "study"
    studies.mkdir()
    monkeypatch.setattr(study, "STUDIES", studies)
    (studies / "small.yaml").write_text(
        "# diffem compare --study small --out runs/small\n"
        "common: [+together=1, +psnr=11]\nseeds: [3]\n"
        "rows:\n  own: [+psnr=13]\n  given: []\n"
    )
    read = read_study("small")
    assert read.rows == {"own": ("+psnr=13",), "given": ()} and read.seeds == (3,)
    with pytest.raises(SystemExit) as stop:
        main(["--study", "small", "--out", str(fake), "--seeds", "4", "5", "--", "+psnr=12"])
    assert stop.value.code == 0
    assert (fake / "order").read_text() == "own4 given4 own5 given5 "
    assert "| own | **13.00 ± 0.00** |" in (fake / "table.md").read_text()
    assert "| given | 12.00 ± 0.00 |" in (fake / "table.md").read_text()
    title = "small +together=1 +psnr=11 +psnr=12"
    assert f"<h1>{title}</h1>" in (fake / "report.html").read_text()
    for text, sentence in (
        ("rows: {a: method=b}", "rows.a must be a list of KEY=VALUE, got 'method=b'"),
        ("rows: {8: []}", "its rows must be named, numbers in quotes"),
        ("rows: {a: []}\nruns: 3", "a study has rows"),
        ("rows: {a/b: []}", "a row's name is made of letters"),
        ("rows: {a: [seed=1]}", "seed is set by --seeds, got the override 'seed=1'"),
        ("rows: {a: []}\nseeds: [a]", "its seeds must be whole numbers, got ['a']"),
        ("rows: {a: [}", "small.yaml: "),
    ):
        (studies / "small.yaml").write_text(text)
        with pytest.raises(SystemExit):
            main(["--study", "small", "--out", str(fake)])
        assert sentence in capsys.readouterr().err


def test_methods_are_rows() -> None:
    assert methods_study(["diffem"]) == Study({"diffem": ("method=diffem",)}, (), (0, 1, 2))


METHODS = ["--methods", "diffem"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "magic"], "--methods can be ambient, diffem, em_diffpir"),
        (["--study", "magic"], "got magic"),
        ([*METHODS, "--", "em.rounds=2"], "holds a comparison under 'em.rounds=1'"),
        ([*METHODS, "--", "em.rounds=1"], "holds the row diffem under 'method=em_pnp', got 'met"),
        ([*METHODS, "--", "em.rounds"], "an override is KEY=VALUE, got 'em.rounds'"),
        ([*METHODS, "--", "run_dir=a"], "run_dir is set by --out, got the override 'run_dir=a'"),
        ([*METHODS, "--jobs", "0"], "--jobs must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"diffem": {"overrides": ["method=em_pnp"], "seeds": [0]}}
    record = json.dumps({"overrides": ["em.rounds=1"], "rows": rows})
    (tmp_path / "overrides.json").write_text(record)
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ") and sentence in error
    assert (tmp_path / "overrides.json").read_text() == record


def test_one_of_methods_and_study_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [*METHODS, "--study", "mask"]):
        with pytest.raises(SystemExit) as stop:
            main(["--out", "unused", *arguments])
        assert stop.value.code == 2 and "--study" in capsys.readouterr().err
