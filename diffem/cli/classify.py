"""Trains the small classifier in whose features the images of one data set are compared.

    diffem classify --dataset digits --out features/digits.safetensors

It learns from the data set's CLEAN images and their labels: it is for metrics alone. The data set
is that of `diffem train dataset=NAME`, with the overrides after `--`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffem.cli.arguments import parse_classify
from diffem.cli.compose import compose_config
from diffem.cli.errors import report_user_errors
from diffem.config.build import build
from diffem.data import ImageDataset, LabelledDataset
from diffem.metric.classifier import ClassifierNetwork, is_classifier, save_classifier
from diffem.runtime.errors import UserError, usable
from diffem.runtime.progress import progress_bar, say
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator, seeded
from diffem.storage.entries import check_writable

BATCH_SIZE = 128
LR = 3e-3


@dataclass(frozen=True)
class Training:
    """How the classifier is trained."""

    epochs: int
    """Passes over the training images."""
    seed: int
    """The seed of its weights and of the order of the images."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a classifier and writes it to a file."""
    chosen = parse_classify(arguments)
    with report_user_errors():
        training = Training(check("--epochs", chosen.epochs), chosen.seed)
        accuracy = classify(chosen.dataset, chosen.out, training, chosen.overrides)
        say(f"wrote {chosen.out}, held-out accuracy {100 * accuracy:.1f} %")


def classify(name: str, out: Path, training: Training, overrides: Sequence[str] = ()) -> float:
    """Trains a classifier on a data set, writes it, and returns its held-out accuracy.

    Arguments:
        name: A file of conf/dataset.
        out: The file to write.
        training: How long, and from which seed.
        overrides: Further overrides of `dataset.…`.

    Raises:
        UserError: If the file has another ending, cannot be written or holds something else, or
            the data set has no labels.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out must be a .safetensors file, got {out}")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; choose another file as --out")
    if out.exists() and not is_classifier(out):
        raise UserError(
            f"--out={out} is a file that `diffem classify` did not write, and is not replaced; "
            "choose another"
        )
    check_writable(out.parent, "choose another file as --out")
    cfg = compose_config([f"dataset={name}", *overrides])
    dataset: ImageDataset = build(cfg.dataset, "dataset")
    if not isinstance(dataset, LabelledDataset):
        raise UserError(f"--dataset {name} has no labels to train on; choose a data set of images")
    images, labels = dataset.load(), dataset.labels()
    for split, x, shown in zip(images._fields, images, labels, strict=True):
        if len(x) != len(shown):
            raise UserError(
                f"--dataset {name}: the {split} split has {len(x)} images and {len(shown)} "
                "labels; get its files again"
            )
    network = train_network(images.train, labels.train, training)
    accuracy = float((predict(network, images.heldout) == labels.heldout).double().mean())
    about = {
        "dataset": name,
        "shape": list(images.train.shape[1:]),
        "labels": int(labels.train.max()) + 1,
        "epochs": training.epochs,
        "seed": training.seed,
        "accuracy": accuracy,
    }
    with usable("--out", out.parent):
        save_classifier(out, network, about)
    return accuracy


def train_network(x: Tensor, labels: Tensor, training: Training) -> ClassifierNetwork:
    """Returns a classifier, on the CPU, trained by AdamW on the cross-entropy.

    Arguments:
        x: Clean training images, (N, C, H, W), in [-1, 1].
        labels: What they show, (N,), int64, at least 0.
        training: How long, and from which seed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with seeded(training.seed, "classifier"):
        network = ClassifierNetwork(x.shape[1:], int(labels.max()) + 1).to(device)
    batches = math.ceil(len(x) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=training.epochs * batches
    )
    with progress_bar("classifier", training.epochs, "epochs") as advance:
        for epoch in range(training.epochs):
            loss = torch.zeros(())
            order = torch.randperm(len(x), generator=generator(training.seed, "order", epoch))
            for rows in order.tensor_split(batches):  # of like sizes, for their statistics
                logits = network(x[rows].to(device))
                loss = nn.functional.cross_entropy(logits, labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            advance(f"loss {float(loss.detach()):.3f}")
    return network.cpu().eval()


@torch.no_grad()
def predict(network: ClassifierNetwork, x: Tensor) -> Tensor:
    """Returns the most likely label of each image, (N,)."""
    return torch.cat([network(part).argmax(dim=1) for part in x.split(BATCH_SIZE)])


if __name__ == "__main__":
    main()
