"""What the studies of Neyshabur et al. read off their networks, on curves whose heights are known."""

import math
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from torch import nn

from flatminima import Minimum, measures
from flatminima.models import build
from flatminima.report.theme import style
from flatminima.statistics.conditions import sample_conditions
from flatminima.studies import STUDIES, _neyshabur
from flatminima.studies._neyshabur import EQUAL_KL, at_equal_kl, curve_over_batches, fit, half, look
from flatminima.studies._neyshabur_histograms import DELTAS, EDGES, histograms
from flatminima.studies.neyshabur_conditions import c2_of_the_figure
from flatminima.studies.result_files import documents

RESULTS = Path(__file__).parents[2] / "results" / "studies"


def curve(factor, kls):
    """Expected sharpness factor / KL, as of a quadratic loss."""
    return {"curve": [{"kl": kl, "sharpness": factor / kl} for kl in kls]}


def test_a_first_loss_is_reached_and_then_the_next_from_there(monkeypatch):
    """One training a loss, of the same network, and the epochs of both."""
    asked = []

    def train(model, x, y, *, config):
        asked.append((config.target_loss, config.epochs, float(model.weight.detach().sum())))
        with torch.no_grad():
            model.weight += 1
        return type("History", (), {"epochs": [None] * (3 + len(asked))})(), []

    monkeypatch.setattr(_neyshabur, "train", train)
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    config = {"epochs": 9, "target_loss": 3e-4, "seed": 0}
    for first, losses, epochs in (({}, [3e-4], 4), ({"first_loss": 1e-2}, [1e-2, 3e-4], 4 + 5)):
        asked.clear()
        found = fit(nn.Linear(2, 2), x, y, (x, y), config | first)
        assert [loss for loss, *_ in asked] == losses and found["epochs"] == epochs
    assert asked[1][2] == pytest.approx(asked[0][2] + 4), "the second training is of what the first one left"
    for name in ("neyshabur-confusion", "neyshabur-random-labels"):
        narrow = [c for c in STUDIES[name].list_runs("half") if c.get("name") == "VGG"]
        assert narrow and all((c["first_loss"], c["target_loss"]) == (1e-2, 3e-4) for c in narrow)


@pytest.mark.parametrize("study", ["neyshabur-confusion", "neyshabur-random-labels"])
def test_two_networks_have_lines_and_comparisons_of_their_own(study):
    """The CNN and the narrow VGG are of other sizes: no line, and no equal KL, goes from one to the other."""

    def result(name, seed, size, is_random):
        scale = 1.0 if name is None else 50.0
        curve = [{"alpha": a, "sharpness": a * size * scale, "kl": scale / a, "stderr": 0.0} for a in (0.01, 0.1, 1.0)]
        told = {"seed": seed, "size": size, "confusion": size - 1, "random": is_random, "curve": curve, "fitted": True}
        told |= dict.fromkeys(("l2", "l1_path", "l2_path", "spectral", "sharpness", "train_error"), scale + 0.1 * seed)
        expected = scale * (size + 0.1 * seed + is_random)
        return told | {"expected_sharpness": expected, "test_error": 0.5} | ({} if name is None else {"name": name})

    results = [
        result(name, seed, size + 10 * (name is not None), is_random)
        for name in (None, "VGG")
        for seed in range(3)
        for size in (1, 2, 3)
        for is_random in (False, True)
    ]
    verdicts = STUDIES[study].claims(results)
    assert [v.claim.endswith(", VGG") for v in verdicts] == [False, False, True, True]
    alone = STUDIES[study].claims([r for r in results if "name" not in r])
    assert [v.statistic for v in alone] == [v.statistic for v in verdicts[:2]], "the VGG changes nothing of the CNN's"
    drawn = STUDIES[study].figure(results).axes
    x = [{*line.get_xdata()} for panel in drawn[1:7] for line in panel.lines]
    assert x and all(max(own) - min(own) <= 2 for own in x)
    titles = " ".join(panel.get_title() for panel in drawn)
    assert "CNN" in titles and "VGG" in titles
    listed = STUDIES[study].list_runs("half")
    assert {c.get("name") for c in listed} == {None, "VGG"} and max(
        c.get("true", c.get("size")) for c in listed
    ) == 10_000


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


@pytest.fixture(scope="module")
def fitted():
    """A network and samples with the labels that it gives them, so that every margin is positive."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    model = build("mlp", seed=0, widths=(4, 6, 3)).eval()
    return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def minimum(fitted):
    model, *data = fitted
    return Minimum(model, tuple(data), seed=3)


def test_draws_are_shared_out_among_batches_of_samples(minimum):
    """One draw each is the paper's way; the error is over batches, as each has samples of its own."""
    found = curve_over_batches(minimum, (0.01, 0.1), draws=6, samples=8, batches=3)
    each = [
        measures.bicriteria(minimum, alphas=(0.01, 0.1), draws=2, samples=8, seed=9 + b).details["curve"]
        for b in range(3)
    ]
    for i, point in enumerate(found):
        rises = [own[i]["sharpness"] for own in each]
        assert point["sharpness"] == pytest.approx(fmean(rises)) and len(set(rises)) == 3
        assert point["stderr"] == pytest.approx(stdev(rises) / math.sqrt(3))
        assert point["kl"] == each[0][i]["kl"]
    assert curve_over_batches(minimum, (0.01,), draws=5, samples=8, batches=5)[0]["stderr"] > 0  # one draw a batch
    (whole,) = curve_over_batches(minimum, (0.01,), draws=6, samples=8, batches=1)
    assert whole == measures.bicriteria(minimum, alphas=(0.01,), draws=6, samples=8).details["curve"][0]


def test_margins_of_other_shares_are_recorded(fitted, minimum):
    config = {"seed": 3, "draws": 2, "samples": 8, "alphas": [0.01]}
    found = look(*fitted, config)
    for share in (0.001, 0.01, 0.05, 0.1):
        margin = measures.margin(minimum, fraction=share).value
        assert found[f"ln_margin_{share:g}"] == pytest.approx(math.log(margin))
    assert found["ln_margin_mean"] > found["ln_margin_0.05"] and len(found["curve"]) == 1


def test_half_has_twelve_levels_of_noise_in_its_range():
    found = half(200, 20, (2e-3, 1.5e-2))
    assert found["alphas"][0] == 2e-3 and found["alphas"][-1] == 1.5e-2 and len(found["alphas"]) == 12
    ratios = [b / a for a, b in zip(found["alphas"], found["alphas"][1:], strict=False)]
    assert max(ratios) / min(ratios) < 1.01 and found["samples"] == 64 and found["draws"] % found["batches"] == 0


def test_histograms_count_every_ratio_and_their_largest_is_the_librarys():
    """C1 and C3 of `statistics.conditions` are the largest of the ratios that are counted."""
    draw = torch.Generator().manual_seed(5)
    weights = [
        torch.randn(size, generator=draw, dtype=torch.float64) / size[1] ** 0.5 for size in ((6, 4), (6, 6), (3, 6))
    ]
    x = torch.rand(5, 4, generator=draw, dtype=torch.float64)
    found, each = histograms(weights, x), [histograms(weights, row[None]) for row in x]
    assert sum(found["inner"]) == 5 * 1 and sum(found["ends"]) == 5 * 9  # a <= c < b over four maps: 10 in all
    assert sum(found["units"]) == 5 * (6 + 6 + 3)
    truth = sample_conditions(weights, x / x.norm(dim=1, keepdim=True))
    for name, counts in (("inverse_mu", ("inner", "ends")), ("c3", ("units",))):
        for at, one in enumerate(each):
            last = max(k for key in counts for k, n in enumerate(one[key]) if n)
            assert EDGES[last] <= float(getattr(truth, name)[at]) <= EDGES[last + 1] + 1e-6
    z = weights[0] @ x[0]
    assert found["outputs"][:3] == pytest.approx((weights[2] @ (weights[1] @ z.relu()).relu()).tolist(), rel=1e-3)
    assert found["flips"]["most"] == sorted(found["flips"]["most"]) and max(found["flips"]["most"]) <= 1


def test_shares_that_flip_are_counted_by_hand():
    """A layer that passes its inputs on, of which two lie within 0.1 of zero and one more within 0.3."""
    x = torch.tensor([[0.02, 0.05, 0.2, 0.9]])
    found = histograms([torch.eye(4), torch.ones(2, 4)], x)["flips"]["most"]
    assert [found[DELTAS.index(d)] for d in (0.01, 0.0316, 0.1, 0.316)] == [0.0, 0.25, 0.5, 0.75]


def _committed(name, scale):
    (document,) = [d for d in documents(RESULTS, name) if d["scale"] == scale]
    return [run["result"] for run in document["runs"] if "result" in run]


@pytest.mark.parametrize(("name", "scale"), [("neyshabur-width", "paper"), ("neyshabur-width", "half")])
def test_no_title_is_cut_off(name, scale):
    """A layout leaves room for numbers and legends, not for a title that is wider than its panel."""
    with style(name):
        figure = STUDIES[name].figure(_committed(name, scale))
        figure.draw_without_rendering()
    edge = figure.bbox
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1 and box.y1 <= edge.y1, axes.get_title()


def test_a_figure_of_older_runs_says_so():
    with style("neyshabur-conditions"):
        older = [{k: v for k, v in r.items() if k != "histograms"} for r in _committed("neyshabur-conditions", "cpu")]
        figure = STUDIES["neyshabur-conditions"].figure(older)
        assert "older version" in figure.get_suptitle() and "Fig. 6 and 7" in figure.get_suptitle()
    said = STUDIES["neyshabur-conditions"].reduction["paper"]
    missing = not all("histograms" in r for r in _committed("neyshabur-conditions", "paper"))
    assert ("older version" in said) is missing, "the page says of the committed runs what they have"
