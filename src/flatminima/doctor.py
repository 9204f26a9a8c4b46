"""`examine`: what of flatminima works on this machine, and what to do about what does not.

Nothing is concluded from version numbers that can be tried: second derivatives through attention are taken, measures of
a small network are compared with their closed form on every device, a torchvision is imported (in a process of its own,
since a wrong one breaks other imports).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from flatminima.core.guard import differentiable, same_randomness
from flatminima.core.minimum import Minimum
from flatminima.errors import FlatMinimaError
from flatminima.statistics import GaussNewtonDiagonal, Gram, HessianDiagonal

Status = Literal["works", "absent", "caution", "broken"]

_EXTRAS = {"datasets": "data", "pillow": "data", "transformers": "hf"}
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?")
_PATIENCE = 120.0  # seconds for another process to import torchvision
_SIGMAS = 1e-4  # relative, of a float32 number against its closed form


@dataclass(frozen=True)
class Examination:
    """One thing that was tried.

    Attributes:
        what: it is.
        status: "works"; "absent" (optional); "caution": works, but not as well as it could; "broken".
        found: in words and numbers.
        do: about it; empty where there is nothing to do.
    """

    what: str
    status: Status
    found: str
    do: str = ""


def examine() -> list[Examination]:
    """Try everything; a trial that raises is itself a finding.

    Returns:
        Findings: versions, optional packages, torchvision, threads, each device, second derivatives.

    Examples:
        >>> next(devices()).what
        'measures on cpu'
    """
    out: list[Examination] = []
    for trial in (examined_versions, extras, torchvision, threads, devices, attention, kernels):
        try:
            with same_randomness():
                out += trial()
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            out.append(Examination(trial.__name__, "broken", reason, "report it, with the output of flatminima doctor"))
    return out


def examined_versions() -> Iterator[Examination]:
    """Python, and every package that flatminima cannot do without, against the oldest it declares."""
    yield Examination("python", "works", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, oldest in _required():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Examination(name, "broken", "not installed", f"pip install '{name}>={oldest}'" if oldest else "")
            continue
        if oldest and _numbers(found) < _numbers(oldest):
            yield Examination(name, "broken", f"{found}, older than {oldest}", f"pip install -U '{name}>={oldest}'")
        else:
            yield Examination(name, "works", found)


def extras() -> Iterator[Examination]:
    """Optional packages; not imported, which can take seconds."""
    for name, extra in _EXTRAS.items():
        try:
            yield Examination(name, "works", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Examination(name, "absent", "not installed", f"if you need it: pip install 'flatminima[{extra}]'")


def torchvision() -> Iterator[Examination]:
    """A torchvision of another build than torch breaks `import transformers` and timm; flatminima needs none."""
    try:
        found = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        yield Examination("torchvision", "works", "not installed; nothing here needs it")
        return
    reason = imports_in_a_process("import torchvision")
    if reason is None:
        yield Examination("torchvision", "works", f"{found}, imports beside torch {torch.__version__}")
        return
    yield Examination(
        "torchvision",
        "broken",
        f"{found} does not import beside torch {torch.__version__}: {reason}",
        "pip uninstall torchvision (else transformers and timm fail to import), or install the build that matches "
        "torch from the same index",
    )


def threads() -> Iterator[Examination]:
    """Threads of torch against the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    found = f"{used} of torch on {cores} cores"
    if used > cores:
        yield Examination("threads", "caution", found, f"set OMP_NUM_THREADS={cores}: more threads than cores wait")
    elif used < cores:
        yield Examination("threads", "works", found, f"--threads {cores} may be quicker for large networks")
    else:
        yield Examination("threads", "works", found)


def devices() -> Iterator[Examination]:
    """Compare statistics of a small network with their closed form, on each device."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    for name in names:
        label = f"measures on {name}"
        try:
            worst = _core_error(name)
        except (RuntimeError, FlatMinimaError, TypeError) as error:  # TypeError: a device without float64
            reason = " ".join(str(error).split())[:160]
            yield Examination(label, "broken", reason, "use --device cpu")
            continue
        memory = ""
        if name.startswith("cuda"):
            properties = torch.cuda.get_device_properties(name)
            memory = f"; {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        if worst <= _SIGMAS:
            yield Examination(label, "works", f"Gram matrix and diagonals to {worst:.1e} of their closed form{memory}")
        else:
            yield Examination(label, "broken", f"off by {worst:.1e} of the closed form{memory}", "use --device cpu")
    if not torch.cuda.is_available():
        build = f"a build for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        yield Examination("cuda", "absent", f"no device; torch {torch.__version__} is {build}")


def attention() -> Iterator[Examination]:
    """Second derivatives of attention: as it comes, and under the kernels that flatminima chooses."""
    by_itself = _second_derivative(contextlib.nullcontext)
    ours = _second_derivative(lambda: differentiable(nn.Identity()))
    if ours is not None:
        yield Examination(
            "attention, second derivative", "broken", ours, "curvature of transformers is undefined here: update torch"
        )
    elif by_itself is not None:
        yield Examination(
            "attention, second derivative",
            "works",
            f"under flatminima's MATH kernel; torch's own choice has none ({by_itself})",
            "nothing within flatminima; in your own code: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
        )
    else:
        yield Examination("attention, second derivative", "works", "under torch's own choice of kernel too")


def kernels() -> Iterator[Examination]:
    """Second derivatives that torch gets wrong (weight_norm, torch 2.13): tried, and refused in measures."""
    torch.manual_seed(0)
    v, g = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64) + 0.5
    inputs = (v.requires_grad_(), g.requires_grad_())
    try:
        right = torch.autograd.gradgradcheck(lambda a, b: torch._weight_norm(a, b, 0), inputs, raise_exception=False)
    except RuntimeError:
        right = False
    if right:
        yield Examination("weight_norm, second derivative", "works", "agrees with finite differences")
    else:
        yield Examination(
            "weight_norm, second derivative",
            "caution",
            f"torch {torch.__version__} gets it wrong; measures of curvature refuse it",
            "torch.nn.utils.parametrize.remove_parametrizations before measuring",
        )


def imports_in_a_process(statement: str) -> str | None:
    """Why an import fails in a process of its own, its last line; None if it works."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", statement], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PATIENCE:.0f} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")[:160]


def _required() -> list[tuple[str, str]]:
    """Names and oldest versions of flatminima's own requirements, without extras."""
    try:
        lines = metadata.requires("flatminima") or []
    except metadata.PackageNotFoundError:  # run from a checkout
        return [("torch", ""), ("numpy", ""), ("scipy", "")]
    found = [_REQUIREMENT.match(line) for line in lines if "extra ==" not in line]
    return [(m.group(1), m.group(2) or "") for m in found if m]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(x) for x in re.findall(r"\d+", version.split("+")[0])[:3])


def _core_error(device: str) -> float:
    """Largest relative error of statistics of 3 x 2 logistic regression at 0 and inputs e_1, 2 e_2.

    p = 1/2, so that each gradient is (1/2, -1/2) x_i: norms |x_i|^2 / 2, and both diagonals x_ij^2 / 4, averaged.
    """
    net = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(net.weight)
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    minimum = Minimum(net, (x, torch.tensor([0, 1])), device=device)
    diagonal = torch.tensor([0.125, 0.5, 0.0]).double().repeat(2)
    truth: dict[Callable[[], Any], Any] = {
        lambda: minimum[Gram(2, 1)].squared_norms().sort().values: torch.tensor([[0.5, 2.0]]).double(),
        lambda: minimum[GaussNewtonDiagonal()]: diagonal,
        lambda: minimum[HessianDiagonal()]: diagonal,
    }
    return max(float((found().double().cpu() - right).abs().max() / right.max()) for found, right in truth.items())


def _second_derivative(context: Callable[[], Any]) -> str | None:
    """Why attention cannot be differentiated twice, or None if it can, and to finite numbers."""
    torch.manual_seed(0)
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    try:
        with context():
            out = scaled_dot_product_attention(q, q, q).square().sum()
            (first,) = torch.autograd.grad(out, q, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), q)
    except (RuntimeError, NotImplementedError) as error:
        return " ".join(str(error).split())[:120]
    return None if math.isfinite(float(second.sum())) else "not finite"
