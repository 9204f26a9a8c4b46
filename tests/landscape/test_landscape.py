"""Landscapes against closed forms: filter norms, eigenvectors of a known Hessian, losses, the noise's ball."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, landscape
from flatminima.cli import landscape as command
from flatminima.core.parameters import Parameters
from flatminima.core.perturbation import Gaussian, Relative, Uniform
from flatminima.errors import Undefined, UsageError
from flatminima.landscape import Ball, Direction, directions, filter_normalised
from flatminima.landscape.figure import describe_landscape


def quadratic() -> tuple[nn.Linear, Minimum]:
    """Mean squared error of a linear map: Hessian 2 x x^T / n = diag(8, 2, 0), minimum at w = (1, 2, 0), loss 0."""
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double() * math.sqrt(2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0, 0.0]]))
    return net, Minimum(net, (x, net(x).detach()), "mse")


def classifier() -> tuple[nn.Module, Minimum]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()
    return net, Minimum(net, (torch.randn(20, 1, 6, 6), torch.arange(20) % 4))


def test_a_filter_keeps_its_norm_and_vectors_stay() -> None:
    _, minimum = classifier()
    d = minimum.parameters.split(filter_normalised(minimum.parameters, 3, 0))
    for (name, w), step in zip(minimum.parameters, d, strict=True):
        if w.dim() == 1:
            assert not step.any(), name
        else:
            assert torch.allclose(step.flatten(1).norm(dim=1), w.detach().flatten(1).norm(dim=1)), name
            cosine = torch.cosine_similarity(step.flatten(1), w.detach().flatten(1))
            assert float(cosine.abs().max()) < 0.9, name  # random, not the weights themselves
    assert torch.equal(filter_normalised(minimum.parameters, 3, 0), torch.cat([x.reshape(-1) for x in d]))
    assert not torch.equal(filter_normalised(minimum.parameters, 3, 1), filter_normalised(minimum.parameters, 3, 0))


def test_the_picture_does_not_see_the_scale_of_a_relu_networks_filters() -> None:
    """Dinh et al.'s rescaling by 100 leaves a filter-normalised line as it was: what the norms are for."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    data = (torch.randn(12, 4).double(), torch.arange(12) % 3)
    lines = []
    for factor in (1.0, 100.0):
        with torch.no_grad():
            net[0].weight.mul_(factor)
            net[2].weight.div_(factor)
        m = Minimum(net, data)
        lines.append(landscape.landscape(m, directions(m, "filter", 1, seed=4), steps=5).losses)
    assert np.allclose(*lines, rtol=1e-9)


def test_losses_and_eigenvectors_of_a_quadratic() -> None:
    """f(a, b) = a^2 + b^2 in the eigenvectors' units, where the quadratic model rises by 1."""
    net, minimum = quadratic()
    before = net.weight.clone()
    along = directions(minimum, "eigenvectors", 2)
    assert [d.curvature for d in along] == pytest.approx([8.0, 2.0])
    assert along[0].vector.tolist() == pytest.approx([0.5, 0, 0], abs=1e-6)
    assert along[1].vector.tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    found = landscape.landscape(minimum, along, steps=5, radius=2.0)
    a = found.positions
    assert a.tolist() == [-2, -1, 0, 1, 2]
    assert np.allclose(found.losses, a[:, None] ** 2 + a[None, :] ** 2, atol=1e-6)
    assert found.errors is None and found.centre == pytest.approx(0, abs=1e-12)
    assert torch.equal(net.weight, before)


def test_the_first_axis_is_the_first_direction() -> None:
    _, minimum = quadratic()
    steep, flat = (Direction(torch.eye(3).double()[i], f"w{i}") for i in (0, 2))
    found = landscape.landscape(minimum, (steep, flat), steps=3)
    assert found.losses[:, 1].tolist() == pytest.approx([4, 0, 4])
    assert found.losses[1, :].tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_the_ball_is_the_norm_of_the_noise() -> None:
    _, minimum = quadratic()
    along = tuple(Direction(torch.tensor(v).double(), "d") for v in ([2.0, 0, 0], [1.0, 1.0, 0]))
    noise = Uniform(Relative(0.1, 1.0, 1.0))  # sigma = 0.1 (|w| + 1) = (.2, .3, .1), E u^2 = sigma^2 / 3
    ball = landscape.landscape(minimum, along, steps=3, noise=noise).ball
    assert ball.radius == pytest.approx(math.sqrt(0.14 / 3))
    reached = ball.outline() @ np.stack([d.vector.numpy() for d in along])
    assert np.linalg.norm(reached, axis=1) == pytest.approx(ball.radius)
    assert Ball(3.0, np.array([[4.0]]), {}).outline().tolist() == [[-1.5], [1.5]]


def test_errors_are_those_of_a_loop_and_subsets_are_drawn() -> None:
    _, minimum = classifier()
    along = directions(minimum, "filter", 1, seed=1)
    found = landscape.landscape(minimum, along, steps=3, samples=None)
    x, y = minimum.samples.take(torch.arange(20))
    weights = minimum.parameters.flat()
    for a, loss, error in zip(found.positions, found.losses, found.errors, strict=True):  # type: ignore[arg-type]
        moved, _ = classifier()
        Parameters.of(moved).assign(weights + a * along[0].vector)
        with torch.no_grad():
            logits = moved(x)
        assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
        assert error == pytest.approx(float((logits.argmax(1) != y).double().mean()))
    assert landscape.landscape(minimum, along, steps=3, samples=7).samples == 7


class Exploding(nn.Module):
    """Overflows for weights above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.exp(1000 * (self.w - 1))


def test_what_overflows_is_none_in_json_and_drawn_without(tmp_path: Path) -> None:
    minimum = Minimum(Exploding(), (torch.ones(4, 1), torch.ones(4, 1)), "mse")
    found = landscape.landscape(minimum, (Direction(torch.ones(1), "w"),), steps=5)
    losses = json.loads(json.dumps(found.to_dict(), allow_nan=False))["losses"]
    assert losses[-1] is None and losses[0] == pytest.approx(1.0)
    assert [p.name for p in landscape.write(found, tmp_path)] == ["landscape.svg", "landscape.png"]


@pytest.mark.parametrize("kind", landscape.DIRECTIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_figures_have_labelled_axes(kind: str, count: int, tmp_path: Path) -> None:
    _, minimum = classifier()
    found = landscape.landscape(minimum, directions(minimum, kind, count), steps=5)
    figure = landscape.draw(found)
    for axes in figure.axes[:count]:
        assert axes.get_ylabel()
    assert figure.axes[0 if count == 2 else -1].get_xlabel() == found.labels[0]
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows; pyplot need not be imported
    svg, png = landscape.write(found, tmp_path)
    text = svg.read_text()
    for said in ("mean cross-entropy (nats)", "the given weights, ", "reach ", describe_landscape(found)):
        assert said in text
    assert ("quadratic model" in text) == (kind == "eigenvectors" and count == 1)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_refused() -> None:
    _, minimum = quadratic()
    one = Direction(torch.ones(3).double(), "d")
    for options in ({"steps": 2}, {"radius": 0.0}, {"radius": math.nan}):
        with pytest.raises(UsageError, match="steps="):
            landscape.landscape(minimum, (one,), **options)
    with pytest.raises(UsageError, match="got 0 directions"):
        landscape.landscape(minimum, ())
    for wrong in ("filter", one, (one.vector,)):  # a kind is not six directions, one a letter
        with pytest.raises(UsageError, match=r"pass directions\(minimum, kind, count\)"):
            landscape.landscape(minimum, wrong)
    with pytest.raises(UsageError, match="parallel"):
        landscape.landscape(minimum, (one, Direction(2 * one.vector, "d")))
    with pytest.raises(UsageError, match="expected 1 or 2 of filter or eigenvectors"):
        directions(minimum, "filter", 3)
    flat = Minimum(nn.Linear(1, 1, bias=False), (torch.zeros(2, 1), torch.zeros(2, 1)), "mse")
    with pytest.raises(Undefined, match="other than 0"):
        directions(flat, "eigenvectors", 1)


def run(tmp_path: Path, **options: Any) -> None:
    defaults: dict[str, Any] = {
        "model": "flatminima.models:mlp", "data": "digits", "output": tmp_path / "out",
        "model_arg": ["widths=[64,8,10]"], "samples": 50, "steps": 3, "limit": 100, "dimensions": 1,
    }  # fmt: skip
    command.landscape(**(defaults | options))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, checkpoint=None, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out/landscape.json").read_text())
    assert document["samples"] == 50 and len(document["losses"]) == 3
    assert {p.name for p in (tmp_path / "out").iterdir()} - {".lock"} == set(command.FILES)
    run(tmp_path, dimensions=2, along="eigenvectors")
    assert capsys.readouterr().out.startswith("Mean loss on a plane through the given weights: ")
    run(tmp_path, dry_run=True, output=tmp_path / "none", dimensions=2)
    assert "9 points of 50 samples" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"along": "filters"}, "did you mean 'filter'"),
        ({"radius": 0.0}, "--radius"),
        ({"alpha": math.inf}, "--alpha"),
        ({"loss": "hinge"}, "loss"),
        ({"checkpoint": Path("nowhere.pt")}, "--checkpoint"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_command_refuses(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        run(tmp_path, **options)


def test_the_commands_noise_is_the_librarys() -> None:
    assert Gaussian(Relative(5e-4, 10.0, 1.0)) == landscape.surface.EXPECTED_SHARPNESS
