"""What the studies of Neyshabur et al. read off their networks, on curves whose heights are known."""

import pytest
import torch
from torch import nn

from flatminima.studies._neyshabur import EQUAL_KL, at_equal_kl
from flatminima.studies.neyshabur_conditions import c2_of_the_figure


def curve(factor, kls):
    """Expected sharpness factor / KL, as of a quadratic loss."""
    return {"curve": [{"kl": kl, "sharpness": factor / kl} for kl in kls]}


def test_curves_are_compared_at_one_kl():
    """At each point of its own the second lies higher or lower by chance; the third does not reach far enough."""
    found = at_equal_kl([curve(2.0, (1, 100, 1e4)), curve(3.0, (50, 5e3)), curve(1.0, (1, 10)), {"curve": []}])
    assert [r[EQUAL_KL] for r in found[:2]] == [pytest.approx(2 / 50), pytest.approx(3 / 50)]
    assert found[2][EQUAL_KL] is None and found[3][EQUAL_KL] is None


def test_order_of_points_and_falls_below_zero_do_not_matter():
    """A draw's mean may be negative where the noise is small: it has no logarithm."""
    one = curve(2.0, (1e4, 1, 100))
    one["curve"].append({"kl": 1e6, "sharpness": -1e-9})
    (found,) = at_equal_kl([one])
    assert found[EQUAL_KL] == pytest.approx(2.0) and found["curve"] == one["curve"]


def test_c2_of_the_figure_is_the_share_of_inputs_near_zero_over_how_near():
    """Ten units whose inputs are x w: of x = 1 two lie within 0.1 of zero, and one within 0.03."""
    weights = torch.tensor([0.02, -0.05, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, -1.2])
    first = nn.Linear(1, 10, bias=False)
    first.weight.data = weights[:, None]
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(10, 2, bias=False))
    assert c2_of_the_figure(model, torch.ones(1, 1)) == pytest.approx(0.1 / 0.03)  # of 0.2 / 0.1 and 0.2 / 0.3 too
    assert c2_of_the_figure(model, torch.tensor([[1.0], [0.1]])) == pytest.approx(0.2 / 0.01)  # 0.002 and 0.005
    assert not model[1]._forward_hooks
