"""The tracker's eigenvalue against a cold, converged Lanczos on the same weights, and what a check costs.

python benchmarks/bench_track.py digits | resnet20 | gpt2 | cost     (each a few minutes on one thread)
python benchmarks/bench_track.py tables     the tables of docs/track.md, of the results that are kept; measures nothing

digits: full-batch runs of an MLP to the edge of stability, squared loss and cross-entropy, three learning rates, SGD,
Adam, PertOPT. resnet20, gpt2: short runs in minibatches. cost: seconds of a check over those of `every` training steps,
beside PyHessian and hessian-eigenthings at the same interval where they are installed.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatminima.core.minimum import Minimum
from flatminima.errors import Undefined
from flatminima.models import mlp, resnet20
from flatminima.optim import PertOPT
from flatminima.statistics import TopEigenvalues
from flatminima.track import Options, Tracker
from networks import gaussian_classes
from timing import RESULTS, pin, publish

EVERY = 50
CHECKED = 12  # checks of a run that are compared, spread over it
LARGE = 1_000_000  # weights
TRUTH = (1e-4, 1e-3)  # relative residuals of the cold Lanczos; the second where float32 does not give the first
Batches = Iterator[tuple[Tensor, Tensor]]


def digits(classes: bool) -> tuple[nn.Module, Tensor, Tensor, str]:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.data[:500], dtype=torch.float32) / 16
    y = torch.tensor(found.target[:500])
    torch.manual_seed(0)
    model = mlp((64, 64, 64, 10), activation="tanh")
    return model, x - x.mean(0), y if classes else F.one_hot(y, 10).float(), "cross_entropy" if classes else "mse"


class Logits(nn.Module):
    """A GPT-2 of 10 million parameters that maps tokens to logits."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=4096, n_positions=64, n_embd=320, n_layer=7, n_head=5, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, use_cache=False, attn_implementation="eager",
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


def tokens(n: int, length: int = 32) -> Tensor:
    """Synthetic text that can be learned: a token mostly follows from the one before."""
    g = torch.Generator().manual_seed(0)
    follows = torch.randint(0, 4096, (4096,), generator=g)
    rows = [torch.randint(0, 4096, (n,), generator=g)]
    for _ in range(length - 1):
        noise = torch.randint(0, 4096, (n,), generator=g)
        rows.append(torch.where(torch.rand(n, generator=g) < 0.1, noise, follows[rows[-1]]))
    return torch.stack(rows, 1)


def optimizer_of(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(model.parameters(), rate)
    base = torch.optim.SGD(model.parameters(), rate)
    return PertOPT(base, gamma=0.1) if name == "pertopt" else base


def true_eigenvalue(minimum: Minimum) -> float:
    """By a cold Lanczos, to the residual that float32 allows; of millions of weights, the second is enough for 2%."""
    for tolerance in TRUTH[:-1] if len(minimum.parameters) < LARGE else ():
        try:
            return float(minimum[TopEigenvalues(1, None, tolerance)].values[0])
        except Undefined:
            continue
    return float(minimum[TopEigenvalues(1, None, TRUTH[-1])].values[0])


def closure_of(model: nn.Module, optimizer: Any, loss: Callable[[Any, Tensor], Tensor], x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    return closure


def follow(
    model: nn.Module, optimizer: Any, probe: Any, name: str, batches: Batches, steps: int, every: int
) -> tuple[list[tuple[float, float]], int, Tracker, float]:
    """(value, truth) of the converged checks compared, checks compared, the tracker, the last loss."""
    tracker = Tracker(model, probe, loss=name, optimizer=optimizer, every=every, quantities=["eigenvalue"])
    per_sample = tracker.watched.network.loss  # type: ignore[union-attr]
    chosen = {int(i * (steps - 1) / every / (CHECKED - 1)) * every for i in range(CHECKED)}
    pairs, compared, value = [], 0, torch.tensor(0.0)
    for step in range(steps):
        x, y = next(batches)
        value = optimizer.step(closure_of(model, optimizer, lambda out, y: per_sample(out, y).mean(), x, y))
        row = tracker.step(step, value)
        if row is not None and step in chosen:
            compared += 1
            modes = [(m, m.training) for m in model.modules()]
            minimum = Minimum(model.eval(), probe, name, batch_size=1 << 20)
            truth = true_eigenvalue(minimum)
            for module, training in modes:
                module.training = training
            if row["values"]["eigenvalue"] is not None:
                pairs.append((row["values"]["eigenvalue"], truth))
    return pairs, compared, tracker, float(value)


def report(name: str, pairs: list[tuple[float, float]], compared: int, tracker: Tracker) -> dict[str, Any]:
    errors = [abs(value - truth) / abs(truth) for value, truth in pairs]
    found = {
        "checks": compared,
        "within 2%": sum(e <= 0.02 for e in errors) / compared,
        "not converged": compared - len(pairs),
        "largest error": max(errors, default=0.0),
        "products a check": sum(row["products"] for row in tracker.rows) / len(tracker.rows),
    }
    edge = [row["edge"] for row in tracker.rows if row["edge"] is not None]
    if edge:
        found["edge, last third"] = sum(edge[-len(edge) // 3 :]) / len(edge[-len(edge) // 3 :])
    print(name, {key: round(value, 4) for key, value in found.items()}, flush=True)
    return found


RUNS = [  # loss has classes, optimizer, rate, steps
    *((False, "sgd", rate, 4000) for rate in (1.5, 2.5, 4.0)),  # at 1,500 the third rate still came down to its plateau
    *((True, "sgd", rate, 600) for rate in (0.7, 1.0, 2.0)),
    *((classes, "adam", rate, 600) for classes, rate in ((False, 1e-3), (False, 3e-3), (True, 1e-3))),
    *((classes, "pertopt", rate, 600) for classes, rate in ((False, 2.5), (True, 1.0))),
]


def run_digits() -> bool:
    rows, errors, compared = {}, [], 0
    for classes, name, rate, steps in RUNS:
        model, x, y, loss = digits(classes)
        optimizer = optimizer_of(name, model, rate)
        pairs, count, tracker, _ = follow(model, optimizer, (x, y), loss, _forever(x, y), steps, 25)
        errors += [abs(value - truth) / abs(truth) for value, truth in pairs]
        compared += count
        rows[f"{loss} {name} {rate:g}"] = report(f"{loss} {name} {rate:g}", pairs, count, tracker)
    plateau = [row["edge, last third"] for key, row in rows.items() if key.startswith("mse sgd")]
    claims = {
        "share of checks within 2%": (sum(e <= 0.02 for e in errors) / compared, ">=", 0.95),
        "largest error where converged": (max(errors), "<=", 0.10),
        "plateau, squared loss: farthest from 2/lr": (max(abs(edge - 1) for edge in plateau), "<=", 0.05),
    }
    return publish("track_digits", claims, rows)


def _forever(x: Tensor, y: Tensor) -> Batches:
    while True:
        yield x, y


def _minibatches(x: Tensor, y: Tensor, size: int) -> Batches:
    g = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(x), generator=g).split(size):
            if len(rows) == size:
                yield x[rows], y[rows]


def run_minibatches(which: str) -> bool:
    if which == "resnet20":
        torch.manual_seed(0)
        model, (x, y) = resnet20(), gaussian_classes(256, (3, 32, 32))
        loss, batch, probe, steps, every = "cross_entropy", 16, (x[:16], y[:16]), 36, 6
        rates = {"sgd": 0.05, "adam": 1e-3}
    else:
        model, x = Logits(), tokens(64)
        y, loss, batch, probe, steps, every = x, "causal_lm", 4, (x[:2], x[:2]), 8, 2
        rates = {"sgd": 0.3, "adam": 1e-3, "pertopt": 0.3}
    rows, errors, compared, state = {}, [], 0, {k: v.clone() for k, v in model.state_dict().items()}
    for name, rate in rates.items():
        model.load_state_dict(state)
        optimizer = optimizer_of(name, model.train(), rate)
        pairs, count, tracker, _ = follow(model, optimizer, probe, loss, _minibatches(x, y, batch), steps, every)
        errors += [abs(value - truth) / abs(truth) for value, truth in pairs]
        compared += count
        rows[f"{name} {rate:g}"] = report(f"{which} {name} {rate:g}", pairs, count, tracker)
    claims = {
        "share of checks within 2%": (sum(e <= 0.02 for e in errors) / compared, ">=", 0.95),
        "largest error where converged": (max(errors, default=0.0), "<=", 0.10),
    }
    return publish(f"track_{which}", claims, rows)


def run_cost() -> bool:
    """Of checks in the middle of a run, medians; the batch of a step is four times the probe, and as large as it."""
    rows: dict[str, Any] = {}
    torch.manual_seed(0)
    net, (images, labels) = resnet20(), gaussian_classes(256, (3, 32, 32))
    model, x, y, _ = digits(True)
    cases = {
        "resnet20, probe 16, batch 64": (net, images, labels, 64, 16, 13, 3),
        "digits mlp, probe 125, batch 500": (model, x, y, 500, 125, 1001, 50),
        "digits mlp, probe 500, batch 500": (model, x, y, 500, 500, 1001, 50),
    }
    for name, (network, inputs, targets, batch, size, steps, every) in cases.items():
        for kind, quantities in {
            "eigenvalue": ["eigenvalue"],
            "with trace and critical sharpness": ["eigenvalue", "trace", "critical_sharpness"],
        }.items():
            found = _cost(network, inputs, targets, batch, size, quantities, steps, every)
            rows[f"{name}: {kind}"] = found
            print(f"{name}: {kind}", {key: round(value, 4) for key, value in found.items()}, flush=True)
    claims = {
        f"overhead at every={EVERY}, {name}": (row["overhead"], "<=", 0.05 if name.endswith("eigenvalue") else 0.10)
        for name, row in rows.items()
        if "probe 500" not in name
    }
    return publish("track_cost", claims, rows)


def _cost(
    model: nn.Module, x: Tensor, y: Tensor, batch: int, probe: int, quantities: list[str], steps: int, every: int
) -> dict[str, float]:
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05, momentum=0.9)
    looks = Options().fresh_every
    options = Options(fresh_every=min(looks, (steps - 1) // every))  # the last check is a fresh one
    tracker = Tracker(
        model, (x[:probe], y[:probe]), optimizer=optimizer, every=every, quantities=quantities, options=options
    )
    times, batches = [], _minibatches(x, y, batch)
    for step in range(steps):
        inputs, targets = next(batches)
        start = time.process_time()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - start)
        start = time.process_time()
        if tracker.step(step, loss) is not None:
            tracker.rows[-1]["processor"] = time.process_time() - start
    first, *carried, last = tracker.rows
    warm, fresh, one = _median([row["processor"] for row in carried]), last["processor"], _median(times)
    mean = (warm * (looks - 1) + fresh) / looks  # a fresh search every so many checks
    products = _median([float(row["products"]) for row in carried])
    found = {"overhead": mean / (EVERY * one), "gradients a check": mean / one, "products": products}
    once = {"fresh": fresh / one, "the first, once a run": first["processor"] / one, "step in ms": 1e3 * one}
    return found | once | _floor(model, x[:probe], y[:probe], one, products) | _peers(model, x[:probe], y[:probe], one)


def _floor(model: nn.Module, x: Tensor, y: Tensor, one: float, products: float) -> dict[str, float]:
    """Overhead of as many bare products of torch on one graph: what no tracker that makes them can go below."""
    weights = list(model.parameters())
    vector = [torch.randn_like(p) for p in weights]
    times = []
    for _ in range(5):
        start = time.process_time()
        gradient = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
        for _ in range(round(products)):
            torch.autograd.grad(gradient, weights, vector, retain_graph=True)
        times.append(time.process_time() - start)
    return {"floor": _median(times) / (EVERY * one)}


def _peers(model: nn.Module, x: Tensor, y: Tensor, one: float) -> dict[str, float]:
    """Overhead of two other libraries' top eigenvalue, where they are installed, and how far it is off."""
    found: dict[str, float] = {}
    model.eval()
    truth = true_eigenvalue(Minimum(model, (x, y), batch_size=1 << 20))

    def pyhessian() -> float:
        from pyhessian import hessian

        return float(hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues()[0][0])

    def eigenthings() -> float:
        from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

        operator = HessianOperator(model, [(x, y)], supervised_loss(nn.CrossEntropyLoss()))
        return float(lanczos(operator, k=1, max_iter=20, which="LA").eigenvalues[0])

    for name, peer in (("PyHessian", pyhessian), ("hessian-eigenthings", eigenthings)):
        times, errors = [], []
        try:
            for _ in range(3):
                start = time.process_time()
                value = peer()
                times.append(time.process_time() - start)
                errors.append(abs(value - truth) / truth)
        except ImportError:
            continue
        found[f"{name} overhead"] = _median(times) / (EVERY * one)
        found[f"{name} error"] = max(errors)
    model.zero_grad(set_to_none=True)
    return found


def print_tables() -> bool:
    """Of the results that are kept, as Markdown."""
    rows = _kept("cost")
    print(
        "| network | eigenvalue | with trace and critical sharpness | bare products | PyHessian | hessian-eigenthings |"
    )
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(key.partition(":")[0] for key in rows):
        one, every = (rows[f"{name}: {kind}"] for kind in ("eigenvalue", "with trace and critical sharpness"))
        bare = " / ".join(f"{100 * row['floor']:.1f}%" for row in (one, every))
        peers = " | ".join(_spread(one, every, f"{peer} overhead") for peer in ("PyHessian", "hessian-eigenthings"))
        print(f"| {name} | {100 * one['overhead']:.1f}% | {100 * every['overhead']:.1f}% | {bare} | {peers} |")
    print("\n| run | checks within 2% | largest error | products a check | edge, last third |\n|---|---|---|---|---|")
    for which in ("digits", "resnet20", "gpt2"):
        for name, row in _kept(which).items():
            within = f"{round(row['within 2%'] * row['checks'])} of {row['checks']}"
            edge = "" if "edge, last third" not in row else f"{row['edge, last third']:.2f}"
            numbers = f"{100 * row['largest error']:.1f}% | {row['products a check']:.1f} | {edge}"
            print(f"| {which}: {name} | {within} | {numbers} |")
    return True


def _kept(which: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"track_{which}.json").read_text())["rows"]
    return found


def _spread(one: dict[str, float], other: dict[str, float], key: str) -> str:
    if key not in one or key not in other:
        return "not installed"
    low, high = sorted((one[key], other[key]))
    return f"{100 * low:.0f} to {100 * high:.0f}%"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    pin()
    warnings.simplefilter("ignore")
    which = sys.argv[1] if len(sys.argv) > 1 else "digits"
    runs = {"digits": run_digits, "cost": run_cost, "tables": print_tables}
    ok = runs[which]() if which in runs else run_minibatches(which)
    sys.exit(0 if ok else 1)
