"""SAM in every step, in every fifth, and in every fifth with LookSAM's reuse: test error and passes, on digits.

python benchmarks/bench_sam_every.py         ten seeds, about a minute

400 training images, an MLP 64-128-128-10, SGD with momentum, 60 epochs of ten steps, rho = 0.2; differences to the base
are paired by seed, +- is a 95% interval (Student's t, 9 degrees of freedom).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima.data import load_tensors
from flatminima.models import mlp
from flatminima.optim import SAM

SEEDS, EPOCHS, TRAINED, BATCH = 10, 60, 400, 40
STUDENT = 2.262
METHODS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "SAM": {},
    "SAM, every 5": {"every": 5},
    "SAM, every 5, reuse 0.7": {"every": 5, "reuse": 0.7},
}


def error(options: dict[str, Any] | None, seed: int, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """(test error in percent, passes a step)."""
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=draws)
    train, test = order[:TRAINED], order[TRAINED:]
    torch.manual_seed(seed)
    model = mlp((64, 128, 128, 10))
    base = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    opt = base if options is None else SAM(base, rho=0.2, model=model, **options)
    passes = 0
    for _ in range(EPOCHS):
        for rows in train[torch.randperm(TRAINED, generator=draws)].split(BATCH):

            def closure(rows: Tensor = rows) -> Tensor:
                nonlocal passes
                passes += 1
                opt.zero_grad()
                loss = cross_entropy(model(images[rows]), labels[rows])
                loss.backward()
                return loss

            opt.step(closure)
    with torch.no_grad():
        wrong = (model(images[test]).argmax(1) != labels[test]).float().mean()
    return 100 * float(wrong), passes / (EPOCHS * TRAINED / BATCH)


def main() -> None:
    parts = [load_tensors("digits", split) for split in ("train", "test")]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    found = {name: [error(o, seed, images, labels) for seed in range(SEEDS)] for name, o in METHODS.items()}
    plain = torch.tensor([e for e, _ in found["base"]])
    for name, runs in found.items():
        gain = torch.tensor([e for e, _ in runs]) - plain
        half = STUDENT * float(gain.std()) / SEEDS**0.5
        print(
            f"{name:26} {plain.mean() + gain.mean():5.2f} %  {gain.mean():+.2f} +- {half:.2f}  {runs[0][1]:.1f} passes"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
