"""The toy surface: its Hessian, pacGen and bound against autograd and the measures at single points."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import Minimum, measures
from flatminima.statistics import HessianDiagonal
from flatminima.studies import _toy_figure, _toy_minima, wang_toy
from flatminima.studies._toy_figure import like
from flatminima.studies.claims import claims
from flatminima.studies.claims.quantities import rows, value
from flatminima.studies.result_files import documents

RESULTS = Path(__file__).parents[2] / "results" / "studies"


class Shared(nn.Module):
    """The toy network as a module whose only parameters are the two free weights."""

    def __init__(self, free, fixed):
        super().__init__()
        self.free, self.fixed = nn.Parameter(torch.tensor(free, dtype=torch.float64)), fixed

    def forward(self, x):
        return _toy_minima.logits(self.free, self.fixed, x)


@pytest.fixture(scope="module")
def found():
    x, y = wang_toy.samples(0, _toy_minima.SAMPLES)
    return x, y, _toy_minima.surface(x, y, (2.0, 4.0), 9)


@pytest.mark.parametrize("at", [(1, 2), (4, 7), (8, 0)])
def test_the_surface_agrees_with_the_measures_of_a_module(found, at):
    x, y, surface = found
    minimum = Minimum(Shared([surface.axis[at[0]], surface.axis[at[1]]], (2.0, 4.0)), (x, y))
    assert surface.trace[at] == pytest.approx(float(minimum[HessianDiagonal()].sum()), rel=1e-6, abs=1e-9)
    floor = measures.pacgen(minimum, diagonal="exact", rho="zero", samples=None).value
    assert surface.pacgen[at] >= floor - 1e-9  # rho only adds


def test_minima_have_no_gradient_and_bend_up_and_are_ordered_by_curvature():
    x, y = wang_toy.samples(0, _toy_minima.SAMPLES)
    fixed = _toy_minima.search(x, y, _toy_minima.FIXED[-4:-2], 25)
    (places, at) = _toy_minima.extremes(x, y, fixed, 25)
    assert at.trace[0] > at.trace[1] > 0
    for place, loss, trace in zip(places, at.loss, at.trace, strict=True):
        network = Shared(place.tolist(), fixed)
        found = torch.nn.functional.cross_entropy(network(x), y)
        (slope,) = torch.autograd.grad(found, network.free)
        assert found.item() == pytest.approx(loss, rel=1e-12) and float(slope.norm()) < 1e-6
        hessian = torch.autograd.functional.hessian(
            lambda free: torch.nn.functional.cross_entropy(_toy_minima.logits(free, fixed, x), y),
            place,
        )
        assert float(torch.linalg.eigvalsh(hessian)[0]) > 0
        assert float(hessian.trace()) == pytest.approx(trace, rel=1e-9)


def test_the_bound_lies_above_the_loss_and_grows_as_eta_vanishes(found):
    surface = found[2]
    assert (surface.bounds[39.0] > surface.loss).all()
    assert np.mean(surface.bounds[1e-5]) > np.mean(surface.bounds[0.1]) > np.mean(surface.bounds[39.0])


def test_labels_split_the_samples_in_half():
    x, y = wang_toy.samples(3, 100)
    assert x.shape == (100, 2) and int(y.sum()) == 50


def test_test_samples_take_the_labels_of_the_training_samples():
    x, y = wang_toy.samples(0, 100)
    threshold = float(x.sum(1).median())
    one, labels = wang_toy.samples(0, 1_000, threshold=threshold)
    assert torch.equal(labels.bool(), one.sum(1) > threshold)
    assert not torch.equal(labels, wang_toy.samples(0, 1_000)[1])  # its own median is another
    assert torch.equal(wang_toy.samples(0, 100, threshold=threshold)[1], y)


@pytest.mark.parametrize(
    ("free", "fixed"), [((1.5, -3.0), (-4.0, 2.0)), ((8.0, 0.2), (2.0, 4.0)), ((-11.0, 12.0), (4.0, -2.0))]
)
def test_the_jet_is_what_automatic_differentiation_gives(free, fixed):
    x, y = wang_toy.samples(3, 40)
    loss, slope, hessian = _toy_minima.jet(free, fixed, x.numpy(), y.numpy())
    at, objective = torch.tensor(free, dtype=torch.float64), _toy_minima.objective(x, y, fixed)
    assert loss == pytest.approx(float(objective(at)), rel=1e-12)
    assert np.allclose(slope, torch.func.grad(objective)(at), rtol=1e-10, atol=1e-14)
    second = torch.func.jacrev(torch.func.jacrev(objective))(at)
    assert np.allclose(hessian, second, rtol=1e-10, atol=1e-14)


def test_the_toy_that_is_shown_has_all_that_the_paper_says_of_its_picture():
    """Each sentence of W1's appendix A and the caption, with the margin of the registry's trial of it."""
    (document,) = [d for d in documents(RESULTS, "wang-toy") if d["scale"] == "half"]
    own = rows(document)
    shown = _toy_figure.alike([run["result"] for run in document["runs"]])
    told = [c for c in claims(study="wang-toy") if c.id.startswith(("w1-toy-", "wb-"))]
    assert len(told) >= 9 and shown
    for claim in told:
        for trial in claim.trials:
            for r in shown:
                of = {row["place"]: row for row in own if row["seed"] == r["seed"] and "noise" not in row}
                if trial.first:
                    place, other = (of[group["place"]] for group in (trial.first, trial.second))
                    apart = value(trial.y, place) - value(trial.y, other)
                    counts = abs(apart) >= trial.margin - 1e-9
                    assert counts and (apart > 0) is (trial.shape == "larger"), (claim.id, trial.said)
                else:
                    found = value(trial.y, of["flat"])
                    inside = found <= trial.bound if trial.shape == "at_most" else found >= trial.bound
                    assert inside, (claim.id, trial.said)


def test_a_data_set_that_lacks_one_thing_is_not_like_the_papers_picture():
    good = {"found": True, "local_minima": 3, "sharp_is_global": True, "seed": 0, "fixed": [1.0, 1.0]}
    sharp = {
        "loss": 0.3,
        "trace": 3.0,
        "pacgen": 5.0,
        "test_error": 0.3,
        "train_error": 0.1,
        "boundary": 2.0,
        "bound": 1.0,
    }
    flat = {
        "loss": 0.35,
        "trace": 1.0,
        "pacgen": 4.0,
        "test_error": 0.2,
        "train_error": 0.2,
        "boundary": 1.0,
        "bound": 1.01,
    }
    r = good | {"sharp": sharp, "flat": flat}
    assert all(like(r)) and len(like(r)) == len(_toy_figure.LIKE)
    for lacks in (
        {"local_minima": 2},
        {"flat": flat | {"trace": 1.1}},
        {"sharp_is_global": False},
        {"sharp": sharp | {"pacgen": 4.05}},
        {"sharp": sharp | {"test_error": 0.205}},
        {"flat": flat | {"loss": 0.45}},
        {"flat": flat | {"bound": 1.06}},
        {"sharp": sharp | {"train_error": 0.2}},
        {"sharp": sharp | {"boundary": 1.05}},
    ):
        assert like(r | lacks).count(False) == 1, lacks
    assert not any(like({"found": False, "seed": 1, "local_minima": 1}))
