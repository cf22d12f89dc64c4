"""The classifier's command: it learns, writes what the metric reads, and tells mistakes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffem.cli.classify import Training, classify, main
from diffem.data import Digits
from diffem.metric import Classifier
from diffem.metric.classifier import read_about
from diffem.metric.features import extract
from diffem.runtime.errors import UserError


def test_digits_are_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "features" / "digits.safetensors"
    main(["--dataset", "digits", "--out", str(path), "--epochs", "6"])
    assert f"wrote {path}, held-out accuracy 9" in capsys.readouterr().err.replace("\n", " ")
    classifier, digits = Classifier(str(path)), Digits([1, 8, 8], train=1500)
    predicted = classifier.network(digits.load().heldout).argmax(dim=1)
    accuracy = float((predicted == digits.labels().heldout).double().mean())
    features = extract(classifier, digits.load().train)
    # Running moments of the last 10 or so batches of 128: the variance of the mean of 32 features.
    assert float(features.var(dim=0).mean()) == pytest.approx(1.0, rel=4 * (2 / 1280) ** 0.5)
    about = read_about(path)
    assert about["accuracy"] == pytest.approx(accuracy) and accuracy > 0.9
    assert (about["dataset"], about["shape"], about["labels"]) == ("digits", [1, 8, 8], 10)


def test_a_file_that_cannot_be_written_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(UserError, match="is a folder; choose another file"):
        classify("digits", tmp_path / "a.safetensors", Training(1, 0))
    with pytest.raises(UserError, match="file cannot be written; choose another file"):
        classify("digits", tmp_path / "file" / "a.safetensors", Training(1, 0))


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "posterior.safetensors"
    save_file({"w": torch.zeros(1)}, file, metadata={"diffem": "{}"})
    before = file.read_bytes()
    with pytest.raises(UserError, match="`diffem classify` did not write, and is not replaced"):
        classify("digits", file, Training(1, 0))
    assert file.read_bytes() == before


def test_a_folder_that_takes_no_file_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"--out=/proc cannot be written .* choose another --out"):
        classify("digits", Path("/proc/x.safetensors"), Training(1, 0))


def test_a_seed_gives_the_same_weights(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        path = tmp_path / f"{name}.safetensors"
        classify("digits", path, Training(epochs=1, seed=seed), ["dataset.train=200"])
        return Classifier(str(path)).network.state_dict()["head.1.weight"]

    first = weights("a", 0)
    assert torch.equal(first, weights("b", 0)) and not torch.equal(first, weights("c", 1))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "manifold"], "--dataset manifold has no labels"),
        (["--dataset", "fog"], "dataset=fog is not a choice; dataset can be: "),
        (["--dataset", "digits", "--epochs", "0"], "--epochs must be a whole number of at least"),
        (
            ["--dataset", "digits", "--", "dataset.train=5000"],
            "dataset.train must be a whole number of at most 1796",
        ),
        (
            ["--dataset", "digits", "--out", "x.pth"],
            "--out must be a .safetensors file, got x.pth",
        ),
    ],
)
def test_mistakes(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "a.safetensors"), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and not list(tmp_path.iterdir())
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error
