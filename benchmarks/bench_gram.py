"""Gram matrix of 100 per-sample gradients against a loop, vmapped gradients and BackPACK, and its peak memory.

python benchmarks/bench_gram.py            times and memory; needs requirements-peers.txt for BackPACK
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.statistics import Gram
from networks import trained
from timing import pin, publish, race

N = 100
CHUNKS = (10, 25, 50, 100)


def passes(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One forward-backward pass over the same samples, parameter gradients included."""
    model.zero_grad()
    F.cross_entropy(model(x), y, reduction="sum").backward()


def loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One backward pass a sample, the Jacobian stacked."""
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def vmapped(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> Tensor:
    """torch.func.vmap(grad)."""
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def one(p: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        out = torch.func.functional_call(model, (p, buffers), (xi.unsqueeze(0),))
        return F.cross_entropy(out, yi.unsqueeze(0))

    grads = torch.func.vmap(torch.func.grad(one), (None, 0, 0), chunk_size=chunk)(parameters, x, y)
    jacobian = torch.cat([g.flatten(1) for g in grads.values()], 1)
    return jacobian @ jacobian.T


def backpacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """BackPACK's BatchGrad on an extended copy."""
    from backpack import backpack, extensions

    loss = model.lossfunc(model.network(x), y)  # type: ignore[operator,union-attr]
    with backpack(extensions.BatchGrad()):
        loss.backward()
    parameters = list(model.network.parameters())  # type: ignore[union-attr]
    jacobian = torch.cat([p.grad_batch.flatten(1) for p in parameters], 1)  # type: ignore[attr-defined]
    for p in parameters:
        p.grad, p.grad_batch = None, None  # type: ignore[attr-defined]
    return jacobian @ jacobian.T


def extended(model: nn.Module) -> nn.Module:
    from backpack import extend

    holder = nn.Module()
    holder.network = extend(copy.deepcopy(model), use_converter=not isinstance(model, nn.Sequential))
    holder.lossfunc = extend(nn.CrossEntropyLoss(reduction="sum"))
    return holder


def contenders(name: str) -> dict[str, Any]:
    model, x, y = trained(name, 640)
    x, y = x[:N], y[:N]
    minimum = Minimum(model, (x, y), batch_size=N)
    assert minimum.follows_layers  # the once-a-network comparison with autograd, not part of the time
    found: dict[str, Any] = {
        "forward-backward": lambda: passes(model, x, y),
        "flatminima": lambda: minimum.sweep([Gram(N, 1)]),
        "loop": lambda: loop(model, x, y),
    }
    for chunk in CHUNKS:
        found[f"vmap {chunk}"] = lambda chunk=chunk: vmapped(model, x, y, chunk)
    try:
        holder = extended(model)
        found["backpack"] = lambda: backpacked(holder, x, y)
    except ImportError:
        print("backpack is not installed: pip install --no-deps -r requirements-peers.txt")
    return found


def peak(name: str, method: str) -> float:
    """MiB by which `method` raises the process's resident memory at its peak, in a fresh process (Linux)."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed tensors go back, so that the peak is the method's
    out = subprocess.run(
        [sys.executable, __file__, "--memory", name, method], capture_output=True, text=True, check=True, env=env
    )
    return float(out.stdout.split()[-1])


def _measure_memory(name: str, method: str) -> None:
    run = contenders(name)[method]
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run()
    print((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> int:
    pin()
    bars = {"mlp": (2.0, 30.0, 20.0, None), "resnet20": (1.6, None, 3.5, 1.3)}
    ok = True
    for name, (fb, against_loop, against_backpack, against_vmap) in bars.items():
        print(f"{name}: Gram of {N} samples")
        times = race(contenders(name), rounds=7 if name == "mlp" else 3)
        ours, vmap = times["flatminima"], min(t for k, t in times.items() if k.startswith("vmap"))
        claims = {"forward-backward passes over the same samples": (ours / times["forward-backward"], "<=", fb)}
        if against_loop:
            claims["times faster than a loop"] = (times["loop"] / ours, ">=", against_loop)
        if against_vmap:
            claims["times faster than vmap at its best chunk"] = (vmap / ours, ">=", against_vmap)
        if "backpack" in times:
            claims["times faster than BackPACK"] = (times["backpack"] / ours, ">=", against_backpack)
        rows: dict[str, Any] = {f"{k}: ms": 1000 * t for k, t in times.items()}
        for method in ("forward-backward", "flatminima", "vmap 100"):
            rows[f"{method}: peak extra MiB"] = peak(name, method)
        ok &= publish(f"gram_{name}", claims, rows)
    return 0 if ok else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        pin()
        _measure_memory(*sys.argv[2:4])
    else:
        sys.exit(main())
