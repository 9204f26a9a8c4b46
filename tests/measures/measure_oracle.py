"""Truth for the tests of the measures: small float64 networks and what they are made of, one sample at a time."""

import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from flatminima import Minimum

torch.set_num_threads(1)  # the networks are tiny: threads cost more than they give

VECTORS = {v["id"]: v for v in json.loads((Path(__file__).parent / "vectors.json").read_text())["vectors"]}


def vector(name):
    """(inputs, expected) of one reference vector."""
    return VECTORS[name]["inputs"], VECTORS[name]["expected"]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randomise(model, seed, scale=0.6):
    """The model in float64 with normal weights of its own generator, in eval mode."""
    model = model.double().eval()
    source = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=source, dtype=torch.float64))
    return model


def blobs(n, size, classes, seed=0):
    """Inputs (n, size) float64 and labels (n,)."""
    source = generator(seed)
    x = torch.randn(n, size, generator=source, dtype=torch.float64)
    return x, torch.randint(0, classes, (n,), generator=source)


def mlp(*widths, bias=True, seed=1):
    """A ReLU network of these widths."""
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(a, b, bias=bias)]
    return randomise(nn.Sequential(*layers), seed)


def cnn(seed=2):
    """Two convolutions, a BatchNorm with statistics of its own, average pooling and a head; 7 x 6 images."""
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 3, (2, 3), groups=1, bias=False),
        nn.ReLU(), nn.AvgPool2d((1, 1)), nn.Flatten(), nn.Linear(9, 3),
    )  # fmt: skip
    net = randomise(net, seed)
    norm.running_mean.copy_(torch.linspace(-0.5, 0.5, 4))
    norm.running_var.copy_(torch.linspace(0.5, 2.0, 4))
    return net


def fitted(model, x):
    """A Minimum whose labels are the network's own answers, on the inputs where that margin is positive."""
    with torch.no_grad():
        two = model(x).topk(2).values
        x = x[two[:, 0] - two[:, 1] > 1e-3]  # a network without biases answers 0 where all its units are off
        return Minimum(model, (x, model(x).argmax(1)), batch_size=7)


def gradients(model, x, y, loss=F.cross_entropy):
    """Per-sample gradients (n, W), one backward pass a sample."""
    rows = []
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()))]))
    return torch.stack(rows)


def hessian(model, x, y, loss=F.cross_entropy):
    """Hessian (W, W) of the mean loss, row by row."""
    tensors = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss(model(x), y), tensors, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.autograd.grad(g, tensors, retain_graph=True, allow_unused=True, materialize_grads=True) for g in flat]
    return torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])


class Point(nn.Module):
    """A network whose output is its weights, so that a loss of the output is any function of the weights."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), -1) + 0 * x


def landscape(function, w):
    """A Minimum at weights w of `function` (batch, W) -> (batch,)."""
    x = torch.zeros(4, len(w), dtype=torch.float64)
    return Minimum(Point(w), (x, torch.zeros(4)), lambda output, target: function(output), batch_size=3)
