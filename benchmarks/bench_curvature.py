"""Hessian products, exact diagonals and the top eigenvalue against PyHessian, curvlinops and BackPACK.

Processor time of one pinned thread, since the machine is shared.

python benchmarks/bench_curvature.py [products|diagonal|eigenvalue]
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.statistics import PiecewiseLinearDiagonal, Products, TopEigenvalues
from networks import trained
from timing import pin, publish, race

warnings.filterwarnings("ignore")  # the peers' own
PROBES = 10


def passes(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One forward-backward pass over the same samples, parameter gradients included."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def pyhessian(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """PyHessian on a copy (it leaves gradients and a graph behind)."""
    from pyhessian import hessian

    return hessian(copy.deepcopy(model), nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def products(name: str, n: int) -> dict[str, Any]:
    """Ten products with the same vectors, the graph made within the time."""
    from curvlinops import HessianLinearOperator
    from pyhessian.utils import hessian_vector_product

    model, x, y = trained(name, 640)
    x, y = x[:n], y[:n]
    minimum = Minimum(model, (x, y), batch_size=n)
    vectors = torch.randint(0, 2, (PROBES, len(minimum.parameters))) * 2.0 - 1
    split = [minimum.parameters.split(v) for v in vectors]
    found: dict[str, list[Tensor]] = {}

    def ours() -> None:
        with minimum.open():  # as every statistic does
            product = Products(minimum)
            found["flatminima"] = [product(v) for v in vectors]

    def theirs() -> None:
        peer = pyhessian(model, x, y)
        found["pyhessian"] = [
            torch.cat([g.reshape(-1) for g in hessian_vector_product(peer.gradsH, peer.params, v)]) for v in split
        ]

    def others() -> None:
        parameters = list(model.parameters())
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)
        found["curvlinops"] = [operator @ v for v in vectors]

    one = {"forward-backward": lambda: passes(model, x, y)}
    times = race(one | {"flatminima": ours, "pyhessian": theirs, "curvlinops": others}, 8, time.process_time)
    rows = {f"{name}: {k}, ms": 1000 * t for k, t in times.items()}
    for peer in ("pyhessian", "curvlinops"):
        difference = max(
            float((a - b).norm() / b.norm()) for a, b in zip(found["flatminima"], found[peer], strict=True)
        )
        rows[f"{name}: relative difference to {peer}"] = difference
        rows[f"{name}: over {peer}"] = times["flatminima"] / times[peer]
    double = Products(Minimum(copy.deepcopy(model).double(), (x.double(), y), batch_size=n))
    exact = [double(v) for v in vectors]
    for who, images in found.items():
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(images, exact, strict=True)]
        rows[f"{name}: {who}, relative error against float64"] = max(errors)
    rows[f"{name}: a product, forward-backward passes"] = times["flatminima"] / times["forward-backward"] / PROBES
    return rows


def backpack_diagonal(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    from backpack import backpack, extend, extensions

    network = extend(copy.deepcopy(model))
    loss = extend(nn.CrossEntropyLoss())

    def run() -> Tensor:
        value = loss(network(x), y)
        with backpack(extensions.DiagGGNExact()):
            value.backward()
        found = torch.cat([p.diag_ggn_exact.reshape(-1) for p in network.parameters()])
        for p in network.parameters():
            p.grad = p.diag_ggn_exact = None
        return found

    return run


def diagonal(name: str, n: int) -> dict[str, Any]:
    """Exact Hessian diagonal of n samples, the check that the network is piecewise linear within the time."""
    model, x, y = trained(name, 640)
    x, y = x[:n], y[:n]
    minimum = Minimum(model, (x, y), batch_size=n)
    assert minimum.follows_layers  # the once-a-network comparison with autograd, not part of the time
    contenders: dict[str, Any] = {
        "forward-backward": lambda: passes(model, x, y),
        "flatminima": lambda: minimum.sweep([PiecewiseLinearDiagonal()]),
    }
    rows: dict[str, Any] = {}
    if name == "mlp":
        contenders["backpack"] = backpack_diagonal(model, x, y)
        ours = minimum.sweep([PiecewiseLinearDiagonal()])[PiecewiseLinearDiagonal()]
        theirs = contenders["backpack"]().double()
        rows["mlp: relative difference to backpack"] = float((ours - theirs).norm() / theirs.norm())
    times = race(contenders, 7, time.process_time)
    rows |= {f"{name}: diagonal, {k}, ms": 1000 * t for k, t in times.items()}
    rows[f"{name}: diagonal, forward-backward passes"] = times["flatminima"] / times["forward-backward"]
    if "backpack" in times:
        rows["mlp: diagonal, over backpack"] = times["flatminima"] / times["backpack"]
    return rows


LOOSE = 0.03  # residual, relative: some ten times PyHessian's accuracy, where the default is ten thousand times


def eigenvalue(name: str, n: int) -> dict[str, Any]:
    """The largest, with defaults and ours at a loose tolerance too; the truth from float64 at a tolerance of 1e-7."""
    model, x, y = trained(name, 640, steps=300 if name == "mlp" else 60)
    x, y = x[:n], y[:n]
    minimum = Minimum(model, (x, y), batch_size=n)
    double = Minimum(copy.deepcopy(model).double(), (x.double(), y), batch_size=n)
    truth = float(double[TopEigenvalues(1, None, 1e-7)].values[0])
    found: dict[str, list[float]] = {"flatminima": [], "flatminima, loose": [], "pyhessian": []}
    seeds = iter(range(1000))

    def ours(who: str, tolerance: float) -> None:
        key = TopEigenvalues(1, None, tolerance, seed=next(seeds))
        found[who].append(float(key.compute(minimum).values[0]))

    def theirs() -> None:
        found["pyhessian"].append(pyhessian(model, x, y).eigenvalues()[0][0])

    contenders = {
        "flatminima": lambda: ours("flatminima", 1e-3),
        "flatminima, loose": lambda: ours("flatminima, loose", LOOSE),
        "pyhessian": theirs,
    }
    times = race(contenders, 7, time.process_time)
    errors = {k: sum(abs(v / truth - 1) for v in values) / len(values) for k, values in found.items()}
    rows: dict[str, Any] = {f"{name}: eigenvalue, {k}, ms": 1000 * t for k, t in times.items()}
    rows |= {f"{name}: eigenvalue, {k}, mean relative error": e for k, e in errors.items()}
    for who in ("flatminima", "flatminima, loose"):
        rows[f"{name}: eigenvalue, {who}, time over pyhessian"] = times[who] / times["pyhessian"]
        rows[f"{name}: eigenvalue, {who}, pyhessian's error over ours"] = errors["pyhessian"] / max(errors[who], 1e-12)
    return rows


def main() -> int:
    pin()
    torch.manual_seed(0)
    wanted = sys.argv[1:] or ["products", "diagonal", "eigenvalue"]
    ok = True
    if "products" in wanted:
        rows = products("resnet20", 32) | products("mlp", 100)
        claims = {
            "ResNet-20, products, over PyHessian": (rows["resnet20: over pyhessian"], "<=", 1.05),
            "ResNet-20, products, over curvlinops": (rows["resnet20: over curvlinops"], "<=", 0.75),
        }
        ok &= publish("curvature_products", claims, rows)
    if "diagonal" in wanted:
        rows = diagonal("mlp", 100) | diagonal("resnet20", 32)
        claims = {
            "MLP, exact diagonal, passes": (rows["mlp: diagonal, forward-backward passes"], "<=", 6.0),
            "ResNet-20, exact diagonal, passes": (rows["resnet20: diagonal, forward-backward passes"], "<=", 11.0),
        }
        ok &= publish("curvature_diagonal", claims, rows)
    if "eigenvalue" in wanted:
        rows = eigenvalue("mlp", 200) | eigenvalue("resnet20", 32)
        claims = {}
        for name in ("mlp", "resnet20"):
            at = f"{name}: eigenvalue, flatminima, loose"
            slower, closer = rows[f"{at}, time over pyhessian"], rows[f"{at}, pyhessian's error over ours"]
            claims[f"{name}, top eigenvalue at tolerance {LOOSE}, time over PyHessian"] = (slower, "<=", 1.0)
            claims[f"{name}, top eigenvalue at tolerance {LOOSE}, PyHessian's error over ours"] = (closer, ">=", 10.0)
        ok &= publish("curvature_eigenvalue", claims, rows)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
