"""GPT-2 with 124 million parameters (random weights, synthetic tokens): seconds and peak memory over a training step's.

Each measure has a process of its own, so that the peak is its own, and one can be measured again.

python benchmarks/bench_gpt2.py [--again MEASURE ...]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import Minimum, measure
from timing import RESULTS, publish

SEQUENCES, LENGTH, BATCH = 8, 64, 4
MEASURES = {
    "pacgen": {"diagonal": "fisher", "samples": SEQUENCES},  # a Gauss-Newton factor has a column a token and word
    "expected_sharpness": {"draws": 4},
    "fisher_trace": {"subset": SEQUENCES, "trials": 1},
    "fisher_logdet": {"subset": SEQUENCES, "trials": 1},
    "fisher_spectral_radius": {"subset": SEQUENCES, "trials": 1},
    "fisher_frobenius": {"subset": SEQUENCES, "trials": 1},
    "hessian_trace": {},
    "gradient_noise_scale": {"subset": SEQUENCES, "trials": 1},
    "parameter_norm": {},
}
LIMIT = 24.0  # GiB


class Logits(nn.Module):
    """Hugging Face's GPT-2 as a module that maps tokens to logits."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        torch.manual_seed(0)
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
        self.model = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


def step(model: nn.Module, tokens: Tensor) -> None:
    """One AdamW step on a batch: the memory that training itself needs."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    logits = model(tokens[:BATCH])
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:BATCH, 1:].flatten()).backward()
    optimizer.step()


def child(name: str) -> None:
    """Run one thing and print its value, seconds and peak memory."""
    model = Logits().eval()
    tokens = torch.randint(0, 50257, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if name == "training step":
        step(model.train(), tokens)
    else:
        from flatminima import measures

        function, options = getattr(measures, name), MEASURES[name]

        def chosen(minimum: Minimum) -> Any:
            return function(minimum, **options)

        chosen.__name__ = name
        minimum = Minimum(model, (tokens, tokens), "causal_lm", batch_size=BATCH)
        estimate = measure(minimum, [chosen])[name]
        found |= {"value": estimate.value, "stderr": estimate.stderr, "undefined": estimate.undefined}
    found |= {
        "seconds": time.perf_counter() - started,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # Linux counts in KiB
    }
    print(json.dumps(found))


def main() -> int:
    if len(sys.argv) == 2:
        child(sys.argv[1])
        return 0
    rows: dict[str, Any] = {}
    wanted = ["training step", *MEASURES]
    if sys.argv[1:2] == ["--again"]:
        rows, wanted = json.loads((RESULTS / "gpt2.json").read_text())["rows"], sys.argv[2:]
    for name in wanted:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return 1
        found = json.loads(done.stdout.splitlines()[-1])
        print(name, found, file=sys.stderr)
        rows = {key: value for key, value in rows.items() if not key.startswith(f"{name}: ")}
        rows |= {f"{name}: {key}": value for key, value in found.items() if value is not None}
    peaks = {name: rows[f"{name}: peak GiB"] for name in MEASURES}
    claims = {
        "largest peak over a training step's": (max(peaks.values()) / rows["training step: peak GiB"], "<=", 3.0),
        "largest peak, GiB": (max(peaks.values()), "<=", LIMIT),
        "measures undefined": (float(sum("undefined" in key for key in rows)), "<=", 0.0),
    }
    return 0 if publish("gpt2", claims, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
