"""What every framework must end with: the three algorithms as plain loops in torch, without a wrapper of ours.

One small convolutional network, whose weights have a memory format; two epochs of three batches; SGD with momentum.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.optim.noise import NoiseStream, unit

STEPS, PER_EPOCH, BATCH, RATE, SWITCH, SKIPPED, BROKEN = 6, 3, 8, 0.2, 3, 1, 4
RHO, CLIP = 0.3, 0.1
PERTOPT = {"eta": 1e6, "gamma": 0.6, "eps": 1e-2, "beta1": 0.9, "beta2": 0.1}  # every branch is taken
FISHER = {"beta": 4.0, "alpha": 0.05, "sub_batches": 4, "step": "alpha"}
METHODS = ("PertOPT", "SAM", "FisherTrace")
SITUATIONS = (
    "nothing special", "accumulation", "clipping", "skipped step", "exception", "resume", "dtype switch",
    "memory-format switch", "trained twice", "callback before ours", "evaluation inside",
)  # fmt: skip


class Net(nn.Module):
    """Convolution, tanh, linear; the loss too if labels are given, as transformers' models do."""

    def __init__(self, memory_format=torch.contiguous_format):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, 3)
        self.to(memory_format=memory_format)

    def forward(self, x, labels=None):
        z = self.head(torch.tanh(self.conv(x.to(self.conv.weight.dtype))).flatten(1))
        return z if labels is None else {"loss": cross_entropy(z, labels), "logits": z}


def net_for(situation):
    """float64, so that equal means equal to 1e-9."""
    net = Net(torch.channels_last if situation == "memory-format switch" else torch.contiguous_format)
    return net if situation == "dtype switch" else net.double()


def rows():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(PER_EPOCH * BATCH, 2, 4, 4, generator=g)
    return x, torch.randint(0, 3, (len(x),), generator=g)


def batch(t):
    x, y = rows()
    at = slice(BATCH * (t % PER_EPOCH), BATCH * (t % PER_EPOCH) + BATCH)
    return x[at], y[at]


def epoch_of(t):
    """From 1; a second training counts anew."""
    return 1 + t % STEPS // PER_EPOCH


def micro_batches(x, y, situation):
    return list(zip(x.chunk(2), y.chunk(2), strict=True)) if situation == "accumulation" else [(x, y)]


def switch(model, situation):
    """In the middle of training; nothing in most situations."""
    if situation == "dtype switch":
        model.double()
    if situation == "memory-format switch":
        model.to(memory_format=torch.contiguous_format)


def base(model):
    return torch.optim.SGD(model.parameters(), RATE, momentum=0.9)


def flat(model):
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


class Hand:
    """One of the algorithms; `gradients` gives the gradient that the base shall step along."""

    def __init__(self, method, model):
        self.method, self.model, self.t = method, model, 0
        self.h = self.h_before = self.w_before = self.g = None

    def at(self, micro, w=None):
        """Gradient of the mean loss of the micro-batches at w, float64."""
        here = [p.detach().clone() for p in self.model.parameters()]
        if w is not None:
            self.put(w)
        total = sum(cross_entropy(self.model(x), y) for x, y in micro) / len(micro)
        found = torch.autograd.grad(total, list(self.model.parameters()))
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), here, strict=True):
                p.copy_(value)
        return torch.cat([g.double().reshape(-1) for g in found])

    def put(self, w):
        with torch.no_grad():
            for p, piece in zip(
                self.model.parameters(), w.split([p.numel() for p in self.model.parameters()]), strict=True
            ):
                p.copy_(piece.view(p.shape))

    def gradients(self, micro, epoch):
        w = flat(self.model)
        if self.method == "SAM":
            g = self.at(micro)
            return self.at(micro, w + RHO * g / g.norm())
        if self.method == "FisherTrace":
            return sum(self.penalised(x, y) for x, y in micro) / len(micro)
        u = torch.zeros_like(w)
        if self.t > 0:
            rho = (self.h - self.h_before).abs() / (w - self.w_before).norm()
            log = math.log(1 + epoch)
            kappa = PERTOPT["gamma"] / log * self.w_before.abs() + PERTOPT["eps"]
            sigma = torch.minimum(1 / (log * (PERTOPT["eta"] * (self.h + rho * kappa)).sqrt()), kappa)
            levels = NoiseStream(0, self.t, torch.device("cpu")).take(len(w))
            u = sigma * (self.g.abs() < PERTOPT["beta2"]) * unit(levels, torch.float64)
        return self.at(micro, w + u)

    def penalised(self, x, y):
        w, total = flat(self.model), self.at([(x, y)])
        parts = list(zip(x.chunk(FISHER["sub_batches"]), y.chunk(FISHER["sub_batches"]), strict=True))
        for part in parts:
            g = self.at([part])
            total = total + FISHER["beta"] * (g - self.at([part], w - FISHER["alpha"] * g)) / len(parts)
        return total

    def step(self, optimizer, micro, clip, epoch):
        g = self.gradients(micro, epoch)
        if clip:
            g = g * min(1.0, CLIP / (float(g.norm()) + 1e-6))
        for p, piece in zip(
            self.model.parameters(), g.split([p.numel() for p in self.model.parameters()]), strict=True
        ):
            p.grad = piece.view(p.shape).to(p.dtype)
        h = torch.zeros_like(g) if self.h is None else self.h
        self.h, self.h_before = PERTOPT["beta1"] * h + (1 - PERTOPT["beta1"]) * g * g, h
        self.g, self.w_before = g, flat(self.model)
        optimizer.step()
        self.t += 1


def expected(method, situation, *, fresh_optimizer=False, stops=False):
    """Weights at the end.

    Args:
        fresh_optimizer: the second training of "trained twice" starts the optimizer afresh, as Lightning's does.
        stops: an exception ends the training.
    """
    model = net_for(situation)
    optimizer, hand = base(model), Hand(method, model)
    for t in range(STEPS * (2 if situation == "trained twice" else 1)):
        if t == SWITCH:
            switch(model, situation)
        if t == STEPS and fresh_optimizer:
            optimizer, hand = base(model), Hand(method, model)
        if situation == "exception" and t == BROKEN:
            if stops:
                break
            continue
        if situation == "skipped step" and t == SKIPPED:
            continue
        hand.step(optimizer, micro_batches(*batch(t), situation), situation == "clipping", epoch_of(t))
    return flat(model)
