"""The same training loop by hand alone, in Fabric, in accelerate, on two ranks, and in Lightning's manual mode.

`train(method, situation, place)` gives the weights at the end.
"""

from __future__ import annotations

import copy

import torch
from matrix_reference import (
    BROKEN,
    CLIP,
    FISHER,
    PERTOPT,
    RHO,
    SKIPPED,
    STEPS,
    SWITCH,
    base,
    batch,
    epoch_of,
    flat,
    micro_batches,
    net_for,
    switch,
)  # fmt: skip
from torch.nn.functional import cross_entropy

from flatminima.optim import SAM, FisherTrace, PertOPT


def wrap(method, optimizer):
    """The optimizer as a user makes it."""
    return {
        "PertOPT": lambda: PertOPT(optimizer, **PERTOPT), "SAM": lambda: SAM(optimizer, rho=RHO),
        "FisherTrace": lambda: optimizer,
    }[method]()  # fmt: skip


class Plain:
    """No framework."""

    def prepare(self, model, opt):
        return model, opt

    def backward(self, loss):
        loss.backward()

    def mine(self, tensor):
        return tensor

    def whole(self, model):
        return flat(model)

    def save(self, model, opt):
        return copy.deepcopy((model.state_dict(), opt.state_dict()))

    def load(self, saved, model, opt):
        model.load_state_dict(saved[0])
        opt.load_state_dict(saved[1])


class Fabric(Plain):
    def prepare(self, model, opt):
        from lightning.fabric import Fabric as Theirs

        self.fabric = Theirs(accelerator="cpu", devices=1)
        return self.fabric.setup(model, opt)

    def backward(self, loss):
        self.fabric.backward(loss)


class Accelerate(Plain):
    def prepare(self, model, opt):
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=True)
        return self.accelerator.prepare(model, opt)

    def backward(self, loss):
        self.accelerator.backward(loss)


class Ranks(Plain):
    """Half of each micro-batch on each of two ranks."""

    def __init__(self, rank):
        self.rank = rank

    def mine(self, tensor):
        return tensor.chunk(2)[self.rank]


class DDP(Ranks):
    def prepare(self, model, opt):
        return torch.nn.parallel.DistributedDataParallel(model), opt


class Run:
    """One training: the network, the optimizer, and what an iteration needs."""

    def __init__(self, method, situation, place, model=None):
        self.method, self.situation, self.place = method, situation, place
        self.build(net_for(situation) if model is None else model)

    def build(self, model):
        opt = wrap(self.method, self.make_base(model))
        self.model, self.opt = self.place.prepare(model, opt)
        if self.method == "FisherTrace":
            self.fisher = FisherTrace(self.model, **FISHER)

    def make_base(self, model):
        return base(model)

    def loss(self, x, y, broken=False):
        if broken:
            raise KeyboardInterrupt
        if self.situation == "evaluation inside":
            self.evaluate(x)
        z = self.model(x)
        return cross_entropy(z, y)

    def passes(self, micro, broken):
        if self.method == "FisherTrace":
            calls = []

            def loss_fn(z, y):
                calls.append(1)
                if broken and len(calls) == 4:
                    raise KeyboardInterrupt
                if self.situation == "evaluation inside":
                    self.evaluate(micro[0][0])
                return cross_entropy(z, y)

            for x, y in micro:
                self.fisher.backward(loss_fn, x, y, scale=1 / len(micro))
            return
        if self.method == "SAM":
            for x, y in micro:
                self.place.backward(self.loss(x, y) / len(micro))
            with self.opt.perturbed():
                for x, y in micro:
                    self.place.backward(self.loss(x, y, broken) / len(micro))
            return
        for x, y in micro:
            with self.opt.perturbed():
                self.place.backward(self.loss(x, y, broken) / len(micro))

    def iteration(self, t):
        """One batch."""
        if t == SWITCH:
            switch(self.model, self.situation)
        if self.method == "PertOPT":
            self.opt.epoch = epoch_of(t)
        x, y = batch(t)
        micro = [tuple(map(self.place.mine, pair)) for pair in micro_batches(x, y, self.situation)]
        before = self.place.whole(self.model) if self.situation == "callback before ours" else None
        try:
            self.passes(micro, broken=self.situation == "exception" and t == BROKEN)
        except KeyboardInterrupt:
            self.opt.zero_grad()
            return
        if before is not None:
            assert torch.equal(self.place.whole(self.model), before), "a hook before the step met noise"
        if self.situation == "clipping":
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        if not (self.situation == "skipped step" and t == SKIPPED):
            self.opt.step()
        self.opt.zero_grad()
        with torch.no_grad():
            self.model(x)  # after which FSDP2's root keeps its weights gathered: the next noise must reach them

    def evaluate(self, x):
        self.model.eval()
        try:
            self.model(x)
        finally:
            self.model.train()

    def resume(self):
        """Into fresh objects, as a new process has them."""
        saved = self.place.save(self.model, self.opt)
        self.build(net_for(self.situation))
        self.place.load(saved, self.model, self.opt)

    def train(self):
        for t in range(STEPS * (2 if self.situation == "trained twice" else 1)):
            if self.situation == "resume" and t == SWITCH:
                self.resume()
            self.iteration(t)
        return self.place.whole(self.model)


def train(method, situation, place):
    """Weights at the end, (n,) float64."""
    return Run(method, situation, place).train()
