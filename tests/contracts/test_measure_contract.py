"""What every measure of the catalogue keeps, on every network of the table. A new measure is in it by its one line."""

import dataclasses
import inspect
import json
import math
from functools import cache, partial

import pytest
import torch
from measure_networks import NETWORKS, SMALL, generator, randomise
from torch import nn

from flatminima import Minimum, catalog, measure
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measuring import _Known, _Missing
from mutation import snapshot

MEASURES = sorted(catalog.MEASURES)
FUNCTIONS = {name: catalog.MEASURES[name].load() for name in MEASURES}
DRAWING = [name for name in MEASURES if "seed" in inspect.signature(FUNCTIONS[name]).parameters]
KEYS = sorted(NETWORKS)

names = pytest.mark.parametrize("name", MEASURES)
# a worker that has a network's tables gets all of its tests
networks = pytest.mark.parametrize(
    "key", [pytest.param(k, marks=[pytest.mark.xdist_group(f"contract of {k}"), pytest.mark.slow]) for k in KEYS]
)


def small(name, **options):
    return partial(FUNCTIONS[name], **SMALL.get(name, {}), **options)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Of one measure alone: its answer, how often it asked for statistics, and what it left changed."""

    estimate: Estimate
    asked: int
    changed: list[str]


@cache
def alone(name, key):
    """The one evaluation of a measure on a network: every test below compares with it."""
    model = NETWORKS[key].model
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    before, minimum, asked = snapshot(model), NETWORKS[key].minimum(), 0
    while True:
        try:
            estimate = small(name)(_Known(minimum))
            break
        except _Missing as request:
            asked += 1
            minimum.compute(request.keys)
    after = snapshot(model)
    for p in model.parameters():
        p.grad = None
    return Evaluation(estimate, asked, [k for k in before.keys() | after.keys() if before.get(k) != after.get(k)])


@cache
def table(key, variant="", value=None):
    """Every measure of one network in one table: as it is, with other batches, data in another order, another seed."""
    network = NETWORKS[key]
    if variant == "order":
        order = torch.randperm(len(network.y), generator=generator(3))
        network = dataclasses.replace(network, x=network.x[order], y=network.y[order])
    if variant == "again":
        torch.manual_seed(12345)
    options = {variant: value} if variant in ("batch_size", "seed") else {}
    return rows(network.minimum(**options), [small(name) for name in MEASURES])


def rows(minimum, functions):
    """The table's estimates in the order of the functions."""
    return dict(zip(MEASURES, measure(minimum, functions).values(), strict=True))


@names
def test_docstring_says_what_goes_in_what_comes_out_and_where_it_is_from(name):
    text = inspect.getdoc(FUNCTIONS[name])
    for section in ("Args:", "Returns:", "Source:"):
        assert f"\n{section}\n" in text, f"{name} has no {section}"


@names
def test_options_are_keyword_only_typed_and_documented(name):
    function = inspect.unwrap(FUNCTIONS[name])
    first, *options = inspect.signature(function).parameters.values()
    assert (first.name, first.annotation) == ("minimum", "Statistics")
    text = inspect.getdoc(function)
    for option in options:
        assert option.kind is option.KEYWORD_ONLY, option
        assert option.annotation is not option.empty, option
        assert option.default is not option.empty, option
        assert option.name in text, f"{name}: {option.name} is not documented"
        assert option.name != "seed" or option.default is None  # None: the Minimum's own


@networks
@names
def test_a_value_or_a_reason_never_nan(name, key):
    """And the direction of the catalogue either way; details that are JSON, strictly."""
    found = alone(name, key).estimate
    assert isinstance(found, Estimate)
    assert found.direction == catalog.MEASURES[name].direction
    assert found.kind == "score"
    json.dumps(found.to_dict(), allow_nan=False)
    reason = NETWORKS[key].undefined.get(name, "")
    if reason:
        assert reason in found.undefined
    elif reason is not None:
        assert found.undefined is None
        assert math.isfinite(found.value)


@networks
@names
def test_at_most_two_rounds(name, key):
    """Asked on what is known, it names what it misses at most twice, then answers."""
    assert alone(name, key).asked <= 2


@networks
@names
def test_the_model_is_left_as_it_was(name, key):
    """Weights, buffers, gradients, modes, hooks and the random states."""
    assert alone(name, key).changed == []


def same(one, two, rel=1e-6):
    assert (one.undefined is None) == (two.undefined is None), (one, two)
    if one.value is not None:
        assert one.value == pytest.approx(two.value, rel=rel, abs=1e-12)
        assert (one.stderr is None) == (two.stderr is None)
        if one.stderr is not None:
            assert one.stderr == pytest.approx(two.stderr, rel=rel, abs=1e-12)


@networks
@names
def test_alone_or_in_a_table(name, key):
    """Sharing sweeps with every other measure changes the cost, never the number."""
    same(table(key)[name], alone(name, key).estimate, rel=1e-11)


@networks
@names
def test_the_same_again_bit_for_bit(name, key):
    """Whatever the global random state."""
    assert table(key)[name].to_dict() == table(key, "again")[name].to_dict()


@networks
@names
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_does_not_matter(name, key, batch_size):
    same(table(key, "batch_size", batch_size)[name], alone(name, key).estimate)


@networks
@names
def test_the_order_of_the_data_does_not_matter(name, key):
    same(table(key, "order")[name], alone(name, key).estimate)


def _drawn_on(name):
    return "mlp without biases" if name in ("conditions", "perturbation_score") else "mlp"


@cache
def seeded(key, of_minimum, of_measure):
    """A table of the measures that draw, each with a seed of its own."""
    given = [small(n, seed=of_measure) if n in DRAWING else small(n) for n in MEASURES]
    return rows(NETWORKS[key].minimum(seed=of_minimum), given)


@pytest.mark.parametrize("name", DRAWING)
def test_the_minimums_seed_is_the_default(name):
    """Catches a Minimum whose seed reaches no draw."""
    key = _drawn_on(name)
    default = table(key, "seed", 7)[name]
    assert default.to_dict() == seeded(key, 0, 7)[name].to_dict()
    assert default.value != table(key)[name].value


@pytest.mark.parametrize("name", DRAWING)
def test_seeds_that_are_given_win(name):
    key = _drawn_on(name)
    assert seeded(key, 7, 0)[name].to_dict() == table(key)[name].to_dict()


@names
def test_a_measure_needs_its_statistics(name):
    """A pure function of what it is handed: nothing there, nothing comes out of somewhere else."""
    with pytest.raises(KeyError):
        FUNCTIONS[name](Fixed({}))


@pytest.mark.parametrize(
    "name", ["fisher_logdet", "fisher_trace", "fisher_frobenius", "fisher_spectral_radius", "hessian_trace"]
)
def test_a_frozen_layer_in_front_is_part_of_the_data(name):
    """Measures of gradients alone: the same as of the rest on that layer's outputs."""
    front, head = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    whole = randomise(nn.Sequential(front, head))
    front.requires_grad_(False)
    x = torch.randn(21, 4, generator=generator(2), dtype=torch.float64)
    y = torch.arange(21) % 3
    # one subset, one group: the order does not matter
    options = {"subset": 21} if name.startswith("fisher") else {"probes": 2, "groups": 1}
    function = FUNCTIONS[name]
    same(function(Minimum(whole, (x, y)), **options), function(Minimum(head, (front(x), y)), **options), rel=1e-9)


# -- what a measure is invariant to ----------------------------------------------------------------------------------


def _plain(bias=True):
    net = nn.Sequential(
        nn.Linear(4, 6, bias=bias), nn.ReLU(), nn.Linear(6, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias)
    )
    return randomise(net, 3)


def _minimum_of(model):
    x = torch.randn(60, 4, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        base = _plain(bias=model[0].bias is not None)(x)
        two = base.topk(2).values
        keep = two[:, 0] - two[:, 1] > 1e-2
    return Minimum(model, (x[keep], base[keep].argmax(1)))


@torch.no_grad()
def layerwise(a):
    """W1 and b1 times a, W2 divided by a (Dinh et al. 2017)."""
    model = _plain()
    model[0].weight *= a
    model[0].bias *= a
    model[2].weight /= a
    return model


@torch.no_grad()
def unitwise(a):
    """A factor for each hidden unit, a, 1, 1/a, a, ..."""
    model = _plain()
    factors = torch.tensor([a, 1.0, 1 / a, a, 1.0, 1 / a], dtype=torch.float64)
    model[0].weight *= factors.unsqueeze(1)
    model[0].bias *= factors
    model[2].weight /= factors
    return model


@torch.no_grad()
def balanced(a):
    """Without biases, all layers by factors a, a^2, a^-3, whose product is 1: layer rescaling, repeated."""
    model = _plain(bias=False)
    for layer, factor in zip((model[0], model[2], model[4]), (a, a**2, a**-3), strict=True):
        layer.weight *= factor
    return model


TRANSFORMATIONS = {
    "layerwise": (layerwise, catalog.LAYERWISE),
    "unitwise": (unitwise, catalog.UNITWISE),
    "balanced": (balanced, catalog.LAYERWISE),
}
FACTORS = (1e-2, 0.3, 1.0, 3.0, 1e2)


@pytest.mark.parametrize("kind", sorted(TRANSFORMATIONS))
def test_the_transformations_leave_the_function_unchanged(kind):
    transform, _ = TRANSFORMATIONS[kind]
    x = torch.randn(9, 4, generator=generator(6), dtype=torch.float64)
    for a in FACTORS:
        assert torch.allclose(transform(a)(x), transform(1.0)(x), rtol=1e-10, atol=1e-12)


def _options(name, kind):
    if name == "fisher_logdet_full":
        return {"pseudo": True}
    if name == "power_law_exponent":
        return SMALL[name]
    if name == "distance_from_init":
        transform, _ = TRANSFORMATIONS[kind]
        return {"initial": torch.ones(len(_minimum_of(transform(1.0)).parameters))}
    return {"subset": 8} if "subset" in inspect.signature(FUNCTIONS[name]).parameters else {}


@cache
def transformed(kind):
    """For each factor a table of every measure."""
    transform, _ = TRANSFORMATIONS[kind]
    given = [partial(FUNCTIONS[name], **_options(name, kind)) for name in MEASURES]
    return [rows(_minimum_of(transform(a)), given) for a in FACTORS]


@names
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.xdist_group(f"invariance {k}")) for k in sorted(TRANSFORMATIONS)]
)
def test_the_catalogue_says_what_a_measure_is_invariant_to(name, kind):
    """Listed: unchanged over a = 1e-2 ... 1e2. Not listed: it changes, and the reader must know."""
    values = [one[name].value for one in transformed(kind)]
    if name in ("conditions", "perturbation_score") and kind != "balanced":
        assert values == [None] * len(FACTORS)  # of networks without biases
        return
    assert None not in values
    spread = (max(values) - min(values)) / max(map(abs, values))
    if TRANSFORMATIONS[kind][1] in catalog.MEASURES[name].invariant:
        assert spread < 1e-6, values
    else:
        assert spread > 1e-3, values


@names
def test_invariances_are_the_ones_that_are_tested(name):
    assert catalog.MEASURES[name].invariant <= {invariance for _, invariance in TRANSFORMATIONS.values()}


# -- bad input -------------------------------------------------------------------------------------------------------


@names
def test_an_unknown_option_is_pythons_own_error(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'samplse'"):
        FUNCTIONS[name](NETWORKS["mlp"].minimum(), samplse=3)


@names
def test_counts_below_one_are_usage_errors(name):
    """Never a ZeroDivisionError or a NaN from the middle of a sweep."""
    function = FUNCTIONS[name]
    counts = {"subset", "trials", "probes", "samples", "draws", "batch"} & inspect.signature(function).parameters.keys()
    for count in counts:
        with pytest.raises(UsageError, match=r"at least 1"):
            function(NETWORKS["mlp"].minimum(), **{count: 0})
