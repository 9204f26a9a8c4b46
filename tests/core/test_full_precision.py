"""Float32 products are in float32 while the library computes, whatever training uses; the switches come back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

# torch remembers which kind of switch was used, so each setting has a process of its own
SCRIPT = """
import sys, torch
from flatminima.core.ambient import neutral
from flatminima.core.full_precision import switches

exec(sys.argv[1])
before = switches()
with neutral():
    low = {k: v for k, v in switches().items() if v in ("tf32", "bf16", "high", "medium", True)}
assert not low, low
assert switches() == before, (switches(), before)
if hasattr(torch.backends, "fp32_precision"):  # what followed the general switch follows it again
    torch.backends.fp32_precision = "none"
    after = switches()
    exec(sys.argv[1])
    torch.backends.fp32_precision = "none"
    assert switches() == after, (switches(), after)
"""
SETTINGS = {
    "nothing": "",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "allowed": "torch.backends.cuda.matmul.allow_tf32 = True",
    "convolutions are not": "torch.backends.cudnn.allow_tf32 = False",
    "in general": "torch.backends.fp32_precision = 'tf32'",
    "of a backend": "torch.backends.mkldnn.fp32_precision = 'bf16'",
    "of an operation": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "of some": "b = torch.backends; b.mkldnn.matmul.fp32_precision = 'bf16'; b.cudnn.conv.fp32_precision = 'ieee'",
}
NEW = hasattr(torch.backends, "fp32_precision")


@pytest.mark.parametrize("name", SETTINGS)
def test_products_are_in_full_precision_and_switches_come_back(name: str) -> None:
    if "fp32_precision" in SETTINGS[name] and not NEW:
        pytest.skip("switches of torch 2.9")
    done = subprocess.run([sys.executable, "-c", SCRIPT, SETTINGS[name]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
