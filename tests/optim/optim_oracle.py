"""The papers' pseudo-code in plain NumPy float64, line for line, on a network with its gradient written out by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

SHAPES = ((5, 3), (5,), (2, 5), (2,))
SIZE = sum(int(np.prod(s)) for s in SHAPES)


def data(seed=0):
    """Twelve samples of three features, two classes, three batches of four."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((12, 3))
    y = (x[:, 0] + 0.5 * rng.standard_normal(12) > 0).astype(int)
    return x, y


def batches(x, y, steps):
    for t in range(steps):
        rows = slice(4 * (t % 3), 4 * (t % 3) + 4)
        yield x[rows], y[rows]


def start(seed=1):
    return np.random.default_rng(seed).standard_normal(SIZE) * 0.7


def unpack(w):
    out, at = [], 0
    for shape in SHAPES:
        n = int(np.prod(shape))
        out.append(w[at : at + n].reshape(shape))
        at += n
    return out


def loss_and_gradient(w, x, y):
    """Mean cross-entropy of tanh network 3-5-2, and its gradient, (SIZE,)."""
    w1, b1, w2, b2 = unpack(w)
    a = np.tanh(x @ w1.T + b1)
    z = a @ w2.T + b2
    z = z - z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    n = len(y)
    loss = -np.log(p[np.arange(n), y]).mean()
    dz = p.copy()
    dz[np.arange(n), y] -= 1
    dz /= n
    da = dz @ w2 * (1 - a**2)
    return loss, np.concatenate([(da.T @ x).ravel(), da.sum(0), (dz.T @ a).ravel(), dz.sum(0)])


class SGD:
    """torch's: v = m v + g (v = g at first), w -= lr v."""

    def __init__(self, lr=0.2, momentum=0.9):
        self.lr, self.m, self.v = lr, momentum, None

    def __call__(self, w, g):
        self.v = g if self.v is None else self.m * self.v + g
        return w - self.lr * self.v


class Adam:
    """Kingma and Ba 2015, Algorithm 1, with AdamW's decoupled decay."""

    def __init__(self, lr=0.05, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
        self.lr, self.b1, self.b2, self.eps, self.decay = lr, b1, b2, eps, decay
        self.m = self.v = 0.0
        self.t = 0

    def __call__(self, w, g):
        self.t += 1
        w = w * (1 - self.lr * self.decay)
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return w - self.lr * m / (np.sqrt(v) + self.eps)


def sigma_of(h, h_prev, w, w_prev, g, epoch, eta, gamma, eps, beta2):
    """Wang et al. 2018, Algorithm 1, the lines under `if t > 0`."""
    rho = np.abs(h - h_prev) / np.linalg.norm(w - w_prev)
    kappa = gamma / np.log(1 + epoch) * np.abs(w_prev) + eps
    sigma = np.minimum(1 / (np.log(1 + epoch) * np.sqrt(eta * (h + rho * kappa))), kappa)
    return rho, kappa, sigma * (np.abs(g) < beta2)


def pertopt(w, opt, noise, steps, steps_per_epoch, eta, gamma, eps, beta1, beta2):
    """Algorithm 1. noise: t -> numbers in (-1, 1). Returns weights, and sigmas by step."""
    x, y = data()
    h = np.zeros_like(w)
    h_prev = w_prev = g = None
    sigmas = []
    for t, (xb, yb) in enumerate(batches(x, y, steps)):
        sigma = np.zeros_like(w)
        if t > 0:
            epoch = 1 + t // steps_per_epoch
            sigma = sigma_of(h, h_prev, w, w_prev, g, epoch, eta, gamma, eps, beta2)[2]
        sigmas.append(sigma)
        u = sigma * noise(t)
        g = loss_and_gradient(w + u, xb, yb)[1]
        h_prev, h = h, beta1 * h + (1 - beta1) * g**2
        w_prev, w = w, opt(w, g)
    return w, sigmas


def sam(w, opt, steps, rho, adaptive):
    """Foret et al. 2021, Algorithm 1; adaptive: Kwon et al. 2021, eq. 8, T = |w|."""
    x, y = data()
    for xb, yb in batches(x, y, steps):
        g = loss_and_gradient(w, xb, yb)[1]
        t = np.abs(w) if adaptive else np.ones_like(w)
        e = rho * t * t * g / np.linalg.norm(t * g)
        w = opt(w, loss_and_gradient(w + e, xb, yb)[1])
    return w


def fisher_trace(w, opt, steps, beta, alpha, m, max_norm):
    """Jia and Su 2020, Algorithm 1: contiguous sub-batches, detached g_i, clip after adding."""
    x, y = data()
    for xb, yb in batches(x, y, steps):
        g = loss_and_gradient(w, xb, yb)[1]
        r = np.zeros_like(w)
        for xi, yi in zip(np.array_split(xb, m), np.array_split(yb, m), strict=True):
            gi = loss_and_gradient(w, xi, yi)[1]
            r += (gi - loss_and_gradient(w - alpha * gi, xi, yi)[1]) * len(yi) / len(yb)
        g = g + beta * r
        if max_norm is not None and np.linalg.norm(g) > max_norm:
            g = g * max_norm / np.linalg.norm(g)
        w = opt(w, g)
    return w


def network(w):
    """The same network in torch, float64."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for p, value in zip(model.parameters(), unpack(w), strict=True):
            p.copy_(torch.from_numpy(value))
    return model


def weights(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def torch_batches(steps):
    x, y = data()
    return [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in batches(x, y, steps)]
