"""What PertOPT, SAM and FisherTrace cost: every bar with its ratio, one by one; the tables of docs/optimizers.md.

python benchmarks/bench_optim.py                    what there is, and what was measured
python benchmarks/bench_optim.py mlp sam-small      those bars, each within three minutes
python benchmarks/bench_optim.py all                every bar that was not measured yet; --again: every bar
python benchmarks/bench_optim.py table              the two tables, as the page has them (some ten minutes)

Processor seconds of one thread. A ratio is the median over rounds of two contenders' seconds in the same round, so that
what slows a whole round cancels; the machine's load is kept beside it, in results/optim_bars.json.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench_fisher_trace import authors, plain, regularised
from bench_pertopt import BATCH, contenders
from flatminima.models import mlp, resnet20
from flatminima.optim import SAM
from networks import gaussian_classes
from timing import RESULTS, pin, race

Claims = dict[str, tuple[float, float]]  # what is compared -> (ratio, bar)
STORED = RESULTS / "optim_bars.json"


class Rounds:
    """Seconds of each contender, round by round; those of the first are not kept."""

    def __init__(self, contenders: dict[str, Callable[[], Any]], rounds: int) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for turn in range(rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                gc.collect()
                start = time.process_time()
                contenders[name]()
                if turn:
                    self.seconds[name].append(time.process_time() - start)

    def ratio(self, name: str, other: str = "plain") -> float:
        """Median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))


def _steps(name: str, *wrappers: str, rounds: int, steps: int | None = None) -> Rounds:
    found = contenders(name, bases=("Adam",), only=wrappers, steps=steps)
    return Rounds({key.removeprefix("Adam, "): run for key, run in found.items()}, rounds)


def on_resnet() -> Claims:
    t = _steps("resnet20", "PertOPT", "SAM", "two passes", rounds=25)
    limit = {"two passes and no SAM / Adam": (t.ratio("two passes"), float("inf"))}
    return {"PertOPT / Adam": (t.ratio("PertOPT"), 1.05), "SAM / Adam": (t.ratio("SAM"), 2.02)} | limit


def on_resnet_every() -> Claims:
    t = _steps("resnet20", "SAM every 5", "SAM every 5 with reuse", rounds=7, steps=5)
    return {f"{key} / Adam": (t.ratio(key), 1.25) for key in t.seconds if key != "plain"}


def on_mlp() -> Claims:
    t = _steps("mlp", "PertOPT", "SAM", "SAM of pytorch_optimizer", rounds=31)
    found = {"PertOPT / SAM, eager": (t.ratio("PertOPT", "SAM"), 1.0), "SAM / Adam": (t.ratio("SAM"), 2.02)}
    return found | {"PertOPT / Adam, eager": (t.ratio("PertOPT"), float("inf"))}


def on_mlp_compiled() -> Claims:
    t = _steps("mlp", "PertOPT compiled", rounds=41)
    return {"PertOPT compiled / Adam": (t.ratio("PertOPT compiled"), 1.6)}


def on_mlp_every() -> Claims:
    t = _steps("mlp", "SAM every 5", "SAM every 5 with reuse", rounds=25, steps=5)
    return {f"{key} / Adam": (t.ratio(key), 1.25) for key in t.seconds if key != "plain"}


def of_fisher_trace() -> Claims:
    x, y = gaussian_classes(BATCH, (3, 32, 32))
    torch.manual_seed(0)
    model = resnet20(norm="group")
    found = {"plain": lambda: plain(model, x, y), "M = 8": regularised(model, x, y, sub_batches=8)}
    return {"FisherTrace, M = 8 / the plain pass": (Rounds(found, 21).ratio("M = 8"), 1.9)}


class Handwritten:
    """SAM in a dozen lines, as people write it: no checks, no buffers kept, no restoration on an exception."""

    def __init__(self, base: torch.optim.Optimizer, rho: float = 0.05) -> None:
        self.base, self.rho = base, rho
        self.parameters = [p for group in base.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            loss = closure()
        norm = torch.norm(torch.stack([p.grad.norm() for p in self.parameters]))
        before = [p.clone() for p in self.parameters]
        for p in self.parameters:
            p.add_(p.grad * (self.rho / (norm + 1e-12)))
        with torch.enable_grad():
            closure()
        for p, w in zip(self.parameters, before, strict=True):
            p.copy_(w)
        self.base.step()
        return loss


def on_launches() -> Claims:
    x, y = torch.randn(32, 16), torch.arange(32) % 10

    def steps(wrap: Callable[[torch.optim.Optimizer, nn.Module], Any]) -> Callable[[], None]:
        torch.manual_seed(0)
        model = mlp((16, *[16] * 12, 10))
        opt = wrap(torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), model)

        def closure() -> Tensor:
            model.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        def run() -> None:
            for _ in range(50):
                opt.step(closure)

        return run

    found = {
        "plain": steps(lambda base, _: base), "by hand": steps(lambda base, _: Handwritten(base)),
        "SAM": steps(lambda base, _: SAM(base)), "SAM(model=)": steps(lambda base, model: SAM(base, model=model)),
    }  # fmt: skip
    t = Rounds(found, 41)
    claims = {f"{key} / by hand": (t.ratio(key, "by hand"), 1.0) for key in ("SAM", "SAM(model=)")}
    return claims | {f"{key} / plain": (t.ratio(key), float("inf")) for key in ("SAM", "by hand")}


BARS: dict[str, tuple[str, Callable[[], Claims]]] = {
    "resnet": ("ResNet-20, batch 128", on_resnet),
    "resnet-every": ("ResNet-20, SAM in every fifth step", on_resnet_every),
    "mlp": ("MLP of 5.1 million parameters, eager", on_mlp),
    "mlp-compiled": ("the same, compiled", on_mlp_compiled),
    "mlp-every": ("the same, SAM in every fifth step", on_mlp_every),
    "fisher": ("GroupNorm ResNet-20", of_fisher_trace),
    "sam-small": ("12 layers of 16, bound by calls", on_launches),
}


def measured() -> dict[str, Any]:
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def show(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: {BARS[name][0]} (load {found['load']:.1f}, {found['seconds']:.0f} s)")
    for claim, (ratio, bar) in found["claims"].items():
        verdict = "" if bar is None else ("  holds" if ratio <= bar else "  MISSED")
        print(f"  {claim:<44} {ratio:.3f}{'' if bar is None else f' <= {bar:g}'}{verdict}")


def measure(name: str) -> None:
    """One bar; kept as soon as it is there."""
    began = time.perf_counter()
    claims = {k: (ratio, None if bar == float("inf") else bar) for k, (ratio, bar) in BARS[name][1]().items()}
    found = {"claims": claims, "load": os.getloadavg()[0], "seconds": time.perf_counter() - began}
    RESULTS.mkdir(exist_ok=True)
    STORED.write_text(json.dumps(measured() | {name: found}, indent=1) + "\n")
    show(name, found)


def table() -> None:
    """The two tables of docs/optimizers.md."""
    ours = ("PertOPT", "PertOPT compiled", "SAM", "SAM of pytorch_optimizer", "textbook")
    names = ("PertOPT", "PertOPT, `compile=True`", "SAM", "SAM of pytorch_optimizer 4.1", "PertOPT as a textbook loop")
    columns: list[tuple[dict[str, float], str]] = []
    for network, rounds, bases in (("resnet20", 7, ("Adam", "SGD")), ("mlp", 9, ("Adam", "Adam fused", "SGD"))):
        t = race(contenders(network, bases=bases, only=ours), rounds=rounds, clock=time.process_time)
        columns += [(t, base) for base in bases]
    print("| times the plain step | ResNet-20, Adam | SGD | MLP, Adam | fused Adam | SGD |\n|---|---|---|---|---|---|")
    for key, name in zip(ours, names, strict=True):
        ratios = [f"{t[f'{b}, {key}'] / t[f'{b}, plain']:.2f}" if f"{b}, {key}" in t else "" for t, b in columns]
        print(f"| {name} | {' | '.join(ratios)} |")
    x, y = gaussian_classes(BATCH, (3, 32, 32))
    torch.manual_seed(0)
    model = resnet20(norm="group")
    found: dict[str, Any] = {"plain": lambda: plain(model, x, y)}
    found |= {
        f"{'FisherTrace, ' if m == 4 else ''}M = {m}": regularised(model, x, y, sub_batches=m) for m in (4, 8, 16)
    }
    found |= {f"M = 8, {k} active": regularised(model, x, y, sub_batches=8, active=k) for k in (1, 2)}
    found['M = 8, `mode="exact"`'] = regularised(model, x, y, sub_batches=8, mode="exact")
    found["M = 8, the authors' three passes"] = lambda: authors(model, x, y, 8)
    t = race(found, rounds=5, clock=time.process_time)
    print("\n| GroupNorm ResNet-20, batch 128 | times the plain pass |\n|---|---|")
    for key in t:
        if key != "plain":
            print(f"| {key} | {t[key] / t['plain']:.2f} |")
    print(f"\nload {os.getloadavg()[0]:.1f}")


def main() -> int:
    asked = [a for a in sys.argv[1:] if a != "--again"]
    unknown = [a for a in asked if a not in (*BARS, "all", "table")]
    if unknown:
        print(f"unknown bar {unknown[0]!r}; there are {', '.join(BARS)}, all, table")
        return 2
    if not asked:
        for name, (what, _) in BARS.items():
            show(name, measured()[name]) if name in measured() else print(f"{name}: {what}: not measured")
        return 0
    pin()
    names = list(BARS) if "all" in asked else [a for a in asked if a in BARS]
    for name in names:
        if "all" in asked and name in measured() and "--again" not in sys.argv:
            show(name, measured()[name])
        else:
            measure(name)
    if "table" in asked:
        table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
