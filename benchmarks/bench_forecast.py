"""What `measure --explain --dry-run` says beside what the same command then costs: passes and seconds.

Four networks: an MLP, a CNN with BatchNorm, an LSTM, a two-layer GPT-2. Seconds are the processor's, of one thread,
and both are taken in one process within the same minutes; the forecast is made twice, before the work and after it.
Each network has a file of its own in results/.

python benchmarks/bench_forecast.py [mlp cnn lstm gpt2] [--budget fast]
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import Minimum, budgets, measure
from flatminima.cli import explain
from flatminima.cli.forecast import forecast
from flatminima.cli.request import with_options
from flatminima.errors import Undefined
from flatminima.models import mlp
from flatminima.rescaling import audit
from networks import gaussian_classes
from timing import pin, publish

_BAR = 0.3  # relative


class Recurrent(nn.Module):
    """An LSTM whose last output is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


def fitted(model: nn.Module, x: Tensor, y: Tensor, steps: int = 40) -> nn.Module:
    """The network after a few steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for k in range(steps):
        rows = torch.arange(k * 64, k * 64 + 64) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def of_mlp() -> Minimum:
    x, y = gaussian_classes(2000, (196,))
    return Minimum(fitted(mlp((196, 128, 128, 10)), x, y), (x, y))


def of_cnn() -> Minimum:
    x, y = gaussian_classes(200, (3, 8, 8))
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
    ]
    return Minimum(fitted(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)), x, y), (x, y))


def of_lstm() -> Minimum:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, 8, generator=generator)
    y = (x.sum(1) @ torch.randn(8, 4, generator=generator)).argmax(1)
    return Minimum(fitted(Recurrent(), x, y), (x, y))


def of_gpt2() -> Minimum:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(use_cache=False, **sizes)).eval()
    tokens = torch.randint(0, 100, (32, 24), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Minimum(model, (inputs, tokens), "causal_lm", batch_size=32)


NETWORKS: dict[str, Callable[[], Minimum]] = {"mlp": of_mlp, "cnn": of_cnn, "lstm": of_lstm, "gpt2": of_gpt2}


def actual(minimum: Minimum, wanted: list[Any], own: int) -> dict[str, tuple[float, float]]:
    """Seconds, and weighted passes over all the samples, of each part of the command."""
    found = {}

    def part(name: str, work: Callable[[], Any]) -> None:
        before, started = (minimum.passes.forward, minimum.passes.backward), time.process_time()
        with contextlib.suppress(Undefined):  # no audit of this network
            work()
        forward, backward = (now - then for now, then in zip(
            (minimum.passes.forward, minimum.passes.backward), before, strict=True
        ))  # fmt: skip
        found[name] = (time.process_time() - started, (forward + 2 * backward) / len(minimum.samples))

    part("measures", lambda: measure(minimum, wanted))
    part("audit", lambda: audit(explain.part(minimum), wanted[:own]))
    with tempfile.TemporaryDirectory() as folder:
        part("landscapes", lambda: explain.write(explain.landscapes(minimum, 0), Path(folder)))
    return found


def compare(name: str, budget: str) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios of forecast and cost, and the numbers."""
    torch.manual_seed(0)
    minimum = NETWORKS[name]()
    names = budgets.names(budget)
    wanted = [with_options(n, budget, None, minimum) for n in explain.with_more(names)]
    said = forecast(minimum, wanted, audited=False, explained=True, clock=time.process_time)
    cost = actual(minimum, wanted, len(names))
    again = forecast(NETWORKS[name](), wanted, audited=False, explained=True, clock=time.process_time)
    rows, ratios = {}, {}
    for part, (seconds, passes) in cost.items():
        foretold = (said.parts[part].seconds + again.parts[part].seconds) / 2
        weighed = said.parts[part].cost.forward + 2 * said.parts[part].cost.backward
        rows |= {f"{name}, {part}: seconds": seconds, f"{name}, {part}: foretold": foretold}
        if part == "measures":
            rows |= {f"{name}: forward passes and twice the backward": passes, f"{name}: foretold": weighed}
            ratios[f"{name}: passes foretold over made"] = weighed / passes
    total = sum(seconds for seconds, _ in cost.values())
    ratios[f"{name}: seconds foretold over taken"] = (said.seconds + again.seconds) / 2 / total
    return ratios, rows


def main() -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--budget", default="default")
    asked = parser.parse_args()
    pin()
    ok = True
    for name in asked.networks or list(NETWORKS):
        ratios, rows = compare(name, asked.budget)
        claims = {f"{text}, off by": (abs(ratio - 1), "<=", _BAR) for text, ratio in ratios.items()}
        ok &= publish(f"forecast_{name}_{asked.budget}", claims, ratios | rows)
    return ok


if __name__ == "__main__":
    raise SystemExit(not main())
