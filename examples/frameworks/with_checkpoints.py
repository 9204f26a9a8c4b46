"""torch.distributed.checkpoint: PertOPT's state is saved and read like any optimizer's, sharded if its weights are.

python examples/frameworks/with_checkpoints.py
"""

from __future__ import annotations

import tempfile

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.functional import cross_entropy

from flatminima.data import load_tensors
from flatminima.models import mlp
from flatminima.optim import PertOPT


def make() -> tuple[nn.Module, PertOPT]:
    """A network and its optimizer, as a new process makes them."""
    net = mlp((64, 32, 10))
    return net, PertOPT(torch.optim.AdamW(net.parameters(), 1e-3), steps_per_epoch=8, model=net)


def train(net: nn.Module, opt: PertOPT) -> None:
    """One epoch."""
    images, labels = load_tensors("digits", "train", limit=512)
    for x, y in zip(images.split(64), labels.split(64), strict=True):
        with opt.perturbed():
            cross_entropy(net(x), y).backward()
        opt.step()
        opt.zero_grad()


def main() -> bool:
    """Whether a second process goes on with the same bits."""
    first, second = make(), make()
    train(*first)
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer = get_state_dict(*first)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
        model, optimizer = get_state_dict(*second)  # of a new optimizer, before its first step
        saved = {"model": model, "optimizer": optimizer}
        dcp.load(saved, checkpoint_id=folder)
        set_state_dict(*second, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    train(*first), train(*second)
    pairs = zip(first[0].parameters(), second[0].parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


if __name__ == "__main__":
    print(f"the same bits: {main()}")
