"""SAM in accelerate with accumulated gradients: a closure a micro-batch; SAM repeats those of the step at w + e.

python examples/frameworks/with_accelerate.py         pip install 'flatminima[hf]'
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from flatminima.data import load_tensors
from flatminima.models import mlp
from flatminima.optim import SAM


def main(epochs: int = 3) -> float:
    """The last batch's loss at w."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = mlp((64, 32, 10))
    model, opt = accelerator.prepare(net, SAM(torch.optim.AdamW(net.parameters(), 1e-3), rho=0.05, model=net))
    images, labels = load_tensors("digits", "train", limit=512)
    for x, y in list(zip(images.split(32), labels.split(32), strict=True)) * epochs:
        with accelerator.accumulate(model):

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                loss = cross_entropy(model(x), y)
                accelerator.backward(loss)
                return loss

            loss = opt.step(closure)
            opt.zero_grad()
    return float(loss.detach())


if __name__ == "__main__":
    print(f"loss {main():.3f}")
