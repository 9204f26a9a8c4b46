"""Float32 products are in float32 while the library computes, whatever training uses; the switches come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

# torch remembers which kind of switch was used, so each setting has a process of its own: a fork, once torch is there
SCRIPT = """
import json, os, sys, traceback, torch
from flatminima.core.ambient import neutral
from flatminima.core.full_precision import switches

def tried(setting):
    exec(setting)
    before = switches()
    with neutral():
        low = {k: v for k, v in switches().items() if v in ("tf32", "bf16", "high", "medium", True)}
    assert not low, low
    assert switches() == before, (switches(), before)
    if hasattr(torch.backends, "fp32_precision"):  # what followed the general switch follows it again
        torch.backends.fp32_precision = "none"
        after = switches()
        exec(setting)
        torch.backends.fp32_precision = "none"
        assert switches() == after, (switches(), after)

for name, setting in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        try:
            tried(setting)
        except BaseException:
            print(name)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
print("all")
"""
OLDER = {
    "nothing": "",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "allowed": "torch.backends.cuda.matmul.allow_tf32 = True",
    "convolutions are not": "torch.backends.cudnn.allow_tf32 = False",
}
NEWER = {
    "in general": "torch.backends.fp32_precision = 'tf32'",
    "of a backend": "torch.backends.mkldnn.fp32_precision = 'bf16'",
    "of an operation": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "of some": "b = torch.backends; b.mkldnn.matmul.fp32_precision = 'bf16'; b.cudnn.conv.fp32_precision = 'ieee'",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each setting is a fork")
def test_products_are_in_full_precision_and_switches_come_back() -> None:
    settings = OLDER | (NEWER if hasattr(torch.backends, "fp32_precision") else {})
    typed = [sys.executable, "-c", SCRIPT, json.dumps(settings)]
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stdout + done.stderr
