"""What the checks of gradients and second derivatives add to the default table: ResNet-20, 2,000 images.

python benchmarks/bench_checks.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from flatminima import Minimum, measure
from networks import trained
from timing import pin, publish

SAMPLES = 2_000
_NOTHING: tuple[tuple[str, Callable[..., object]], ...] = (
    ("flatminima.core.gradient_check.Following.due", lambda self: False),
    ("flatminima.core.gradient_check.Following.unseen", lambda self, route: False),
    ("flatminima.core.minimum.Minimum._choose", lambda self: None),
    ("flatminima.core.batch.Watch", lambda units, size: None),
    ("flatminima.statistics.curvature.refuse_wrong", lambda minimum, curvature: None),
)


class _Nothing:
    """In place of the watch, for a forward pass that nobody looks at."""

    route = 0

    def __init__(self, units: object, size: int) -> None:
        self.behind: dict[str, str] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *rest: object) -> None:
        pass

    def enter(self, unit: object) -> None:
        pass

    def leave(self) -> None:
        pass


@contextmanager
def unchecked() -> Iterator[None]:
    """The library without its checks."""
    with ExitStack() as stack:
        for name, replacement in _NOTHING:
            stack.enter_context(patch(name, _Nothing if name.endswith("Watch") else replacement))
        yield


def main() -> int:
    pin()
    model, x, y = trained("resnet20", SAMPLES)
    seconds: dict[str, list[float]] = {"checked": [], "unchecked": []}
    table = None
    for turn in range(2):
        for name in ("checked", "unchecked") if turn else ("unchecked", "checked"):
            with ExitStack() as stack:
                if name == "unchecked":
                    stack.enter_context(unchecked())
                start = time.process_time()
                table = measure(Minimum(model, (x, y)))
                seconds[name].append(time.process_time() - start)
    assert table is not None
    ratio = min(seconds["checked"]) / min(seconds["unchecked"])
    rows = {f"{name}: seconds of processor time": min(times) for name, times in seconds.items()}
    rows["measures"] = float(len(table))
    return 0 if publish("checks", {"default table with its checks, over without": (ratio, "<=", 1.10)}, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
