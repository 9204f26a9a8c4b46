"""Images a second: this library's training loop against plain DataLoader loops, PyTorch's MNIST network, SGD, batch 64.

All start from uint8 images. One loop does what torchvision's MNIST does with ToTensor and Normalize: an item becomes a
PIL image, an array, a float tensor, is normalised; a DataLoader shuffles and stacks. The other leaves PIL out. Ours
keeps normalised tensors, cuts batches, and trains channels-last, in float32 or with the forward pass in bfloat16.

Wall-clock time on two cores with two threads, as a user has it: a DataLoader prepares its images on one of them while
the other waits, unless workers do it, whose start is then paid at each epoch. Before it, processor time of one thread.
python benchmarks/bench_training.py
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flatminima.models import build
from flatminima.training import TrainConfig, train
from timing import publish, race

SAMPLES, BATCH, EPOCHS = 5_000, 64, 3
MEAN, STD = 0.1307, 0.3081  # MNIST's, as the example has them


class Images(Dataset[Any]):
    """Image by image: through PIL or not, to float, to [0, 1], normalised."""

    def __init__(self, images: Tensor, labels: Tensor, pil: bool) -> None:
        self.images, self.labels, self.pil = images, labels, pil

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.images[i]
        if self.pil:
            picture = Image.fromarray(image[0].numpy(), mode="L")
            image = torch.from_numpy(np.array(picture, copy=True)).unsqueeze(0)
        return (image.float().div(255) - MEAN) / STD, self.labels[i]


def plain(images: Tensor, labels: Tensor, pil: bool, workers: int = 0) -> None:
    """Epochs of the usual loop."""
    model = build("mnist_cnn", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(EPOCHS):
        for x, y in DataLoader(Images(images, labels, pil), BATCH, shuffle=True, num_workers=workers):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def ours(images: Tensor, labels: Tensor, precision: str) -> None:
    """Epochs of `flatminima.training`, from the stored integers."""
    x = images.float().div_(255).sub_(MEAN).div_(STD)
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, channels_last=True, precision=precision)
    train(build("mnist_cnn", seed=0), x, labels, config=config)


def main() -> int:
    images = torch.randint(0, 256, (SAMPLES, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (SAMPLES,))
    contenders = {
        "flatminima": lambda: ours(images, labels, "float32"),
        "flatminima, bfloat16": lambda: ours(images, labels, "bfloat16"),
        "DataLoader": lambda: plain(images, labels, True),
        "DataLoader without PIL": lambda: plain(images, labels, False),
    }
    workers = {"DataLoader, one worker": lambda: plain(images, labels, True, 1)}
    torch.set_num_threads(1)
    one = race(contenders, 5, time.process_time)
    torch.set_num_threads(2)
    two = race(contenders | workers, 5)
    rows: dict[str, Any] = {f"two cores, {name}: images a second": SAMPLES * EPOCHS / t for name, t in two.items()}
    rows |= {f"one thread, {name}: images a second": SAMPLES * EPOCHS / t for name, t in one.items()}
    rows["one thread, over a DataLoader loop"] = one["DataLoader"] / one["flatminima, bfloat16"]
    rows["two cores, over a DataLoader loop without PIL"] = two["DataLoader without PIL"] / two["flatminima, bfloat16"]
    claims = {
        "MNIST's network, images a second over a DataLoader loop, two cores": (
            two["DataLoader"] / two["flatminima, bfloat16"],
            ">=",
            2.0,
        ),
    }
    return 0 if publish("training", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
