"""`measure()` and `plan()`: the same numbers for fewer passes, and the errors of asking."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from flatminima import Estimate, Minimum, catalog, measure, measures, plan, progress
from flatminima.core.statistic import Cost, Statistic
from flatminima.errors import DataError, NumericalError, Undefined, UnknownName, UsageError
from flatminima.measuring import functions, notes
from flatminima.statistics import GaussNewtonDiagonal, Gram, HessianProbes, Outputs

torch.set_num_threads(1)

SEVEN = [
    "fisher_frobenius",
    "fisher_logdet",
    "fisher_spectral_radius",
    "fisher_trace",
    "frobenius_norm",
    "margin",
    "path_norm",
]


def _network(n=300, seed=0):
    source = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=torch.float64))
        x = torch.randn(n, 6, generator=source, dtype=torch.float64)
        return net, x, net(x).argmax(1)


def _minimum(n=300, **options):
    net, x, y = _network(n)
    return Minimum(net, (x, y), **options)


def test_a_table_is_the_direct_calls():
    """On the same Minimum exactly; on a fresh one up to the rounding of other batches."""
    minimum = _minimum()
    table = measure(minimum, list(catalog.MEASURES))
    assert list(table) == list(catalog.MEASURES)
    for name, found in table.items():
        direct = getattr(measures, name)(minimum)
        assert direct.to_dict() == found.to_dict(), name
        alone = getattr(measures, name)(_minimum())
        if found.value is None:
            assert alone.undefined == found.undefined
            continue
        # an eigenvalue is as exact as its solver's tolerance
        rel = 1e-6 if name == "hessian_top_eigenvalue" else 1e-9
        assert alone.value == pytest.approx(found.value, rel=rel, abs=1e-15), name
        if found.stderr is not None:
            assert alone.stderr == pytest.approx(found.stderr, rel=1e-7, abs=1e-15), name


def test_the_rows_stand_in_the_order_of_the_request():
    names = ["margin", "fisher_trace", "parameter_count", "fisher_logdet"]
    assert list(measure(_minimum(), names)) == names


@pytest.mark.parametrize("n", [300, 200])
@pytest.mark.parametrize("batch_size", [64, 100, 256])
def test_seven_measures_in_one_sweep(n, batch_size):
    """Alone they take 5 forward and 4 backward passes; the audit of the layer rules is the small rest."""
    minimum = _minimum(n, batch_size=batch_size)
    table = measure(minimum, SEVEN)
    assert all(e.value is not None for e in table.values())
    assert 1.0 <= minimum.passes.forward / n <= 1.2
    assert 1.0 <= minimum.passes.backward / n <= 1.2
    assert table.forward_passes == minimum.passes.forward / n
    assert table.backward_passes == minimum.passes.backward / n
    alone = [0, 0]
    for name in SEVEN:
        single = _minimum(n, batch_size=batch_size)
        getattr(measures, name)(single)
        alone[0] += single.passes.forward
        alone[1] += single.passes.backward
    assert alone[0] >= 5 * n
    assert alone[1] >= 4 * n


def test_measuring_again_is_free():
    minimum = _minimum()
    measure(minimum, SEVEN)
    before = (minimum.passes.forward, minimum.passes.backward)
    again = measure(minimum, SEVEN)
    assert (minimum.passes.forward, minimum.passes.backward) == before
    assert (again.forward_passes, again.backward_passes) == (0.0, 0.0)


def test_the_table_says_what_was_measured():
    net, x, y = _network()
    net[0].requires_grad_(False)
    table = measure(Minimum(net, (x, y)), ["margin"])
    assert (table.samples, table.parameters, table.loss) == (300, 84, "cross_entropy")
    assert table.notes[0].startswith("measured in eval mode")
    assert "140 frozen parameters left out" in table.notes
    assert "weights in float64; sums in float64" in table.notes
    shuffled = measure(Minimum(net, (x.flip(0), y.flip(0))), ["margin"])
    assert shuffled.data == table.data
    assert measure(Minimum(net, (x[1:], y[1:])), ["margin"]).data != table.data


class _Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return x * self.scale


def test_slow_paths_are_in_the_notes():
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    minimum = Minimum(nn.Sequential(_Scale()), (x, torch.arange(8) % 2))
    measure(minimum, [partial(measures.fisher_trace, subset=4)])
    assert any("_Scale" in note or "one backward pass a sample" in note for note in notes(minimum))


# -- what may be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"), [("margn", "margin"), ("fisher_log_det", "fisher_logdet"), ("pacGen", "pacgen")]
)
def test_an_unknown_measure_suggests_the_nearest(name, nearest):
    for ask in (measure, plan):
        with pytest.raises(UnknownName, match=f"unknown measure '{name}': did you mean '{nearest}'\\?"):
            ask(_minimum(), [name])


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(UnknownName, match=r"known: .*margin, .*vc_dimension \(see `flatminima list`\)"):
        measure(_minimum(), ["zzzzqqqq"])


@pytest.mark.parametrize("nothing", [[], (), iter([])])
def test_no_measures_are_refused(nothing):
    with pytest.raises(UsageError, match="got no measures; name at least one, or pass None for all"):
        measure(_minimum(), nothing)


@pytest.mark.parametrize("entry", [3, None, ["margin"]])
def test_what_is_neither_name_nor_function_is_refused(entry):
    with pytest.raises(UsageError, match="expected a name or a function"):
        measure(_minimum(), [entry])


def test_one_name_or_function_needs_no_list():
    assert list(measure(_minimum(), "margin")) == ["margin"]
    assert list(measure(_minimum(), measures.margin)) == ["margin"]


def test_a_generator_of_measures_is_read_once():
    assert list(measure(_minimum(), (n for n in ["margin", "parameter_count"]))) == ["margin", "parameter_count"]


def test_partials_carry_their_options_in_the_name():
    chosen = [partial(measures.margin, fraction=0.5), partial(measures.margin, fraction=0.1), "margin"]
    minimum = _minimum()
    table = measure(minimum, chosen)
    assert list(table) == ["margin(fraction=0.5)", "margin(fraction=0.1)", "margin"]
    assert table["margin(fraction=0.5)"] == measures.margin(minimum, fraction=0.5)
    assert table["margin(fraction=0.5)"].value > table["margin"].value
    nested = partial(partial(measures.pacgen, gamma=0.2), rho="zero")
    assert list(functions([nested])) == ["pacgen(gamma=0.2, rho=zero)"]


def test_two_functions_of_one_name_keep_two_rows():
    """Catches a dictionary in which the second replaces the first in silence."""
    one, two = (lambda s, v=v: Estimate(v) for v in (1.0, 2.0))
    table = measure(_minimum(), [one, two, one])
    assert [(name, e.value) for name, e in table.items()] == [("<lambda>", 1.0), ("<lambda> #2", 2.0)]

    def margin(statistics):
        return Estimate(-5.0)

    table = measure(_minimum(), [margin, "margin", measures.margin])
    assert list(table) == ["margin", "margin #2"]
    assert table["margin"].value == -5.0


class _Called:
    def __call__(self, statistics):
        return Estimate(7.0)


def test_a_callable_object_goes_by_its_type():
    assert list(measure(_minimum(), [_Called()])) == ["_Called"]


def test_a_users_own_function_shares_the_sweep():
    def mean_loss(statistics):
        return Estimate.mean(statistics[Outputs()].losses)

    minimum = _minimum()
    table = measure(minimum, [mean_loss, "fisher_trace"])
    loss = nn.functional.cross_entropy(minimum.model(minimum.samples.inputs), minimum.samples.targets)
    assert table["mean_loss"].value == pytest.approx(loss.item(), rel=1e-12)
    assert table.forward_passes <= 1.05


def test_an_undefined_statistic_of_a_users_function_is_an_undefined_row():
    def mine(statistics):
        raise Undefined("not on Tuesdays")

    table = measure(_minimum(), [mine, "margin"])
    assert table["mine"].undefined == "not on Tuesdays"
    assert table["margin"].value is not None


def test_a_function_that_returns_no_estimate_is_refused():
    with pytest.raises(UsageError, match="measure 'mine' returned float; expected an Estimate"):
        measure(_minimum(), [_mine])


def _mine(statistics):
    return 3.0


_mine.__name__ = "mine"


@dataclass(frozen=True)
class _Numbered(Statistic[int]):
    number: int

    def compute(self, minimum):
        return self.number

    def cost(self, minimum):
        return Cost(forward=1.0)


def test_a_measure_that_never_stops_asking_is_stopped():
    numbers = iter(range(10**6))

    def restless(statistics):
        return Estimate(float(statistics[_Numbered(next(numbers))]))

    with pytest.raises(UsageError, match="restless still asked for new statistics after 16 rounds"):
        measure(_minimum(), [restless])


def test_bad_data_stops_the_table_and_is_named():
    with pytest.raises(DataError, match=r"got 9 samples.*subset=100 needs as many"):
        measure(_minimum(9), [partial(measures.fisher_trace, subset=100)])
    net, x, y = _network(20)
    minimum = Minimum(net, (x, y), lambda output, target: output.sum(1) / (target - 3).double())
    assert bool((y == 3).any())
    with pytest.raises(NumericalError, match=r"the loss of sample \d+ is not finite"):
        measure(minimum, [lambda s: Estimate.mean(s[Outputs()].losses)])


# -- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_computes_nothing():
    minimum = _minimum()
    found = plan(minimum)
    assert (minimum.passes.forward, minimum.passes.backward) == (0, 0)
    assert len(minimum) == 0
    assert found.cost.forward > 40  # expected sharpness alone
    assert "Gram(subset=100, trials=100, seed=0)" in str(found)


def test_a_plan_of_one_sweep_predicts_the_passes():
    minimum = _minimum()
    found = plan(minimum, SEVEN)
    assert len(found.sweeps) == 1
    assert set(found.sweeps[0]) == {"Gram(subset=100, trials=100, seed=0)", "Margins()", "Outputs()"}
    table = measure(minimum, SEVEN)
    assert table.forward_passes == pytest.approx(found.cost.forward, rel=0.05)
    assert table.backward_passes == pytest.approx(found.cost.backward, rel=0.05)


@pytest.mark.parametrize(
    "names",
    [
        ["pacgen"],
        ["pacgen", "fisher_trace", "robustness"],
        ["margin", "hessian_trace"],
        ["expected_sharpness", "margin"],
        ["pacgen", "hessian_trace", "fisher_logdet", "margin"],
    ],
)
def test_a_plan_predicts_the_passes_of_what_cannot_share(names):
    """pacGen: 1 + draws = 3 passes of 4 columns. A Hessian product counts as 2 backward passes."""
    minimum = _minimum()
    found = plan(minimum, names)
    table = measure(minimum, names)
    assert table.forward_passes == pytest.approx(found.cost.forward, rel=0.05)
    assert table.backward_passes == pytest.approx(found.cost.backward, rel=0.05)
    assert "pacgen" not in names or table.backward_passes >= 12


def test_a_plan_knows_what_is_known_already():
    minimum = _minimum()
    measure(minimum, SEVEN)
    found = plan(minimum, SEVEN)
    assert (found.sweeps, found.others, found.cost) == ((), (), Cost())
    assert str(found) == "passes over the data: 0.00 forward, 0.00 backward; 0.0 MiB kept beside the model"


def test_a_plan_names_what_loops_on_its_own():
    found = plan(_minimum(), ["expected_sharpness", "parameter_count"])
    assert found.sweeps == ()
    assert any(name.startswith("PerturbedLoss(") for name in found.others)
    assert str(found).splitlines()[0] == "on their own:"
    assert "  ParameterCount()" in str(found).splitlines()


def test_costs_add_up_and_memory_is_the_largest():
    assert Cost(1.0, 2.0, 5) + Cost(0.5, 0.25, 3) == Cost(1.5, 2.25, 5)


def test_a_plan_tells_orders_that_cannot_share_a_sweep():
    def two(statistics):
        return Estimate.mean(statistics[Gram(10, 3, 0), GaussNewtonDiagonal(20, 5), HessianProbes(1)][1])

    found = plan(_minimum(), [two])
    assert len(found.sweeps) == 2


# -- progress --------------------------------------------------------------------------------------------------------


def test_progress_goes_through_the_hook_and_nowhere_else(capfd):
    heard = []
    with progress.listening(lambda task, done, total: heard.append((task, done, total))):
        measure(_minimum(batch_size=100), ["fisher_trace", "margin", partial(measures.expected_sharpness, draws=3)])
    measure(_minimum(), ["margin"])  # nobody listens any more
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    sweeps = [(done, total) for task, done, total in heard if task == "Gram, Margins, Outputs"]
    assert sweeps == [(100, 300), (200, 300), (300, 300)]
    assert [(done, total) for task, done, total in heard if task == "expected sharpness"] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 < done <= total and math.isfinite(total) for _, done, total in heard)


def test_the_listener_before_comes_back():
    outer, inner = [], []
    with progress.listening(lambda *report: outer.append(report)):
        with progress.listening(lambda *report: inner.append(report)):
            progress.report("a", 1, 2)
        progress.report("b", 2, 2)
    assert (inner, outer) == ([("a", 1, 2)], [("b", 2, 2)])
