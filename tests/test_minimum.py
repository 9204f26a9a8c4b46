"""`Minimum`: what it takes, what it refuses in one line, and that a cache is never stale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from case_networks import Net
from cases import BY_NAME, LAYERS
from flatminima import Minimum
from flatminima.core.perturbation import Gaussian, Relative
from flatminima.core.statistic import Statistic
from flatminima.errors import (
    DataError,
    FlatMinimaError,
    ModelError,
    NumericalError,
    StaleMinimum,
    Undefined,
    UsageError,
)
from flatminima.statistics import (
    FisherDiagonal,
    GaussNewtonDiagonal,
    Gram,
    HessianProbes,
    Outputs,
    ParameterCount,
    PerturbedLoss,
    Weights,
    curvature_operator,
)
from mutation import Untouched

N = 7
X, Y = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 2


def mlp(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.ReLU(), nn.Linear(4, 2))


def minimum(model: nn.Module | None = None, **options: Any) -> Minimum:
    return Minimum((model or mlp()).eval(), (X, Y), **options)


# -- the mapping -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted(Statistic[int]):
    """Counts its computations."""

    key: int = 0
    fails: bool = False

    def compute(self, minimum: Minimum) -> int:
        minimum.seed += 1
        if self.fails:
            raise Undefined("never")
        return self.key


def test_it_says_what_it_is_of() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    minimum = Minimum(model, (torch.randn(20, 3), torch.arange(20) % 2))
    assert repr(minimum) == "Minimum of Sequential: 26 parameters, 20 samples, loss cross_entropy, on cpu"


def test_a_mapping_that_computes_once() -> None:
    m = minimum()
    assert len(m) == 0 and Counted() not in m
    assert m[Counted(3)] == 3 and m[Counted(3), Counted(4)] == (3, 4) and m.seed == 2
    assert list(m) == [Counted(3), Counted(4)] and Counted(3) in m and len(m) == 2


def test_undefined_is_remembered() -> None:
    m = minimum()
    for _ in range(2):
        with pytest.raises(Undefined, match="never"):
            m[Counted(fails=True)]
    assert m.seed == 1


def test_what_is_found_at_other_weights_is_not_kept() -> None:
    m = minimum()
    here = m[Outputs()].losses
    with m.moved(Gaussian(Relative(0.5)), 0, 0):
        there = m[Outputs()].losses
        assert not torch.allclose(here, there)
        assert m[FisherDiagonal()].shape == (26,)
    assert FisherDiagonal() not in m
    assert torch.equal(m[Outputs()].losses, here)


def test_weights_and_their_number() -> None:
    """Tied ones once, frozen ones apart."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 2)})
    model["b"].weight = model["a"].weight
    model["c"].weight.requires_grad_(False)
    m = minimum(Net(lambda s, x: s.net["c"](s.net["b"](s.net["a"](x))), net=model))
    weights = m[Weights()]
    assert m[ParameterCount()] == 17 == len(weights.values) and weights.frozen == 6
    assert weights.names == ("net.a.weight", "net.a.bias", "net.b.bias", "net.c.bias")
    assert torch.equal(weights.values[9:12], model["a"].bias.detach().double())
    sums = weights.by_parameter(torch.ones(17))
    assert sums == {"net.a.weight": 9.0, "net.a.bias": 3.0, "net.b.bias": 3.0, "net.c.bias": 2.0}


# -- stale -----------------------------------------------------------------------------------------------------------


def _step(model: nn.Module) -> None:
    F.cross_entropy(model(X), Y).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "step": _step,
    "data": lambda m: m[0].weight.data.mul_(1.5),
    "entry": lambda m: m[2].weight.data.view(-1).__setitem__(3, 1.0),
    "loaded": lambda m: m.load_state_dict(mlp().state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "use",
    [
        lambda m: m[Outputs()],
        lambda m: m[Gram(3)],
        lambda m: m[Weights()],
        lambda m: m.sweep([Gram(3)]),
        lambda m: curvature_operator(m).matvec(torch.ones(26).numpy()),
    ],
    ids=["known", "fold", "statistic", "sweep", "operator"],
)
def test_a_changed_model_is_refused(change: str, use: Callable[[Minimum], object]) -> None:
    model = mlp()
    m = minimum(model)
    m[Outputs()]
    CHANGES[change](model)
    for _ in range(2):  # and it does not forget
        with pytest.raises(StaleMinimum, match="make a new Minimum"):
            use(m)


def test_its_own_work_is_not_a_change() -> None:
    m = minimum(mlp(nn.BatchNorm1d(4)))
    m[PerturbedLoss(Gaussian(Relative(0.1)), draws=2)]
    m[Gram(3)], m[HessianProbes(1)]
    assert len(m) == 4


# -- forms of models -------------------------------------------------------------------------------------------------


def test_wrapped_models_are_unwrapped() -> None:
    inner = mlp()
    holder = nn.Module()
    holder._orig_mod = inner  # as torch.compile does
    expected = minimum(inner)[Gram(3)].normalized
    for wrapped in (nn.DataParallel(inner), holder):
        assert torch.equal(minimum(wrapped)[Gram(3)].normalized, expected)


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda z: z, None),
        (lambda z: SimpleNamespace(logits=z), None),
        (lambda z: {"logits": z, "loss": z.sum()}, None),
        (lambda z: (z,), None),
        (lambda z: (z, z + 1), 0),
        (lambda z: [z + 1, z], -1),
        (lambda z: {"out": z, "aux": z + 1}, "out"),
        (lambda z: SimpleNamespace(start=z, end=z + 1), "start"),
        (lambda z: {"heads": [z + 1, z]}, lambda out: out["heads"][1]),
    ],
    ids=["tensor", "object", "dict", "one", "tuple", "list", "named", "attribute", "function"],
)
def test_forms_of_output(wrap: Callable[[Tensor], Any], output: Any) -> None:
    inner = mlp()
    m = minimum(Net(lambda s, x: wrap(s.inner(x)), inner=inner), output=output)
    assert torch.equal(m[Outputs()].losses, minimum(inner)[Outputs()].losses)


@pytest.mark.parametrize(
    ("wrap", "output", "words"),
    [
        (lambda z: (z, z + 1), None, r"a tuple of \(\(\d, 2\), \(\d, 2\)\).*output="),
        (lambda z: {"out": z, "aux": z}, None, r"'out': \(\d, 2\), 'aux'.*output="),
        (lambda z: (z, z), 2, "output=2 names no tensor"),
        (lambda z: {"out": z}, "logits", "output='logits' names no tensor"),
        (lambda z: z.argmax(1), None, "returned torch.int64; expected real floating-point"),
    ],
    ids=["tuple", "dict", "no such place", "no such name", "classes"],
)
def test_outputs_that_do_not_say_where_the_logits_are(wrap: Callable[[Tensor], Any], output: Any, words: str) -> None:
    """The first entry of (features, logits) was once taken for logits, without a word."""
    with pytest.raises(ModelError, match=words):
        minimum(Net(lambda s, x: wrap(s.inner(x)), inner=mlp()), output=output)


def test_labels_of_any_integer_type() -> None:
    expected = minimum()[Gram(3)].matrices()
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(Minimum(mlp(), (X, Y.to(dtype)))[Gram(3)].matrices(), expected)


@pytest.mark.parametrize("name", ["mlp", "conv2d circular", "batch_norm2d", "layer_norm", "embedding", "attention",
                                  "raw parameters", "rms_norm", "group_norm", "tied embedding and head"])  # fmt: skip
def test_bfloat16(name: str, untouched: Untouched) -> None:
    """Followed layer by layer, with products in float32; as good as the format, three digits."""
    case = BY_NAME[name]
    model, data = case.make(torch.bfloat16)
    m = Minimum(model, data, case.loss)
    with untouched(model):
        assert m.follows_layers
        found, diagonal = m[Gram(3), GaussNewtonDiagonal()]
    wide, (inputs, targets) = case.make(torch.float64)
    wide.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    inputs = data[0].double() if data[0].is_floating_point() else inputs
    expected = Minimum(wide, (inputs, targets), case.loss)
    truth = expected[Gram(3)].matrices()
    assert float((found.matrices() - truth).abs().max()) < 0.1 * float(truth.abs().max())
    assert float((diagonal - expected[GaussNewtonDiagonal()]).norm()) < 0.1 * float(diagonal.norm())


def test_eval_mode_is_used_and_training_mode_kept(untouched: Untouched) -> None:
    """A network in training mode without dropout and BatchNorm is measured all the same."""
    model = mlp().train()
    with untouched(model):
        assert torch.equal(Minimum(model, (X, Y))[Outputs()].losses, minimum()[Outputs()].losses)


def test_counts_of_samples() -> None:
    one = Minimum(mlp(), (X[:1], Y[:1]))
    assert one[Outputs()].losses.shape == (1,) and one[Gram(1)].trials == 1
    assert one[HessianProbes(2)].traces.shape == (1, 2)


# -- refusals --------------------------------------------------------------------------------------------------------


def _with(module: nn.Module, write: Callable[[nn.Module], object]) -> nn.Module:
    write(module)
    return module


class Random(nn.Module):
    """Stochastic depth that forgot its training flag: two passes agree most of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out if torch.rand(()) < 0.7 else 2 * out


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.seen = nn.Linear(3, 2), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        out: Tensor = self.fc(x) * self.seen
        return out


L = nn.Linear
MODELS: list[tuple[str, Callable[[], Any], type[FlatMinimaError], str]] = [
    ("no module", lambda: lambda x: x, ModelError, "model of type function; expected a torch.nn.Module"),
    ("all frozen", lambda: mlp().requires_grad_(False), ModelError, "no trainable parameter among 4"),
    ("no parameters", lambda: nn.Flatten(), ModelError, "no trainable parameter among 0"),
    (
        "NaN",
        lambda: _with(mlp(), lambda m: m[2].bias.data.fill_(torch.nan)),
        NumericalError,
        "parameter '2.bias' holds NaN or Inf",
    ),
    (
        "Inf in a frozen one",
        lambda: _with(mlp(), lambda m: m[0].weight.requires_grad_(False).fill_(torch.inf)),
        NumericalError,
        "parameter '0.weight' holds NaN",
    ),
    ("meta", lambda: L(3, 2, device="meta"), ModelError, "'weight' holds no values .*materialise"),
    ("complex", lambda: L(3, 2, dtype=torch.complex64), ModelError, "'weight' is torch.complex64"),
    ("dropout", lambda: mlp(nn.Dropout()).train(), ModelError, r"training mode and 1 is Dropout.*model.eval\(\)"),
    ("batch norm", lambda: mlp(nn.BatchNorm1d(4)).train(), ModelError, "training mode and 1 is BatchNorm1d"),
    (
        "part in training mode",
        lambda: _with(mlp(nn.BatchNorm1d(4)).eval(), lambda m: m[1].train()),
        ModelError,
        "training mode and 1 is BatchNorm1d",
    ),
    (
        "dropout in an LSTM",
        lambda: Net(lambda s, x: s.a(x)[0], a=nn.LSTM(3, 2, 2, dropout=0.1)),
        ModelError,
        "training mode and a is LSTM",
    ),
    (
        "functional dropout",
        lambda: Net(lambda s, x: F.dropout(s.a(x), 0.5, training=True), a=L(3, 2)),
        ModelError,
        r"two forward passes in eval mode differ.*functional dropout",
    ),
    ("rarely random", Random, ModelError, "two forward passes in eval mode differ"),
    ("keeps state", Counting, ModelError, "keeps state"),
    (
        "samples mixed",
        lambda: mlp(nn.BatchNorm1d(4, track_running_stats=False)).eval(),
        ModelError,
        "a sample changes with the others in its batch .*BatchNorm",
    ),
    ("centred", lambda: Net(lambda s, x: s.a(x - x.mean(0)), a=L(3, 2)), ModelError, "changes with the others"),
    ("wrong batch", lambda: Net(lambda s, x: s.a(x)[:1], a=L(3, 2)), ModelError, r"returned \(1, 2\) for \d samples"),
    ("no tensor", lambda: Net(lambda s, x: "yes", a=L(3, 2)), ModelError, "returned str; expected a tensor"),
    ("shape", lambda: L(4, 2), DataError, r"cannot take the inputs \(\d, 3\) float32.*mat1 and mat2"),
    ("dtype", lambda: L(3, 2).double(), DataError, r"cannot take the inputs \(\d, 3\) float32.*dtype"),
    ("few classes", lambda: L(3, 1), DataError, "label 1 of sample 1 is out of range: the network has 1 classes"),
    (
        "overflow",
        lambda: _with(L(3, 2), lambda m: m.weight.data.fill_(1e38)),
        NumericalError,
        "of sample 0 is not finite",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in MODELS])
def test_models_refused_in_one_line(make: Callable[[], Any], error: type[FlatMinimaError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Minimum(make(), (10 * X, Y))
    assert "\n" not in str(caught.value)


def _moving(output: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(output, target, reduction="none")
    return losses - losses.mean()


DATA: list[tuple[str, Any, Any, type[FlatMinimaError], str]] = [
    (
        "far label",
        (X, torch.tensor([0, 1, 0, 1, 0, 1, 2])),
        "cross_entropy",
        DataError,
        "label 2 of sample 6 .*2 classes",
    ),
    ("float labels", (X, Y.float()), "cross_entropy", DataError, "dtype torch.float32.*class indices"),
    ("one-hot labels", (X, F.one_hot(Y)), "cross_entropy", DataError, r"shape \(\d, 2\)"),
    ("mse broadcasting", (X, torch.randn(N)), "mse", DataError, "broadcast in silence"),
    ("scalar loss", (X, Y), lambda o, t: F.cross_entropy(o, t), DataError, r"'<lambda>' returned \(\) for \d samples"),
    ("matrix loss", (X, Y), lambda o, t: o - t[:, None], DataError, r"returned \(\d, 2\) for \d samples"),
    ("NaN loss", (X, Y), lambda o, t: o[:, 0] * torch.nan, NumericalError, "the loss of sample 0 is not finite"),
    ("loss of a batch", (X, Y), _moving, DataError, "'_moving' of a sample changes with the others"),
    ("unknown loss", (X, Y), "cross-entropy", UsageError, "did you mean 'cross_entropy'"),
]


@pytest.mark.parametrize(("data", "loss", "error", "message"), [pytest.param(*rest, id=name) for name, *rest in DATA])
def test_data_and_losses_refused_in_one_line(data: Any, loss: Any, error: type[FlatMinimaError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Minimum(mlp(), data, loss)
    assert "\n" not in str(caught.value)


def test_batch_size() -> None:
    with pytest.raises(UsageError, match="batch_size=0; it must be at least 1"):
        minimum(batch_size=0)


def test_a_far_label_in_a_dataset_is_named_by_its_place() -> None:
    """Every label is read, not only those that a statistic draws."""
    pairs = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
    pairs[5] = (pairs[5][0], 9)
    with pytest.raises(DataError, match="label 9 of sample 5"):
        Minimum(mlp(), pairs)


def test_fewer_samples_than_the_gram_matrix() -> None:
    """One matrix of them all; the measures refuse where the caller asked for more."""
    torch.testing.assert_close(minimum()[Gram(8)].matrices(), minimum()[Gram(7)].matrices())
    with pytest.raises(DataError, match="subset=0"):
        Gram(0)


def test_an_output_that_no_trainable_parameter_moves() -> None:
    m = minimum(Net(lambda s, x: x[:, :2], a=L(3, 2)))
    for statistic in (Gram(3), FisherDiagonal(), GaussNewtonDiagonal()):
        with pytest.raises(Undefined, match="does not depend on a trainable parameter"):
            m[statistic]
    assert m[Outputs()].losses.shape == (N,)


def test_a_refused_model_is_left_as_it_was(untouched: Untouched) -> None:
    model = Random()
    with untouched(model), pytest.raises(ModelError):
        Minimum(model, (X, Y))


def test_layer_rules_know_what_they_do_not_know() -> None:
    """A wrong rule is found by the comparison with autograd, and the slow path used: never a wrong number."""
    from flatminima.core import layer_rules

    case = next(c for c in LAYERS if c.name == "batch_norm1d")
    expected = Minimum(*case.make())[Gram(3)].matrices()
    right = layer_rules.RULES[nn.BatchNorm1d]
    layer_rules.RULES[nn.BatchNorm1d] = lambda layer, a, e: {k: v * 1.001 for k, v in right(layer, a, e).items()}
    try:
        m = Minimum(*case.make())
        assert not m.follows_layers
        torch.testing.assert_close(m[Gram(3)].matrices(), expected)
    finally:
        layer_rules.RULES[nn.BatchNorm1d] = right


def test_a_copy_elsewhere_is_measured() -> None:
    """`device` of another kind moves a copy; 'cpu' is where the model already is."""
    model = mlp()
    assert Minimum(model, (X, Y), device="cpu").model is model
    assert copy.deepcopy(model)[0].weight.equal(model[0].weight)
