"""Side-by-side timing: every contender once a round, rounds interleaved, medians and ratios; one thread pinned."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def pin() -> None:
    """One thread on one core."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def race(
    contenders: dict[str, Callable[[], Any]], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each contender, after one warm-up each.

    `clock=time.process_time` counts the processor's seconds: on one thread the same, but for waiting for others who
    use the machine. Garbage is collected before each run and outside of its time, and each round begins with
    another contender: one whose graphs are reference cycles would otherwise have the next one pay for its memory.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run = contenders[name]
            gc.collect()
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def publish(name: str, claims: dict[str, tuple[float, str, float]], rows: dict[str, Any]) -> bool:
    """Print and store: claim -> (measured, "<=" or ">=", bar). Returns whether all hold."""
    ok = True
    for key, value in rows.items():
        print(f"  {key:<58} {value:.4g}" if isinstance(value, float) else f"  {key:<58} {value}")
    for claim, (measured, sign, bar) in claims.items():
        holds = measured <= bar if sign == "<=" else measured >= bar
        ok &= holds
        print(f"  {'holds' if holds else 'FAILS'}: {claim}: {measured:.3g} {sign} {bar:g}")
    RESULTS.mkdir(exist_ok=True)
    document = {
        "benchmark": name,
        "claims": {k: {"measured": m, "sign": s, "bar": b} for k, (m, s, b) in claims.items()},
        "rows": rows,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return ok
