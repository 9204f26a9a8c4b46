"""A GPT-2's whole table beside training steps: seconds, peak memory, and the passes that explain them.

A training step is AdamW on all the sequences once, in micro-batches of `BATCH`, which is also the table's batch size.
Each contender has a process of its own, so that its peak memory is its own; seconds are the processor's, on one
thread. hessian-eigenthings' product is beside ours where it is installed (pip install --no-deps hessian-eigenthings).

python benchmarks/bench_language_model.py [--size small] [--sequences 8] [step fast default products]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from timing import RESULTS, publish

LENGTH, BATCH = 256, 8
SEQUENCES = {"small": 64, "124M": 8}  # 64 of the large one take minutes a training step on a core
SIZES: dict[str, dict[str, int]] = {
    "small": {"vocab_size": 2000, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": LENGTH},
    "124M": {"vocab_size": 50257, "n_positions": 1024},
}
CONTENDERS = ("step", "fast", "default", "products")
PRODUCTS = 3  # timed, after one that is not


class Logits(nn.Module):
    """Hugging Face's GPT-2 as a module that maps tokens to logits."""

    def __init__(self, size: str) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        torch.manual_seed(0)
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, **SIZES[size])
        self.model = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean over the tokens of a batch."""
    return nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def step(model: nn.Module, tokens: Tensor, steps: int) -> dict[str, Any]:
    """Seconds of a training step after the first one, which also pays for AdamW's state."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    seconds = []
    for _ in range(steps):
        started = time.process_time()
        optimizer.zero_grad()
        for part in tokens.split(BATCH):
            (loss_of(model, part) * len(part) / len(tokens)).backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
    return {"seconds": min(seconds[1:] or seconds)}


def table(model: nn.Module, tokens: Tensor, budget: str) -> dict[str, Any]:
    """The budget's measures, and what has no value."""
    from flatminima import Minimum, measure

    started = time.process_time()
    minimum = Minimum(model.eval(), (tokens, tokens), "causal_lm", batch_size=BATCH)
    made = time.process_time() - started
    found = measure(minimum, budget=budget)
    forward, backward = found.forward_passes, found.backward_passes
    undefined = [name for name, e in found.items() if e.value is None]
    return {
        "seconds": time.process_time() - started, "seconds to make the Minimum": made, "forward passes": forward,
        "backward passes": backward, "passes in steps": (forward + 2 * backward) / 3, "undefined": ", ".join(undefined),
        "defined": float(len(found) - len(undefined)),
    }  # fmt: skip


def products(model: nn.Module, tokens: Tensor, sequences: int = BATCH) -> dict[str, Any]:
    """Seconds of a Hessian product on one batch, ours and hessian-eigenthings'."""
    from flatminima import Minimum
    from flatminima.statistics import Products

    part = tokens[:sequences]
    minimum = Minimum(model.eval(), (part, part), "causal_lm", batch_size=sequences)
    ours = Products(minimum)
    vector = torch.randn(ours.size, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {}
    with minimum.open():
        first = ours(vector)
        started = time.process_time()
        for _ in range(PRODUCTS):
            ours(vector)
        found["ours: seconds a product"] = (time.process_time() - started) / PRODUCTS
    try:
        from hessian_eigenthings.operators import HessianOperator
    except ImportError:
        return found
    theirs = HessianOperator(model, [part], lambda net, batch: loss_of(net, batch))
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative; ours sees to that itself
        second = theirs.matvec(vector).double()
        started = time.process_time()
        for _ in range(PRODUCTS):
            theirs.matvec(vector)
        found["hessian-eigenthings: seconds a product"] = (time.process_time() - started) / PRODUCTS
    found["relative difference of the products"] = float((first - second).norm() / second.norm())
    return found


def child(name: str, size: str, sequences: int) -> None:
    """Run one contender and print what it came to."""
    torch.set_num_threads(1)
    vocabulary = SIZES[size]["vocab_size"]
    tokens = torch.randint(0, vocabulary, (sequences, LENGTH), generator=torch.Generator().manual_seed(0))
    model = Logits(size)
    if name == "step":
        found = step(model, tokens, 2 if sequences > BATCH else 3)
    elif name == "products":
        found = products(model, tokens)
    else:
        found = table(model, tokens, name)
    found["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(json.dumps(found))


def claims_of(rows: dict[str, Any]) -> dict[str, tuple[float, str, float]]:
    """The bars, of what was measured."""
    claims: dict[str, tuple[float, str, float]] = {}
    for name, bar in (("fast", 6.0), ("default", 25.0)):
        if f"{name}: seconds" in rows and "step: seconds" in rows:
            claims[f"{name} table over a training step's seconds"] = (
                rows[f"{name}: seconds"] / rows["step: seconds"], "<=", bar,
            )  # fmt: skip
        if f"{name}: passes in steps" in rows:
            claims[f"{name} table's passes in training steps"] = (rows[f"{name}: passes in steps"], "<=", bar)
    if "fast: peak GiB" in rows and "step: peak GiB" in rows:
        claims["fast table's peak memory over a training step's"] = (
            rows["fast: peak GiB"] / rows["step: peak GiB"], "<=", 2.0,
        )  # fmt: skip
    if "default: defined" in rows:
        claims["default measures defined"] = (rows["default: defined"], ">=", 18.0)
    ours, theirs = (rows.get(f"products: {who}: seconds a product") for who in ("ours", "hessian-eigenthings"))
    if ours and theirs:
        claims["Hessian product over hessian-eigenthings'"] = (ours / theirs, "<=", 1.0)
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contenders", nargs="*", help=f"of {', '.join(CONTENDERS)}; all by default")
    parser.add_argument("--size", choices=list(SIZES), default="124M")
    parser.add_argument("--sequences", type=int, help=f"of {LENGTH} tokens; by default {SEQUENCES}")
    parser.add_argument("--child", choices=CONTENDERS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.size, given.sequences)
        return 0
    sequences = given.sequences or SEQUENCES[given.size]
    name = f"language_model_{given.size}" + ("" if sequences == SEQUENCES[given.size] else f"_{sequences}")
    file = RESULTS / f"{name}.json"
    rows: dict[str, Any] = json.loads(file.read_text())["rows"] if file.exists() else {}
    for contender in given.contenders or CONTENDERS:
        options = ["--child", contender, "--size", given.size, "--sequences", str(sequences)]
        command = [sys.executable, __file__, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return 1
        rows = {key: value for key, value in rows.items() if not key.startswith(f"{contender}: ")}
        rows |= {f"{contender}: {key}": value for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        publish(name, claims_of(rows), rows)
    return 0 if all(m <= b if s == "<=" else m >= b for m, s, b in claims_of(rows).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
