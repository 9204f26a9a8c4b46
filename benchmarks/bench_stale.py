"""Cost of the staleness check: its share of the fast table, in one process, for ResNet-20 and an MLP of 5 million."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from flatminima import Minimum, measure
from flatminima.models import build

REPEATS = 2
SAMPLES = 128  # more of them cost the table, and not the check
BAR = 0.02


class Clock:
    """Seconds within a method of a class, and how often it was called; calls within one another count once."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name, self.real = owner, name, getattr(owner, name)
        self.seconds, self.calls, self.depth = 0.0, 0, 0

    def __enter__(self) -> Clock:
        def timed(this: Any, *args: Any, **options: Any) -> Any:
            self.depth += 1
            started = time.perf_counter()
            try:
                return self.real(this, *args, **options)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - started
                    self.calls += 1

        setattr(self.owner, self.name, timed)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.real)


def share(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Median over repeats of seconds in the check over seconds of the table."""
    found = []
    for _ in range(REPEATS):
        minimum = Minimum(model.eval(), (x, y), batch_size=128)
        with Clock(Minimum, "refuse_stale") as clock:
            started = time.perf_counter()
            measure(minimum, budget="fast")
            table = time.perf_counter() - started
        found.append((clock.seconds / table, clock.calls, table))
    return {"share": median(f[0] for f in found), "calls": found[0][1], "table_seconds": median(f[2] for f in found)}


def main() -> None:
    """Print the shares, and write them where a file is named."""
    torch.manual_seed(0)
    labels = torch.arange(SAMPLES) % 10
    cases = {
        f"ResNet-20, {SAMPLES} images": (build("resnet20", seed=0), torch.randn(SAMPLES, 3, 32, 32)),
        f"MLP of 5 million, {SAMPLES} samples": (
            build("mlp", seed=0, widths=(784, 2000, 1600, 10)),
            torch.randn(SAMPLES, 784),
        ),
    }
    rows = {name: share(model, x, labels) for name, (model, x) in cases.items()}
    document = {"bar": BAR, "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(document, indent=1))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
