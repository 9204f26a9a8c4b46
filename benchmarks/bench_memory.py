"""Peak memory of every default measure on an MLP of 41 million weights, over that of the model and its activations.

Each measure has a process of its own: what it adds to the resident memory at its peak, once the model and the data are
there, plus the model and its data, over the model and the activations of one batch. After each comes the whole table.

python benchmarks/bench_memory.py [MEASURE ...]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import Minimum, measure
from flatminima.budgets import names as in_budget
from timing import publish

WIDTHS = [784, 4096, 4096, 4096, 1024, 10]  # 41.0 million weights
SAMPLES, BATCH = 128, 64
LIMIT = 4.0
TABLE = "the whole table"


def network() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(WIDTHS):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval(), (torch.randn(SAMPLES, WIDTHS[0]), torch.arange(SAMPLES) % 10)


def resident() -> float:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Peak:
    """The largest resident memory while the block runs, looked at every 2 ms (Linux)."""

    def __enter__(self) -> Peak:
        self.most, self.on = resident(), True
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while self.on:
            self.most = max(self.most, resident())
            time.sleep(0.002)

    def __exit__(self, *rest: object) -> None:
        self.on = False
        self.thread.join()
        self.most = max(self.most, resident())


def child(name: str) -> None:
    model, data = network()
    small = Minimum(nn.Sequential(nn.Linear(3, 2)), (torch.randn(8, 3), torch.arange(8) % 2))
    measure(small) if name == TABLE else measure(small, [name])  # what is imported is not the measure's memory
    ours = sum(p.numel() * 4 for p in model.parameters())
    activations = sum(BATCH * width * 4 for width in WIDTHS)
    before, start = resident(), time.process_time()
    with Peak() as peak:
        minimum = Minimum(model, data, batch_size=BATCH)
        table = measure(minimum) if name == TABLE else measure(minimum, [name])
    undefined = {k: e.undefined for k, e in table.items() if e.undefined is not None}
    print(
        json.dumps(
            {
                "ratio": (peak.most - before + ours) / (ours + activations),
                "seconds": time.process_time() - start,
                "undefined": undefined,
            }
        )
    )


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
        return 0
    names = sys.argv[1:] or [*in_budget("default"), TABLE]
    rows: dict[str, Any] = {}
    for name in names:
        done = subprocess.run([sys.executable, __file__, "--child", name], capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return 1
        found = json.loads(done.stdout.splitlines()[-1])
        print(name, found, file=sys.stderr, flush=True)
        rows[name] = found["ratio"]
        rows |= {f"{key}: undefined": why for key, why in found["undefined"].items()}
    claims = {f"{name}: peak, over model and activations": (rows[name], "<=", LIMIT) for name in names}
    return 0 if publish("memory", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
