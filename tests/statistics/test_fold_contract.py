"""What every statistic promises, on every network: merged parts equal the whole, and neither the size of the batches
nor the order of the data nor the dtype decides, and the model is as before.

Statistics are discovered: a new one is in the contract as it is made without arguments, or by its line in `SIZES`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from case_networks import Case, N, cast
from cases import BY_NAME, CASES
from flatminima import Minimum, statistics
from flatminima.core.batch import Batch
from flatminima.core.perturbation import Gaussian, Relative, TruncatedGaussian, Uniform
from flatminima.core.statistic import Fold, Statistic
from flatminima.core.sweep import SharedPass, SweepRun
from flatminima.errors import Undefined
from flatminima.statistics import (
    AdaptiveWorstLoss,
    At,
    BatchGradientSquares,
    Change,
    Conditions,
    DrawnGaussNewtonDiagonal,
    ExactTraces,
    FisherDiagonal,
    FisherFactor,
    FisherMatrix,
    FisherParts,
    GaussNewtonDiagonal,
    GaussNewtonFactor,
    Gram,
    HessianDiagonal,
    HessianProbes,
    InFloat64,
    InputJacobian,
    NoiseLevel,
    OutputEntropies,
    Outputs,
    ParameterCount,
    PerturbedLoss,
    PositionJacobian,
    PositionSums,
    RadialGradients,
    Redrawn,
    RescaledLogits,
    SketchedDiagonal,
    SketchedTraces,
    SpectralDensity,
    TopEigenvalues,
    TrainingGram,
    Weights,
    WorstCaseLoss,
)
from mutation import Untouched

pytestmark = pytest.mark.slow

# of seven samples; a class that is not here is taken as it is made without arguments
SIZES: dict[type[Statistic[Any]], list[Statistic[Any]]] = {
    PositionJacobian: [PositionJacobian(4, seed=2), PositionJacobian(of="logits")],
    Gram: [Gram(3), Gram(2, trials=2, seed=4)],
    RadialGradients: [RadialGradients(4, seed=3)],
    FisherDiagonal: [FisherDiagonal(), FisherDiagonal(samples=4, seed=1)],
    FisherParts: [FisherParts(samples=6, parts=2, seed=1)],
    GaussNewtonDiagonal: [GaussNewtonDiagonal(), GaussNewtonDiagonal(samples=5)],
    FisherFactor: [FisherFactor(4, seed=1)],
    GaussNewtonFactor: [GaussNewtonFactor(5)],
    InputJacobian: [InputJacobian(), InputJacobian(4, seed=2)],
    HessianProbes: [
        HessianProbes(2),
        HessianProbes(2, samples=4, seed=3),
        HessianProbes(1, groups=3),
        HessianProbes(2, samples=6, groups=2, curvature="gauss_newton"),
    ],
    ExactTraces: [ExactTraces(), ExactTraces(5, seed=1)],
    BatchGradientSquares: [BatchGradientSquares(2)],
    PerturbedLoss: [
        PerturbedLoss(Uniform(Relative(0.05)), draws=3, samples=4),
        PerturbedLoss(TruncatedGaussian(Relative(0.05)), draws=2, samples=100, antithetic=True, seed=7),
    ],
    At: [At(FisherDiagonal(samples=5), Gaussian(Relative(0.05)))],
    InFloat64: [InFloat64(Gram(3))],
    AdaptiveWorstLoss: [AdaptiveWorstLoss(0.1, steps=2, samples=5)],
    WorstCaseLoss: [WorstCaseLoss(Relative(0.05), method="ascent", steps=2, samples=5)],
    Change: [Change(FisherDiagonal(samples=5), Gaussian(Relative(0.05)))],
    Redrawn: [Redrawn(FisherDiagonal(samples=4), 1)],
    RescaledLogits: [RescaledLogits(Gram(3), norm=2.0)],
    Conditions: [Conditions(samples=4)],
    SketchedDiagonal: [SketchedDiagonal(products=6, samples=5)],
    TopEigenvalues: [TopEigenvalues(samples=5)],
    NoiseLevel: [NoiseLevel(rise="loss", draws=2, samples=5)],
    TrainingGram: [TrainingGram(subset=2, trials=2, chunk=2)],
    FisherMatrix: [FisherMatrix(samples=5)],
    SpectralDensity: [SpectralDensity(probes=1, steps=3, samples=5)],
    SketchedTraces: [SketchedTraces(products=6, samples=4, groups=2)],
}


def discovered() -> list[type[Statistic[Any]]]:
    """Every public statistic of the package."""
    modules = [
        importlib.import_module(m.name) for m in pkgutil.walk_packages(statistics.__path__, "flatminima.statistics.")
    ]
    kinds = [kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)]
    kinds = [k for k in kinds if issubclass(k, Statistic) and not inspect.isabstract(k) and k.__name__[0] != "_"]
    return sorted(set(kinds), key=lambda kind: kind.__name__)


def needs_sizes(kind: type[Statistic[Any]]) -> bool:
    """Whether it cannot be made without arguments, and has no line."""
    options = inspect.signature(kind).parameters.values()
    return kind not in SIZES and any(option.default is option.empty for option in options)


WITHOUT_SIZES = [kind.__name__ for kind in discovered() if needs_sizes(kind)]
STATISTICS = [s for kind in discovered() if not needs_sizes(kind) for s in SIZES.get(kind) or [kind()]]
FOLDS: list[Fold[Any, Any]] = [statistic for statistic in STATISTICS if isinstance(statistic, Fold)]
# of HessianDiagonal, a product a parameter, the code is that of probes
QUICK: list[Statistic[Any]] = [s for s in STATISTICS if not isinstance(s, HessianDiagonal)]
# no searches, iterations or differences of losses: rounding decides which way they go, so float32 is another value
DIRECT: list[Statistic[Any]] = [
    *(fold for fold in FOLDS if not isinstance(fold, HessianDiagonal | DrawnGaussNewtonDiagonal)),
    *(s for kind in (Weights, ParameterCount, At, InFloat64) for s in STATISTICS if isinstance(s, kind)),
]
SOME = [
    BY_NAME[name]
    for name in (
        "mlp",
        "batch_norm2d",
        "sequences, gradients formed",
        "tied embedding and head",
        "raw parameters",
        "multi-head attention",
        "a layer's input written in place",
        "the data written in place",
        "dict inputs, output with logits",
        "mse",
        "causal_lm",
        "a module in two places",
    )
]

each_statistic = pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
each_fold = pytest.mark.parametrize("fold", FOLDS, ids=repr)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every number of a statistic's value."""
    if isinstance(value, Tensor):
        yield value.double()
    elif isinstance(value, int | float):
        yield torch.tensor(float(value)).double()
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, Undefined):
        yield torch.zeros(0, dtype=torch.float64)


def assert_alike(one: Any, two: Any, rounding: float = 1e-10) -> None:
    assert type(one) is type(two), (one, two)
    for a, b in zip(tensors(one), tensors(two), strict=True):
        assert a.shape == b.shape
        if a.numel():
            assert float((a - b).abs().max()) <= rounding * max(float(a.abs().max()), 1e-3)


def value(minimum: Minimum, statistic: Statistic[Any]) -> Any:
    """The value, or the Undefined itself."""
    try:
        return minimum[statistic]
    except Undefined as reason:
        return reason


def minimum_of(case: Case, *, batch_size: int = 3, order: Tensor | None = None, dtype: Any = torch.float64) -> Minimum:
    model, (inputs, targets) = case.make(dtype)
    if order is not None:
        inputs, targets = _shuffled(inputs, order), targets[order]
    return Minimum(model, (inputs, targets), case.loss, batch_size=batch_size)


def _shuffled(inputs: Any, order: Tensor) -> Any:
    if isinstance(inputs, dict):
        return {k: v[order] for k, v in inputs.items()}
    return tuple(v[order] for v in inputs) if isinstance(inputs, tuple) else inputs[order]


def merged(minimum: Minimum, fold: Fold[Any, Any], parts: list[list[Tensor]]) -> Any:
    """The fold over each part (lists of positions) on its own, merged."""
    order = torch.arange(N) if fold.order_seed is None else minimum.samples.order(fold.order_seed)
    states = []
    with minimum.open():
        for part in parts:
            run = SweepRun(minimum, SharedPass((fold,), fold.order_seed, fold.multiple))
            for positions in part:
                batch = Batch(minimum, order[positions], int(positions[0]))
                run.update(batch, [fold])
            states.append(run.states[fold])
    total = states[0]
    for state in states[1:]:
        total = fold.merge(total, state)
    return fold.finish(total)


def _computed(minimum: Minimum, which: list[Statistic[Any]] = QUICK) -> Minimum:
    minimum.compute(which)
    return minimum


@cache
def _base(name: str) -> Minimum:
    """What every variant of a case is compared with: computed once."""
    return _computed(minimum_of(BY_NAME[name]))


def test_every_statistic_is_in_the_contract() -> None:
    assert WITHOUT_SIZES == [], "give each a line in SIZES"
    assert {type(s) for s in STATISTICS} == set(discovered()) and len(FOLDS) >= 28


@each_fold
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_parts_merged_equal_the_whole(fold: Fold[Any, Any], case: Case) -> None:
    """Three ranks, of which one has nothing: a mean of means, or a state that forgets, shows here."""
    minimum = _base(case.name)
    whole = value(minimum, fold)
    if isinstance(whole, Undefined):
        pytest.skip(whole.reason)
    limit, step = fold.limit(minimum), fold.multiple
    runs = list(torch.arange(limit).split(step))
    parts = [runs[1::2], [], runs[::2]]
    assert_alike(merged(minimum, fold, parts), whole)


def _compare(found: Minimum, expected: Minimum, rounding: float = 1e-10, back: Tensor | None = None) -> None:
    """Every statistic of one against the other; `back` undoes the order of the data, in which outputs are given."""
    for statistic in QUICK:
        one = value(found, statistic)
        if back is not None and isinstance(statistic, Outputs):
            margins = None if one.margins is None else one.margins[back]
            one = dataclasses.replace(one, losses=one.losses[back], margins=margins)
        if back is not None and isinstance(one, PositionSums) and isinstance(statistic, OutputEntropies):
            one = dataclasses.replace(one, sums=one.sums[back], counts=one.counts[back])
        assert_alike(one, value(expected, statistic), rounding)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_company_does_not_matter(case: Case) -> None:
    """Alone, or in one sweep with everything else: sharing may change the cost, never a result.

    Every second statistic alone on a network, the others on the next: each on six of the twelve.
    """
    together = _base(case.name)
    for statistic in STATISTICS[SOME.index(case) % 2 :: 2]:
        assert_alike(value(minimum_of(case), statistic), value(together, statistic))


@pytest.mark.parametrize("batch_size", [1, 100])  # the base has 3, 3 and 1
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_the_size_of_the_batches_does_not_matter(case: Case, batch_size: int) -> None:
    _compare(_computed(minimum_of(case, batch_size=batch_size)), _base(case.name))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_the_order_of_the_data_does_not_matter(case: Case) -> None:
    """Subsets are drawn by the samples' contents."""
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    _compare(_computed(minimum_of(case, order=order)), _base(case.name), back=order.argsort())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_is_close_to_float64(case: Case) -> None:
    """Kernels differ by dtype (fused attention and LSTM, layer rules): none may fail or drift in float32."""
    double = _base(case.name) if case in SOME else _computed(minimum_of(case), DIRECT)
    single = _computed(minimum_of(case, dtype=torch.float32), DIRECT)
    assert single.follows_layers == double.follows_layers
    for statistic in DIRECT:
        assert_alike(value(single, statistic), value(double, statistic), 2e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_model_is_untouched(case: Case, untouched: Untouched) -> None:
    model, (inputs, targets) = case.make()
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 0.5)
    model.register_forward_hook(lambda *_: None)
    copies = cast(inputs, torch.float64), targets.clone()
    kept = [t.clone() for t in _leaves(copies)]
    with untouched(model):
        minimum = _computed(
            Minimum(model, copies, case.loss, batch_size=3),
            [*DIRECT, *SIZES[PerturbedLoss]],
        )
    assert all(torch.equal(a, b) for a, b in zip(kept, _leaves(copies), strict=True))
    minimum.compute([Gram(2, seed=9)])  # and it does not take its own work for somebody else's


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in (value.values() if isinstance(value, dict) else value) for t in _leaves(v)]


_ARMED: list[bool] = []  # no attribute of the network, which would be another one


class _Fails(nn.Module):
    """Raises at the given call, after it spoiled what it could."""

    def __init__(self, inner: nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.at, self.calls = inner, at, 0
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1.0
        self.inner[0].weight.data.mul_(1.0)
        out: Tensor = self.inner(x)
        if _ARMED and self.calls >= self.at:
            with torch.no_grad():
                self.inner[0].weight.mul_(2.0)
            self.seen = torch.ones(3)
            self.train()
            torch.rand(1)
            raise KeyError("in the middle")
        return out


@each_statistic
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_exception_in_forward_leaves_the_model_as_it_was(
    statistic: Statistic[Any], at: int, untouched: Untouched
) -> None:
    """Weights, buffers (replaced ones too), counters, modes, hooks and random state come back; the error comes out."""
    inner, data = BY_NAME["batch_norm2d"].make()
    model = _Fails(inner, at).eval().double()
    minimum = Minimum(model, data, batch_size=3)
    defined = True
    _ARMED.append(True)
    try:
        with untouched(model):
            try:
                minimum[statistic]
            except KeyError as error:
                assert "in the middle" in str(error)
            except Undefined:  # what traces a network says that it does not run; some are of other networks
                defined = False
    finally:
        _ARMED.clear()
    minimum.refuse_stale()
    if defined:
        assert_alike(value(minimum, statistic), value(Minimum(inner, data, batch_size=3), statistic))


@dataclasses.dataclass(frozen=True)
class _Raises(Gram):
    def receive(self, state: Any, layer: Any, batch: Batch) -> None:
        raise KeyError("in receive")


def test_an_exception_in_the_backward_pass_leaves_the_model_as_it_was(untouched: Untouched) -> None:
    """Parameters are frozen and hooks installed at that moment."""
    for name in ("batch_norm2d", "multi-head attention"):
        model, data = BY_NAME[name].make()
        minimum = Minimum(model, data)
        with untouched(model), pytest.raises(KeyError, match="in receive"):
            minimum[_Raises(3)]
        assert minimum[Gram(3)].trials == 2


@dataclasses.dataclass(frozen=True)
class _Withdraws(FisherDiagonal):
    def receive(self, state: Any, layer: Any, batch: Batch) -> None:
        if batch.start:
            raise Undefined("not for the second batch")
        super().receive(state, layer, batch)


def test_one_undefined_fold_does_not_spoil_its_company() -> None:
    minimum = minimum_of(BY_NAME["mlp"])
    minimum.compute([_Withdraws(), FisherDiagonal(), Outputs()])
    with pytest.raises(Undefined, match="second batch"):
        minimum[_Withdraws()]
    assert_alike(minimum[FisherDiagonal()], minimum_of(BY_NAME["mlp"])[FisherDiagonal()])


def test_the_contract_sees_a_mean_of_batch_means() -> None:
    """A fold that weighs batches alike passes none of the above."""

    @dataclasses.dataclass(frozen=True)
    class BatchMeans(Fold[Any, Any]):
        def init(self, minimum: Minimum) -> Any:
            return torch.zeros(2, dtype=torch.float64)

        def update(self, state: Any, batch: Batch) -> Any:
            return state + torch.stack([batch.losses.mean(), torch.ones((), dtype=torch.float64)])

        def merge(self, left: Any, right: Any) -> Any:
            return left + right

        def finish(self, state: Any) -> Any:
            return state[0] / state[1]

    one = value(minimum_of(BY_NAME["mlp"], batch_size=3), BatchMeans())
    with pytest.raises(AssertionError):
        assert_alike(value(minimum_of(BY_NAME["mlp"], batch_size=2), BatchMeans()), one)
