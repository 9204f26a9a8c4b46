"""PertOPT in Fabric: the block as in a plain loop, `fabric.backward` in it.

python examples/frameworks/with_fabric.py         pip install 'flatminima[lightning]'
"""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from torch.nn.functional import cross_entropy

from flatminima.data import load_tensors
from flatminima.models import mlp
from flatminima.optim import PertOPT


def main(epochs: int = 3) -> float:
    """The last batch's loss."""
    fabric = Fabric(accelerator="cpu", devices=1)
    net = mlp((64, 32, 10))
    images, labels = load_tensors("digits", "train", limit=512)
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    opt = PertOPT(torch.optim.AdamW(net.parameters(), 1e-3), steps_per_epoch=len(batches), model=net)
    model, optimizer = fabric.setup(net, opt)
    for x, y in batches * epochs:
        with optimizer.perturbed():
            loss = cross_entropy(model(x), y)
            fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


if __name__ == "__main__":
    print(f"loss {main():.3f}")
