"""Forty bad inputs and faults, each with its number: what is refused says so in one line, what is not gives the truth.

`ELSEWHERE` names the tests of faults that live with what they belong to; that they exist is a test as well.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flatminima import Minimum, bounds, measures
from flatminima.core.perturbation import Gaussian, Relative
from flatminima.errors import DataError, FlatMinimaError, ModelError, NumericalError, UsageError
from flatminima.statistics import Outputs

TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    16: ("training/test_checkpoint.py", "test_misfits_list_the_first_five_of_each_kind"),
    17: ("training/test_checkpoint.py", "test_a_pickled_module_is_refused_with_the_way_out"),
    18: ("training/test_checkpoint.py", "test_nothing_in_a_file_is_executed"),
    19: ("training/test_checkpoint.py", "test_truncated_files"),
    20: ("training/test_checkpoint.py", "test_files_of_another_kind"),
    21: ("cli/test_cli_errors.py", "test_bad_models_are_one_line"),
    22: ("data/test_sources.py", "test_offline_a_hub_name_fails_at_once"),
    35: ("statistics/test_lanczos.py", "test_a_triple_eigenvalue_and_no_ghosts"),
    37: ("test_out_of_memory.py", "test_the_same_numbers_in_smaller_batches"),
    38: ("faults/test_killed.py", "test_a_process_killed"),
    39: ("training/test_checkpoint.py", "test_a_write_that_fails_leaves_the_old_file_and_nothing_else"),
    40: ("test_ranks.py", "test_an_error_on_one_rank_is_an_error_on_both"),
}
HERE = {*range(1, 16), *range(23, 35), 36}

torch.manual_seed(0)
X, Y = torch.randn(40, 4), torch.arange(40) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def trace(model: nn.Module | None = None, data: Any = (X, Y), loss: Any = "cross_entropy", subset: int = 10) -> Any:
    return measures.fisher_trace(Minimum(model or net(), data, loss), subset=subset)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), 0.5, training=True)


class Raising(nn.Module):
    """Its forward pass fails after a while, in the user's own way."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        Raising.calls += 1
        if Raising.calls > 3:
            raise KeyError("the user's own error")
        return self.layer(x)


def holding(value: float) -> nn.Module:
    model = net()
    model[0].weight.data[0, 0] = value
    return model


def spoiled(value: float) -> Tensor:
    x = X.clone()
    x[3] = value
    return x


REFUSED: list[tuple[float, Callable[[], Any], type[FlatMinimaError], str]] = [
    (1, lambda: Minimum(net(), (X[:0], Y[:0])), DataError, "no samples in data"),
    (3, lambda: Minimum(net(), (pair for pair in [(X, Y)])), DataError, r"one-pass generator.*list\(\.\.\.\)"),
    (4, lambda: trace(data=DataLoader(TensorDataset(X, Y), 10, shuffle=True)), DataError, "shuffle=False"),
    (6, lambda: trace(data=(X, Y.index_fill(0, torch.tensor([5]), 7))), DataError, "label 7 of sample 5.*3 classes"),
    (7, lambda: trace(data=(X, torch.full((40,), -100))), DataError, "label -100 of sample 0"),
    (9, lambda: trace(nn.Linear(4, 1), (X, torch.randn(40)), "mse"), DataError, "broadcast in silence"),
    (10, lambda: trace(loss=lambda o, t: F.cross_entropy(o, t)), DataError, r"returned \(\).*reduction='none'"),
    (
        12,
        lambda: trace(loss=lambda o, t: F.cross_entropy(o, t, reduction="none") * o.std()),
        DataError,
        "changes with the others in its batch",
    ),
    (13, lambda: Minimum(holding(math.nan), (X, Y)), NumericalError, "parameter '0.weight' holds NaN or Inf"),
    (14, lambda: trace(data=(spoiled(math.inf), Y)), DataError, "sample 3 holds NaN or Inf"),
    (23, lambda: Minimum(net().requires_grad_(False), (X, Y)), ModelError, "no trainable parameter"),
    (27, lambda: trace(Dropping().eval()), ModelError, "draws random numbers"),
    (
        28,
        lambda: Minimum(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train(), (X, Y)),
        ModelError,
        "model.eval()",
    ),
    (32, lambda: Minimum(nn.Linear(4, 3, dtype=torch.complex64), (X, Y)), ModelError, "real floating-point"),
    (33, lambda: Minimum(nn.Linear(4, 3, device="meta"), (X, Y)), ModelError, "materialise it first"),
    (33.5, lambda: Minimum(nn.Sequential(nn.LazyLinear(3)), (X, Y)), ModelError, "materialise it first"),
    *[
        (36, lambda change=change: bounds.pac_bayes_kl(*change), UsageError, f"got {name} = {value}")  # type: ignore[misc]
        for name, value, change in [
            ("risk", "-0.1", (-0.1, 1.0, 100, 0.05)),
            ("risk", "1.1", (1.1, 1.0, 100, 0.05)),
            ("risk", "nan", (math.nan, 1.0, 100, 0.05)),
            ("kl", "-1.0", (0.1, -1.0, 100, 0.05)),
            ("n", "0.0", (0.1, 1.0, 0, 0.05)),
            ("delta", "0.0", (0.1, 1.0, 100, 0.0)),
            ("delta", "1.5", (0.1, 1.0, 100, 1.5)),
        ]
    ],
]


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(("number", "call", "error", "message"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_refused_in_one_line(
    number: float, call: Callable[[], Any], error: type[FlatMinimaError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_02_one_sample_has_a_value_and_no_error_bar() -> None:
    found = trace(data=(X[:1], Y[:1]), subset=1)
    assert found.value > 0 and found.stderr is None


def test_05_batches_of_any_size_give_the_same() -> None:
    """A sharpness is a difference of float32 losses, and as exact as those."""
    first, *others = (Minimum(net(), (X, Y), batch_size=b) for b in (1, 7, 40))
    expected = [measures.expected_sharpness(first, draws=4).value, measures.margin(first).value]
    norm = measures.fisher_rao_norm(first).value
    rounding = torch.finfo(torch.float32).eps * float(first[Outputs()].losses.mean())
    for other in others:
        found = [measures.expected_sharpness(other, draws=4).value, measures.margin(other).value]
        assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=4 * rounding)
        assert found[1] == pytest.approx(expected[1], rel=1e-5)
        assert measures.fisher_rao_norm(other).value == pytest.approx(norm, rel=1e-5)


def test_08_soft_labels_have_losses_but_no_margin() -> None:
    soft = Minimum(
        net(), (X, F.one_hot(Y, 3).float()), lambda o, t: -(t * o.log_softmax(1)).sum(1)
    )  # fmt: skip
    assert measures.expected_sharpness(soft, draws=2).value is not None
    assert measures.margin(soft).value is None and measures.margin(soft).undefined


def test_11_a_loss_without_a_gradient_is_undefined_with_the_reason() -> None:
    found = trace(loss=lambda o, t: (o.argmax(1) != t).float())
    assert found.value is None and "no gradient" in str(found.undefined)


def test_15_a_loss_that_explodes_is_a_number_or_undefined_never_nan_in_json() -> None:
    model = net()
    model[2].weight.data *= 1e30
    found = measures.expected_sharpness(
        Minimum(model, (X, Y)), perturbation=Gaussian(Relative(1e20, slope=0.0, offset=1.0)), draws=3
    )
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.value is None or math.isfinite(found.value)


def test_23_some_frozen_parameters_are_left_out_and_counted() -> None:
    model = net()
    model[0].requires_grad_(False)
    assert len(Minimum(model, (X, Y)).parameters) == sum(p.numel() for p in model[2].parameters())


@pytest.mark.parametrize("tied", [False, True], ids=["25 the same module twice", "24 one weight in two modules"])
def test_24_25_shared_weights_are_one_parameter_with_the_sum_of_gradients(tied: bool) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second if tied else first, nn.Linear(4, 3)).double().eval()
    x = X.double()
    tensors = list(model.parameters())
    exact = []
    for i in range(10):
        grads = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), Y[i : i + 1]), tensors)
        exact.append(sum(float(g.square().sum()) for g in grads))
    assert trace(model, (x[:10], Y[:10])).value == pytest.approx(sum(exact) / 10, rel=1e-9)


def test_26_unused_parameters_have_gradient_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("unused", nn.Parameter(torch.ones(5)))
    assert trace(model).value == pytest.approx(trace(nn.Sequential(model[0])).value, rel=1e-6)


def test_29_batchnorm_that_never_saw_variance_is_no_division_by_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    model[1].running_var.zero_()
    for found in (trace(model), measures.path_norm(Minimum(model, (X, Y)))):
        assert found.value is None or math.isfinite(found.value)


def test_30_attention_has_second_derivatives() -> None:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(8, 3)
    )
    data = (X.view(20, 2, 4), Y[:20])
    found = measures.hessian_top_eigenvalue(Minimum(model.eval(), data))
    assert found.value is not None


def test_31_recurrent_networks_have_second_derivatives() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.lstm(x)[0][:, -1])
            return out

    assert measures.hessian_top_eigenvalue(Minimum(Recurrent().eval(), (X.view(40, 2, 2), Y))).value is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on compiling
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "DataParallel"])
def test_32_wrappers_are_taken_off(wrap: Callable[[nn.Module], Any]) -> None:
    assert trace(wrap(net())).value == trace().value


def test_34_an_error_of_the_users_own_passes_and_the_model_is_as_before() -> None:
    model = Raising()
    before = [p.clone() for p in model.parameters()]
    Raising.calls = 0
    with pytest.raises(KeyError, match="the user's own error"):
        measures.expected_sharpness(Minimum(model, (X, Y), batch_size=2), draws=50)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not model._forward_hooks and not model.layer._forward_hooks


def test_36_an_infinite_divergence_gives_a_vacuous_bound() -> None:
    assert bounds.pac_bayes_kl(0.1, math.inf, 100, 0.05) == 1.0


@pytest.mark.parametrize(("number", "place"), ELSEWHERE.items(), ids=map(str, ELSEWHERE))
def test_tested_elsewhere(number: int, place: tuple[str, str]) -> None:
    assert re.search(rf"^def {place[1]}", (TESTS / place[0]).read_text(), re.M)


def test_all_forty_are_somewhere() -> None:
    assert HERE | ELSEWHERE.keys() == set(range(1, 41))
