"""Which to ship: the answer, who is left out of it, and that nothing untrained or broken ever comes first."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import Minimum
from flatminima.data import load_tensors
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.models import mlp
from flatminima.ranking import Look, RankTable, choose, look, order, probabilities, rank
from flatminima.ranking.calibrated import BETA, CONVOLUTIONS, PERCEPTRONS
from flatminima.ranking.candidates import Answers, Candidate
from flatminima.table import MeasureTable
from flatminima.training import TrainConfig, train

CALIBRATION = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rank_calibration.json"
WIDTHS = (64, 16, 10)
DATA = load_tensors("digits", limit=400)
TEST = load_tensors("digits", "test")


def trained(seed: int, epochs: int = 25, data: Any = DATA) -> nn.Module:
    torch.manual_seed(seed)
    model = mlp(WIDTHS)
    train(model, *data, config=TrainConfig(lr=0.1, epochs=epochs, batch_size=32))
    return model.eval()


@cache
def good() -> list[nn.Module]:
    """Two networks that fit, trained once."""
    return [trained(0), trained(1)]


def last(model: nn.Module) -> nn.Linear:
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def altered(change: Callable[[nn.Module], None]) -> nn.Module:
    model = copy.deepcopy(good()[0])
    with torch.no_grad():
        change(model)
    return model.eval()


def scaled(factor: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for p in model.parameters():
            p.mul_(factor)

    return change


def scaled_head(model: nn.Module) -> None:
    for p in last(model).parameters():
        p.mul_(1e-3)


def drawn_anew(model: nn.Module) -> None:
    torch.manual_seed(5)
    last(model).reset_parameters()


def constant(model: nn.Module) -> None:
    last(model).weight.zero_()
    last(model).bias.copy_(torch.arange(10.0))


def permuted(model: nn.Module) -> None:
    rows = torch.roll(torch.arange(10), 3)
    last(model).weight.copy_(last(model).weight[rows])
    last(model).bias.copy_(last(model).bias[rows])


def swapped_pair(model: nn.Module) -> None:
    rows = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    last(model).weight.copy_(last(model).weight[rows])
    last(model).bias.copy_(last(model).bias[rows])


def broken(kind: str) -> nn.Module:
    """A network that must not be shipped, and must come first in no order."""
    if kind == "untrained":
        torch.manual_seed(9)
        return mlp(WIDTHS).eval()
    if kind == "other data":
        x, y = DATA
        return trained(3, data=(x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]))
    if kind == "other scaling":
        return trained(4, data=((DATA[0] - 0.3) * 40, DATA[1]))
    return altered(
        {
            "weights scaled": scaled(1e-3),
            "head scaled": scaled_head,
            "head drawn anew": drawn_anew,
            "constant": constant,
            "head permuted": permuted,
            "two classes swapped": swapped_pair,
        }[kind]
    )


BROKEN = (
    "untrained", "weights scaled", "head scaled", "head drawn anew", "constant", "head permuted", "two classes swapped",
    "other data", "other scaling",
)  # fmt: skip
FAST = ["path_norm", "fisher_trace", "parameter_norm", "margin"]


@pytest.mark.parametrize("kind", BROKEN)
def test_nothing_broken_comes_first_or_is_shipped(kind: str) -> None:
    """Small weights have small norms and curvature: by measures alone each of these would win."""
    minima = [Minimum(m, DATA) for m in (broken(kind), *good())]
    names = ["broken", "a", "b"]
    by_measures = rank(minima, measures=FAST, names=names).choice
    assert by_measures is not None and "broken" not in by_measures.ship
    assert by_measures.order is None or "broken" not in {p.name for p in by_measures.order.places}
    candidate = by_measures.candidates[0]
    assert candidate.left_out or candidate.unordered
    assert any("broken" in note for note in by_measures.notes)
    by_test = rank(minima, measures=["parameter_count"], test=TEST, names=names).choice
    assert by_test is not None and ("broken" not in by_test.ship or kind == "head scaled")
    assert by_test.candidates[0].test_error is not None and by_test.candidates[0].train_error is not None


def test_nan_weights_are_left_out_by_name() -> None:
    def nan(model: nn.Module) -> None:
        last(model).weight[0, 0] = float("nan")

    from flatminima.errors import FlatMinimaError
    from flatminima.ranking import failed

    with pytest.raises(FlatMinimaError) as refused:
        Minimum(altered(nan), DATA)
    looks = [
        Look(failed("nan", refused.value)),
        *(look(n, Minimum(m, DATA)) for n, m in zip("ab", good(), strict=True)),
    ]
    found = choose(looks)
    assert found.candidates[0].left_out and "nan" not in found.ship


def test_none_of_broken_candidates_is_shipped() -> None:
    minima = [Minimum(broken(kind), DATA) for kind in ("untrained", "constant")]
    found = rank(minima, measures=FAST).choice
    assert found is not None and found.ship == () and found.answer.startswith("Ship none")
    one = rank([Minimum(broken("untrained"), DATA), Minimum(good()[0], DATA)], measures=FAST, names=["u", "g"]).choice
    assert one is not None and one.order is None and one.answer.startswith("No order: only g fits")


def test_the_reason_names_what_is_wrong() -> None:
    reasons = {kind: look("x", Minimum(broken(kind), DATA)).candidate for kind in BROKEN}
    assert "one answer for all" in str(reasons["untrained"].left_out) or "every sample" in str(
        reasons["untrained"].left_out
    )
    assert "another order" in str(reasons["head permuted"].left_out)
    assert "another order" in str(reasons["two classes swapped"].left_out)
    assert "answers class 9 for every sample" in str(reasons["constant"].left_out)
    assert "not on the scale" in str(reasons["head scaled"].unordered)


def answers(wrong: np.ndarray) -> Answers:
    n = len(wrong)
    return Answers(wrong.astype(float), wrong, np.zeros(n, int), np.ones(n), np.zeros(n, int))


def with_errors(*errors: np.ndarray) -> list[Look]:
    """Candidates a, b, ... of perfect fit with these held-out errors."""
    looks = []
    for name, wrong in zip("abcdef", errors, strict=False):
        c = Candidate(name, 0.0, float(wrong.mean()), 0.01, 0.1, 100)
        looks.append(Look(c, (("w", (2,)),), "d", name, answers(wrong)))
    return looks


def spans(n: int, *ends: tuple[int, int]) -> list[np.ndarray]:
    return [(np.arange(n) >= low) & (np.arange(n) < high) for low, high in ends]


def test_the_first_line_is_the_answer() -> None:
    found = choose(with_errors(*spans(5000, (0, 195), (0, 155))))
    assert found.ship == ("b",) and found.basis == "errors"
    assert found.answer.startswith("Ship b: 3.1 % test error against 3.9 % of the next, a (paired, 95 % interval")
    assert str(found).replace("\n", " ").startswith("Ship b: 3.1 % test error")
    assert max(map(len, str(found).splitlines())) <= 80


def test_what_cannot_be_told_apart_is_not_chosen() -> None:
    found = choose(with_errors(*spans(1000, (0, 31), (20, 50), (0, 400))))
    assert found.ship == ("a", "b") and "a and b cannot be told apart" in found.answer
    assert "more test samples they could" in found.answer
    assert [p.told_apart for p in found.pairs] == [False, True, True]
    equal = choose(with_errors(*spans(1000, (0, 30), (20, 50))))
    assert "err equally often" in equal.answer


def test_the_order_of_the_candidates_does_not_matter() -> None:
    errors = spans(2000, (0, 90), (40, 60), (100, 300))
    one, other = choose(with_errors(*errors)), choose(list(reversed(with_errors(*errors))))
    assert one.ship == other.ship and one.answer == other.answer


def table(value: float, error: float = 0.0) -> MeasureTable:
    details = {"train_error": error, "train_loss": 0.01}
    return MeasureTable({"path_norm": Estimate(value), "margin": Estimate(1.0, details=details)}, 1, 1, 0, 0, 0, "", "")


def test_an_order_from_tables_leaves_the_unfitted_out() -> None:
    found = order([table(0.1, 0.9), table(2.0), table(1.0, 0.02)], ["untrained", "a", "b"], ["path_norm"])
    assert [p.name for p in found.places] == ["b", "a"] and found.left_out[0][0] == "untrained"
    assert "untrained" in str(found)
    alone = order([table(0.1, 0.9), table(2.0)], ["untrained", "a"], ["path_norm"])
    assert [p.name for p in alone.places] == ["a"] and "untrained" in str(alone)


def test_different_training_is_said_before_the_order() -> None:
    looks = [
        Look(Candidate(n, e, None, loss, None, 9), (("w", (3,)),), "d", n)
        for n, e, loss in (("a", 0.0, 0.01), ("b", 0.03, 0.05))
    ]
    found = choose(looks, [table(1.0), table(2.0, 0.03)], ["path_norm"])
    assert any("order gaps, not errors" in note for note in found.notes)
    far = [looks[0], Look(Candidate("b", 0.0, None, 0.9, None, 9), (("w", (3,)),), "d", "b")]
    apart = choose(far, [table(1.0), table(0.1)], ["path_norm"])
    assert apart.ship == () and apart.answer.startswith("No order to trust: training losses differ 90-fold")


def test_other_architectures_data_and_copies_are_named() -> None:
    looks = [look("a", Minimum(good()[0], DATA)), look("copy", Minimum(copy.deepcopy(good()[0]), DATA))]
    torch.manual_seed(0)
    wide = mlp((64, 24, 10))
    train(wide, *DATA, config=TrainConfig(lr=0.1, epochs=25, batch_size=32))
    looks += [
        look("wide", Minimum(wide.eval(), DATA)),
        look("less", Minimum(good()[1], (DATA[0][:300], DATA[1][:300]))),
    ]
    found = choose(looks)
    said = " ".join(found.notes)
    assert "copy: the same weights as a" in said and "wide: another architecture" in said
    assert "less: it was measured on other samples" in said


def test_agreement_and_confidence_are_labelled_as_what_they_are() -> None:
    minima = [Minimum(m, DATA) for m in good()]
    found = rank(minima, measures=FAST, unlabelled=(TEST[0], torch.zeros_like(TEST[1]))).choice
    assert found is not None
    agree = float((good()[0](TEST[0]).argmax(1) == good()[1](TEST[0]).argmax(1)).double().mean())
    assert [c.agreement for c in found.candidates] == pytest.approx([agree, agree])
    sure = float(good()[0](TEST[0]).detach().softmax(1).max(1).values.double().mean())
    assert found.candidates[0].confidence == pytest.approx(sure, abs=1e-6)
    said = " ".join(found.notes)
    assert "Agreement with the other candidates" in said and "too sure" in said and found.basis == "measures"


def test_a_regression_that_predicts_the_mean_is_left_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(120, 4)
    y = x @ torch.tensor([[1.0], [2.0], [0.0], [-1.0]])
    good, none = nn.Linear(4, 1), nn.Linear(4, 1)
    with torch.no_grad():
        good.weight.copy_(torch.tensor([[1.0, 2.0, 0.0, -1.0]]))
        good.bias.zero_()
        none.weight.zero_()
    minima = [Minimum(m, (x, y), "mse") for m in (good, none)]
    found = rank(minima, measures=["parameter_norm"], test=(x + 0.01, y), names=["good", "none"]).choice
    assert (
        found is not None and found.ship == ("good",) and "no better than the mean" in str(found.candidates[1].left_out)
    )


def test_rank_says_both_which_and_why() -> None:
    minima = [Minimum(m, DATA) for m in (*good(), trained(2, 12))]
    found = rank(minima, measures=FAST, test=TEST, names=["a", "b", "c"])
    assert isinstance(found, RankTable) and found.choice is not None
    assert str(found).split()[0] in ("Ship", "a,", "a", "b", "c") and "tau" in str(found)
    assert found.correlations["path_norm"].networks == 3
    with pytest.raises(UsageError, match="one of them"):
        rank(minima, [0.1, 0.2, 0.3], test=TEST)


# -- probabilities ---------------------------------------------------------------------------------------------------


def test_probabilities_add_up_to_one() -> None:
    found = order([table(v) for v in (1.0, 1.0, 2.0, 3.0)], measures=["path_norm"])
    assert sum(p.best for p in found.places) == pytest.approx(1.0)
    assert found.places[0].best == found.places[1].best
    assert probabilities([1, 2, 3]).tolist() == sorted(probabilities([1, 2, 3]).tolist(), reverse=True)


def test_the_numbers_are_those_of_the_benchmark() -> None:
    """The committed calibration; a stranger to the fitted family: within 0.1 of what is stated, on average."""
    result = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    assert round(result["beta"], 2) == BETA
    for name, family in (("mnist", PERCEPTRONS), ("cifar10", CONVOLUTIONS)):
        found = result["families"][name]
        assert (found["networks"], round(found["beta"], 2), round(found["right"], 3)) == (
            family.networks, family.beta, family.right,
        )  # fmt: skip
        assert {k: round(v, 2) for k, v in found["taus"].items()} == family.taus
        assert found["with_the_other_s_beta"]["calibration_error"] < 0.1


def test_without_measures_and_labels_nothing_is_said() -> None:
    looks = [Look(Candidate(n, 0.0, None, 0.01, None, 9), (("w", (3,)),), "d", n) for n in "ab"]
    assert choose(looks).answer.startswith("No order: nothing was measured")
    undefined = MeasureTable({"path_norm": Estimate.missing("no path")}, 1, 1, 0, 0, 0, "", "")
    found = choose(looks, [undefined, undefined])
    assert found.ship == () and found.answer.startswith("No order: no measure to order by is defined")


# -- the votes -------------------------------------------------------------------------------------------------------


def votes(*columns: tuple[str, str, list[float]], stderr: float = 0.0) -> list[MeasureTable]:
    """Tables of networks from (measure, direction, a value a network)."""
    number = len(columns[0][2])
    return [
        MeasureTable(
            {name: Estimate(values[i], stderr, direction=direction) for name, direction, values in columns},  # type: ignore[arg-type]
            1, 1, 0, 0, 0, "", "",
        )
        for i in range(number)
    ]  # fmt: skip


def test_a_measure_where_higher_is_better_votes_the_other_way() -> None:
    found = order(votes(("margin", "higher", [1.0, 3.0, 2.0])), ["a", "b", "c"], ["margin"])
    assert [p.name for p in found.places] == ["b", "c", "a"] and [p.rank for p in found.places] == [1.0, 2.0, 3.0]
    both = order(
        votes(("path_norm", "lower", [1.0, 3.0, 2.0]), ("margin", "higher", [3.0, 1.0, 2.0])),
        measures=["path_norm", "margin"],
    )
    assert both.agreement == pytest.approx(1.0)


def test_standard_errors_widen_the_interval() -> None:
    """Values 1 apart: certain without errors; with errors of 10, every rank from 1 to 3 occurs in 2,000 draws."""
    columns = ("path_norm", "lower", [1.0, 2.0, 3.0])
    sure = order(votes(columns), measures=["path_norm"]).places
    unsure = order(votes(columns, stderr=10.0), measures=["path_norm"]).places
    assert [(p.low, p.high) for p in sure] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert [(p.low, p.high) for p in unsure] == [(1.0, 3.0)] * 3


def test_agreement_is_kendalls_w() -> None:
    """By hand: ranks 123, 123, 321 give totals 5, 6, 7, S = 2, W = 12 2 / (9 24) = 1/9; and 1 where all agree."""
    columns = [("path_norm", "lower", [1.0, 2.0, 3.0]), ("robustness", "lower", [4.0, 5.0, 6.0])]
    names = ["path_norm", "robustness", "fisher_trace"]
    split = order(votes(*columns, ("fisher_trace", "lower", [3.0, 2.0, 1.0])), measures=names)
    assert split.agreement == pytest.approx(1 / 9)
    assert order(
        votes(*columns, ("fisher_trace", "lower", [7.0, 8.0, 9.0])), measures=names
    ).agreement == pytest.approx(1)
