"""PertOPT and SAM: time of a training step against the bare base optimizer, SAM of pytorch_optimizer, a textbook loop.

python benchmarks/bench_pertopt.py         peers: pip install --no-deps pytorch_optimizer

Processor seconds of one thread, since the machine is shared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.models import mlp, resnet20
from flatminima.optim import SAM, PertOPT
from networks import gaussian_classes
from timing import pin, publish, race

BATCH = 128
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, 1e-4),
    "Adam fused": lambda p: torch.optim.Adam(p, 1e-4, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
}


class Textbook:
    """Algorithm 1 as it reads, one expression a line, seven tensors a parameter."""

    def __init__(self, base: torch.optim.Optimizer, eta: float = 0.01, gamma: float = 0.1) -> None:
        self.base, self.eta, self.gamma, self.t = base, eta, gamma, 0
        self.parameters = [p for group in base.param_groups for p in group["params"]]
        self.h = [torch.zeros_like(p) for p in self.parameters]
        self.log = torch.log1p(torch.ones(()))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:
        now = [p.clone() for p in self.parameters]
        if self.t > 0:
            distance = sum((w - v).square().sum() for w, v in zip(now, self.before, strict=True)).sqrt()
            for p, h, old, v, g in zip(self.parameters, self.h, self.h_before, self.before, self.g, strict=True):
                rho = (h - old).abs() / distance
                kappa = self.gamma / self.log * v.abs() + 1e-5
                sigma = torch.minimum(1 / (self.log * torch.sqrt(self.eta * (h + rho * kappa))), kappa)
                sigma = sigma * (g.abs() < 0.1)
                p.add_(torch.empty_like(p).uniform_(-1, 1) * sigma)
        with torch.enable_grad():
            closure()
        self.g = [p.grad.clone() for p in self.parameters]
        self.h_before = self.h
        self.h = [0.999 * h + 0.001 * g * g for h, g in zip(self.h, self.g, strict=True)]
        for p, w in zip(self.parameters, now, strict=True):
            p.copy_(w)
        self.before = now
        self.base.step()
        self.t += 1


def peer(base: torch.optim.Optimizer) -> Any:
    """SAM of pytorch_optimizer, made from the base's class and settings."""
    import pytorch_optimizer

    (group,) = base.param_groups
    settings = {k: group[k] for k in ("lr", "betas", "momentum", "fused") if group.get(k) is not None}
    return pytorch_optimizer.SAM(group["params"], type(base), rho=0.05, **settings)


class TwoPasses:
    """The step of the base after its pass was run twice: what any SAM costs at the least."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        self.base.step(closure)


def stepper(make: Callable[[], nn.Module], wrap: Callable[[Any], Any], x: Tensor, y: Tensor, steps: int) -> Any:
    """`steps` training steps, with a model and an optimizer of its own; first steps are made here."""
    torch.manual_seed(0)
    model = make()
    optimizer = wrap(model.parameters())
    two_phase = hasattr(optimizer, "first_step")

    def closure() -> Tensor:
        model.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    def run() -> None:
        for _ in range(steps):
            if two_phase:
                closure()
                optimizer.first_step(zero_grad=True)
                closure()
                optimizer.second_step(zero_grad=True)
            else:
                optimizer.step(closure)

    run()
    run()
    return run


def contenders(
    name: str, *, bases: tuple[str, ...] = tuple(BASES), only: tuple[str, ...] | None = None, steps: int | None = None
) -> dict[str, Any]:
    """`steps` training steps of "resnet20" or "mlp": "base, wrapper" -> a function that makes them.

    Args:
        only: these wrappers, and the plain base.
        steps: 5 where one in five is dearer than the others.
    """
    shape = (3, 32, 32) if name == "resnet20" else (784,)
    x, y = gaussian_classes(BATCH, shape)
    make = resnet20 if name == "resnet20" else lambda: mlp((784, 1600, 1600, 800, 10))
    steps = steps or (1 if name == "resnet20" else 3)
    wrappers: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
        "plain": lambda base: base,
        "PertOPT": PertOPT,
        "PertOPT compiled": lambda base: PertOPT(base, compile=True),
        "SAM": SAM,
        "SAM every 5": lambda base: SAM(base, every=5),
        "SAM every 5 with reuse": lambda base: SAM(base, every=5, reuse=0.7),
        "SAM of pytorch_optimizer": peer,
        "textbook": Textbook,
        "two passes": TwoPasses,
    }
    try:
        import pytorch_optimizer  # noqa: F401
    except ImportError:
        print("pytorch_optimizer is not installed: pip install --no-deps pytorch_optimizer")
        del wrappers["SAM of pytorch_optimizer"]
    if only is not None:
        wrappers = {key: wrap for key, wrap in wrappers.items() if key == "plain" or key in only}
    else:
        wrappers = {
            key: w for key, w in wrappers.items() if key != "two passes" and not (steps % 5 and "every 5" in key)
        }
    found = {}
    for base, make_base in BASES.items():
        if base not in bases or (name == "resnet20" and base == "Adam fused"):
            continue
        for wrapper, wrap in wrappers.items():
            found[f"{base}, {wrapper}"] = stepper(
                make, lambda p, make_base=make_base, wrap=wrap: wrap(make_base(p)), x, y, steps
            )
    return found


def main() -> int:
    pin()
    bars = {"resnet20": {"PertOPT": 1.05, "SAM": 2.05}, "mlp": {"PertOPT": 2.3, "PertOPT compiled": 1.6}}
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    ok = True
    for name, bar in bars.items():
        print(f"{name}: a training step, batch {BATCH}")
        times = race(contenders(name), rounds=rounds, clock=time.process_time)
        rows: dict[str, Any] = {}
        for key, seconds in times.items():
            base, wrapper = key.split(", ")
            rows[f"{key}: ms"] = 1000 * seconds / (1 if name == "resnet20" else 3)
            if wrapper != "plain":
                rows[f"{key}: times the plain step"] = seconds / times[f"{base}, plain"]
        claims = {
            f"{wrapper} around Adam / Adam": (rows[f"Adam, {wrapper}: times the plain step"], "<=", limit)
            for wrapper, limit in bar.items()
        }
        ok &= publish(f"pertopt_{name}", claims, rows)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
