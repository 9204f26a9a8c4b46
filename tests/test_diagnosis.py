"""What is off, found where it is and nowhere else."""

import copy

import pytest
import torch
from torch import nn

from flatminima import Minimum, measure
from flatminima.diagnosis import diagnose
from flatminima.estimate import Estimate


def words(found):
    return " ".join(f"{f.severity}: {f}" for f in found)


def margin(value, error):
    return {"margin": Estimate(value, details={"train_error": error, "train_loss": 0.1}, direction="higher")}


@pytest.mark.parametrize(
    ("table", "due"),
    [
        (margin(-1.0, 0.4), "problem: 40.0% of the labels are not fitted"),
        (margin(-0.1, 0.04), "caution: the margin at 5% of the samples is -0.1"),
        ({"hessian_trace": Estimate(-5.0, 0.5)}, "problem: the Hessian's trace is negative"),
        ({"negative_curvature": Estimate(0.4, 0.1)}, "caution: 40% of the curvature is negative"),
        ({"pacgen": Estimate(3.0, details={"curvature_bound": 0.0})}, "curvature decides no term"),
        ({"fisher_logdet": Estimate.missing("singular: duplicate samples?")}, "linearly dependent"),
        ({"fisher_logdet": Estimate(3.0, details={"float64": True, "condition": 3e7})}, "float32 is too coarse"),
        ({"robustness": Estimate(1.0, 0.3)}, "standard errors above 20% of the value: robustness"),
    ],
)
def test_each_finding(table, due):
    assert due in words(diagnose(table))


def test_a_sound_table_has_none():
    table = margin(1.0, 0.01) | {
        "hessian_trace": Estimate(-0.1, 0.5),
        "negative_curvature": Estimate(0.1, 0.01),
        "pacgen": Estimate(3.0, details={"curvature_bound": 0.2}),
        "fisher_logdet": Estimate(3.0, details={"float64": False, "condition": 30.0}),
        "lipschitz": Estimate.missing("no"),
        "parameter_count": Estimate(3.0),
    }
    assert [str(f) for f in diagnose(table)] == ["standard errors above 20% of the value: hessian_trace: use rtol=0.1 or a larger budget before comparing them"]  # fmt: skip  # noqa: E501


def test_problems_come_first():
    table = {"pacgen": Estimate(3.0, details={"curvature_bound": 0.0}), **margin(-1.0, 0.4)}
    assert [f.severity for f in diagnose(table)] == ["problem", "caution"]


def normed():
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(200, 4)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for _ in range(100):
        net(x)
    return net.eval(), x


def test_stale_batchnorm_statistics_are_seen_and_the_model_left_alone():
    net, x = normed()
    y = torch.arange(200) % 2
    assert not diagnose({}, Minimum(net, (x, y)))
    before = copy.deepcopy(net.state_dict())
    other = diagnose({}, Minimum(net, (10 * x, y)))
    assert "running statistics of" in words(other) and "first: 0" in words(other)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert not diagnose({}, Minimum(net, (10 * x[:20], y[:20]))), "20 samples say nothing of statistics"


def test_of_a_measured_network():
    net, x = normed()
    m = Minimum(net, (x, torch.arange(200) % 2))
    assert "not fitted" in words(diagnose(measure(m, ["margin"]), m))


def test_tokens_that_are_not_predicted_are_no_problem():
    """A language model is never without error; its loss says how good it is."""
    table = {"margin": Estimate(-2.0, details={"train_error": 0.6, "train_loss": 2.0, "unit": "token"})}
    assert diagnose(table) == []
