"""Feature spaces: known distances, and names that say which weights were used."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffem.corruption import Denoising, GaussianNoise, Projection, make_channel
from diffem.metric import (
    LPIPS,
    Classifier,
    DINOv2,
    Evaluation,
    Extractor,
    Inception,
    distribution_scores,
    frechet,
)
from diffem.metric import dinov2 as dinov2_module
from diffem.metric import inception as inception_module
from diffem.metric import lpips as lpips_module
from diffem.metric.classifier import ClassifierNetwork, save_classifier
from diffem.metric.features import eight_bit_rgb, extract
from diffem.metric.inception import inception_score, kernel_distance
from diffem.metric.weights import read_weights
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded
from diffem.storage.atomic import sha256

TINY = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in Inception v3's form."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    class Random(source.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            pass

    with pytest.MonkeyPatch.context() as patch, seeded("inception stand-in"):
        patch.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
        network = Random("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import alexnet

    path = tmp_path_factory.mktemp("weights") / "alexnet-owt-7be5be79.pth"
    with seeded("alexnet stand-in"):
        torch.save(alexnet(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm

    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    with seeded("vit stand-in"):
        save_file(timm.create_model(TINY).state_dict(), path)
    return path


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=generator(seed)) * 2 - 1


class Moments(Extractor):
    """Two features of an image: its mean, and twice its first pixel."""

    name, num_features = "moments", 2

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.stack([x.mean(dim=1), 2 * x[:, 0]], dim=1)


def test_frechet_distance_of_gaussians_in_feature_space() -> None:
    """Features N(0, diag(1, 4)) and N(c, diag(9, 1)): |c|² + (1 - 3)² + (2 - 1)²."""
    n = 2000
    z = torch.randn(n, 2, generator=generator(1)).double()
    z = z - z.mean(dim=0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (n - 1))).T  # exactly white

    def with_features(f: Tensor) -> Tensor:  # images of two pixels that have these features
        first = f[:, 1] / 2
        return torch.stack([first, 2 * f[:, 0] - first], dim=1).view(n, 1, 1, 2)

    x = with_features(z * torch.tensor([1.0, 2.0]))
    y = with_features(z.flip(1) * torch.tensor([3.0, 1.0]) + torch.tensor([0.5, -1.0]))
    expected = 0.5**2 + 1**2 + (1 - 3) ** 2 + (2 - 1) ** 2
    assert frechet(Moments(), x, y) == pytest.approx(expected, rel=1e-4)
    # Rounding of about 1e-7 in float32 features, under a square root.
    assert frechet(Moments(), x, x) == pytest.approx(0.0, abs=1e-5)
    scores = distribution_scores([Moments()], {"x": x, "y": y}, y)
    assert scores["x"] == {"fd_moments": pytest.approx(expected, rel=1e-4)}
    assert scores["y"] == {"fd_moments": pytest.approx(0.0, abs=1e-5)}


def test_features_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(10, 1, 4, 4)
    whole = extract(Moments(), x)
    monkeypatch.setattr("diffem.metric.features.BATCH", 3)
    with torch.autocast("cpu", torch.bfloat16):  # as within a run
        torch.testing.assert_close(extract(Moments(), x), whole)


def test_eight_bits() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.5]).view(5, 1, 1, 1)
    assert eight_bit_rgb(x)[:, :, 0, 0].tolist() == [[v] * 3 for v in (0, 0, 128, 255, 255)]


def test_kernel_distance_is_the_unbiased_mmd() -> None:
    a = torch.randn(30, 4, generator=generator(2))
    b = torch.randn(30, 4, generator=generator(3)) + 0.3
    kernel = lambda u, v: (u @ v.T / 4 + 1) ** 3  # noqa: E731
    off = ~torch.eye(30, dtype=torch.bool)
    expected = kernel(a, a)[off].mean() + kernel(b, b)[off].mean() - 2 * kernel(a, b).mean()
    assert kernel_distance(a, b) == pytest.approx(float(expected), rel=1e-4)
    # With subsets of 30 out of 60 the same draw at every call.
    c = torch.randn(60, 4, generator=generator(4))
    assert kernel_distance(a, c) == kernel_distance(a, c)


def test_inception_score_of_sure_and_unsure_networks() -> None:
    """It is 1 for a network that never tells labels apart, their number for one that is sure."""
    labels = torch.arange(4000) % 4
    logits = 50 * nn.functional.one_hot(labels, 4).float()
    assert inception_score(logits * 0, nn.Identity()) == pytest.approx(1.0)
    # Monte Carlo: the shares of 4 labels in a split of n = 400 lower the score's logarithm by
    # (4 - 1) / 2n = 0.4 % in expectation; four times that.
    assert inception_score(logits, nn.Identity()) == pytest.approx(4.0, rel=1.5e-2)


def test_only_the_published_inception_yields_fid(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = Inception(str(inception_file))  # of the published name, but not of its content
    features = extract(stand_in, images(3, 1, 8, 8, seed=5))
    true = extract(stand_in, images(3, 1, 8, 8, seed=6))
    monkeypatch.setattr("diffem.metric.features.frechet_distance", lambda *_: 1.5)  # it is slow
    monkeypatch.setattr(inception_module, "frechet_distance", lambda *_: 1.5)
    assert stand_in.compare(features, true) == {"fd_inception_stand_in": 1.5}
    monkeypatch.setattr(inception_module, "PUBLISHED", sha256(inception_file)[:8])
    published = Inception(str(inception_file))
    scores = published.compare(features, true)
    assert [score.name for score in published.scores] == list(scores)
    assert scores.keys() == {"fid", "kid", "inception_score"}
    assert scores["fid"] == 1.5 and scores["kid"] == kernel_distance(features, true)
    assert 1 <= scores["inception_score"] <= 3  # of 3 images


def test_inception_takes_grey_images_as_rgb(inception_file: Path) -> None:
    network = Inception(str(inception_file))
    x = images(2, 1, 9, 9)
    torch.testing.assert_close(network(x), network(x.repeat(1, 3, 1, 1)))
    head = read_weights(inception_file)["fc.weight"]
    assert network(x).shape == (2, head.shape[1])


def test_dinov2_is_timms_network_on_normalised_images(vit_file: Path) -> None:
    import timm

    network = DINOv2(str(vit_file), model=TINY)
    assert network.name == TINY and network.num_features == 192
    reference = timm.create_model(TINY, num_classes=0).eval()
    state = {k: v for k, v in read_weights(vit_file).items() if not k.startswith("head")}
    reference.load_state_dict(state)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    x = (torch.randint(0, 256, (2, 3, 224, 224), generator=generator(7))).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(
            network(2 * x - 1), reference((x - mean) / std), rtol=1e-4, atol=1e-4
        )
    scores = distribution_scores([network], {"x": images(3, 1, 8, 8)}, images(3, 1, 8, 8, seed=1))
    assert scores["x"].keys() == {f"fd_{TINY}"}


def test_only_the_published_backbone_yields_lpips(
    alexnet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LPIPS(str(alexnet_file)).score.name == "lpips_stand_in"
    monkeypatch.setattr(lpips_module, "PUBLISHED", sha256(alexnet_file)[:8])
    assert LPIPS(str(alexnet_file)).score.name == "lpips"


def test_lpips_is_torchmetrics(alexnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics' public class, whose download is replaced by the same file."""
    import torchvision
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    def loaded(**_: object) -> nn.Module:
        network = make()
        network.load_state_dict(torch.load(alexnet_file))
        return network

    make = torchvision.models.alexnet
    lpips = LPIPS(str(alexnet_file))
    monkeypatch.setattr(torchvision.models, "alexnet", loaded)
    reference = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="mean")
    x, y = images(2, 3, 40, 40, seed=8), images(2, 3, 40, 40, seed=9)
    assert float(lpips.distance(x, y).mean()) == pytest.approx(float(reference(x, y)), rel=1e-5)
    for side in (8, 30, 31):  # from 31 pixels on as they are
        grey = images(2, 1, side, side)
        assert lpips.distance(grey, grey).tolist() == [0.0, 0.0]
        assert (lpips.distance(grey, -grey) > 0).all()


def test_classifier_gives_what_was_saved(tmp_path: Path) -> None:
    with seeded("classifier"):
        network = ClassifierNetwork((1, 8, 8), labels=10).eval()
    path = tmp_path / "made" / "digits.safetensors"
    save_classifier(path, network, {"shape": [1, 8, 8], "labels": 10})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    classifier, x = Classifier(str(path)), images(5, 1, 8, 8)
    assert torch.equal(classifier.network(x), network(x))
    assert torch.equal(network.head(extract(classifier, x)), network(x))
    evaluation, noise = Evaluation(2, 2, 2, 2, features=[classifier]), GaussianNoise(0.1)
    evaluation.fitting(make_channel(Denoising((1, 8, 8)), noise), train=9, heldout=9)
    with pytest.raises(
        UserError, match=r"images of shape \[1, 8, 8\], but dataset.shape is \[5\]"
    ):
        evaluation.fitting(make_channel(Projection((5,), rows=2), noise), train=9, heldout=9)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: Classifier(f"{p}/none"), "no classifier at .*none; train one with `diffem"),
        (lambda p: Classifier(f"{p}/noise.safetensors"), "noise.safetensors is no classifier's"),
        (lambda p: Classifier(f"{p}/other.safetensors"), "was not written by `diffem classify"),
        (lambda p: Inception(f"{p}/none"), "weights: no file at .*none; give a local file"),
        (lambda p: Inception(f"{p}/noise.pth"), "noise.pth holds no weights"),
        (lambda p: Inception(f"{p}/other.safetensors"), "does not fit Inception v3"),
        (lambda p: Inception(f"{p}/number.pth"), "holds more than tensors by name"),
        (lambda p: Inception(), "inception-2015-12-05-6726825d.pth is out of reach .no network"),
        (lambda p: LPIPS(f"{p}/other.safetensors"), "does not fit AlexNet"),
        (lambda p: LPIPS(), "alexnet-owt-7be5be79.pth is out of reach"),
        (lambda p: DINOv2(f"{p}/other.safetensors", model=TINY), "does not fit VisionTransf"),
        (lambda p: DINOv2(f"{p}/other.safetensors", model="resnet18"), "one of timm's vision"),
        (
            lambda p: DINOv2(f"{p}/other.safetensors", model="nothing"),
            "transformers, got 'nothing'",
        ),
        (lambda p: DINOv2(), "vit_large_patch14_dinov2.lvd142m is neither in the Hugging Face"),
        (lambda p: DINOv2(model="nothing"), "timm has no weights of model='nothing'"),
    ],
)
def test_weights_that_are_wrong(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    for name in ("noise.safetensors", "noise.pth"):
        (tmp_path / name).write_bytes(b"noise" * 10)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"a": 1}, tmp_path / "number.pth")
    with pytest.raises(UserError, match=sentence):
        make(tmp_path)


def test_vectors_have_no_such_features(inception_file: Path, alexnet_file: Path) -> None:
    noise = GaussianNoise(0.1)
    evaluation = Evaluation(2, 2, 2, 2, features=[Inception(str(inception_file))])
    with pytest.raises(UserError, match=r"Inception is for images .* got the shape \[5\]"):
        evaluation.fitting(make_channel(Projection((5,), rows=2), noise), train=9, heldout=9)
    evaluation = Evaluation(2, 2, 2, 2, lpips=LPIPS(str(alexnet_file)))
    with pytest.raises(UserError, match=r"metric\.lpips needs images .* shape \[2, 8, 8\]"):
        evaluation.fitting(make_channel(Denoising((2, 8, 8)), noise), train=9, heldout=9)


def test_dinov2_has_the_name_of_its_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinov2_module, "hub_file", Path)
    assert DINOv2().name == "dinov2"
    assert DINOv2(model=f"{TINY}.augreg_in21k").name == f"{TINY}_augreg_in21k"
