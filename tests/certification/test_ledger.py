"""The ledger: shares of delta that sum to at most one, however certificates are added."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from two_blobs import blobs, linear

from flatminima import Minimum
from flatminima.certification import Ledger, Recipe, Union, certify, certify_around
from flatminima.errors import UsageError


def spent(ledger: Ledger) -> Fraction:
    return sum((Fraction(1, e.evaluations) for e in ledger.entries()), Fraction(0))


def test_without_a_list_the_shares_are_a_series_that_sums_to_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json", "data")
    taken = [ledger.take(f"certificate {j}", None, "").evaluations for j in range(1, 7)]
    assert taken == [j * (j + 1) for j in range(1, 7)]
    assert spent(ledger) == 1 - Fraction(1, 7)
    assert ledger.take("certificate 3", None, "").evaluations == 12  # again


@pytest.mark.parametrize(
    "order", [[None, 3, None, 100, None], [2, None, None, 50, None], [1000, None, None, None, None]]
)
def test_whatever_comes_in_whatever_order_never_more_than_all(order: list[int | None], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json", "data")
    for j, declared in enumerate(order):
        ledger.take(str(j), declared, "")
        assert spent(ledger) < 1 or j == len(order) - 1
    assert spent(ledger) <= 1


def test_a_list_holds_as_many_as_it_was_said_to(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.json", "data")
    for j in range(3):
        assert ledger.take(str(j), 3, "").evaluations == 3
    with pytest.raises(UsageError, match="this one cannot be one of 3"):
        ledger.take("3", 3, "")
    with pytest.raises(UsageError, match="no other can be added"):
        ledger.take("3", None, "")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"kind": "ledger", "schema": 1, "fingerprint": "data", "entries": [{"key": "a"}]}',
        '{"kind": "ledger", "schema": 1, "fingerprint": "data", "entries": [{"key": "a", "evaluations": 0, '
        '"declared": true, "what": ""}]}',
        "[" * 100_000,
    ],
)
def test_files_that_are_no_ledger(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is no ledger of certificates"):
        Ledger(path, "data")


def test_a_ledger_of_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    recipe = Recipe(epochs=0, passes=1)
    certify(fresh, blobs(64, 0), recipe=recipe, ledger=path)
    before = path.read_text()
    with pytest.raises(UsageError, match="a ledger counts the certificates of one data set"):
        certify(fresh, blobs(64, 1), recipe=recipe, ledger=path)
    assert path.read_text() == before


def fresh() -> object:
    from torch import nn

    return nn.Linear(2, 2)


def test_every_path_writes_and_pays(tmp_path: Path) -> None:
    path, data = tmp_path / "ledger.json", blobs(64, 0)
    minimum = Minimum(linear(), data)
    free = Recipe(prior_fraction=0.0, epochs=0, passes=1)
    alone = certify_around(minimum, prior="zero", draws=64)
    first = certify(fresh, data, recipe=free, ledger=path)
    second = certify_around(minimum, prior="zero", draws=64, ledger=path)
    third = certify(minimum=minimum, posterior="gaussian", prior=fresh, ledger=path)
    assert [c.evaluations for c in (first, second, third)] == [2, 6, 12]
    assert second.kl == alone.kl and second.risk_bound > alone.risk_bound
    listed = certify_around(minimum, prior="zero", draws=64, ledger=path, union=Union(2, 8))
    assert (listed.candidates, listed.evaluations) == (1, 16)
    entries = json.loads(path.read_text())["entries"]
    assert [e["declared"] for e in entries] == [False, False, False, True]


def test_a_process_counts_what_it_computes_without_a_count() -> None:
    """Nine at delta = 0.1 may be chosen from at 0.9; with the tenth nothing is left."""
    data, tiny = blobs(40, 0), Recipe(prior_fraction=0.0, epochs=0, passes=1)
    every = [certify(fresh, data, recipe=tiny, delta=0.1, seed=s) for s in range(11)]
    assert every[0].together is None and "(probability 0.9)" in every[0].statement
    assert "(probability 0.9; 0.7 with all others of these samples computed here)" in every[2].statement
    assert [c.standing for c in every] == ["certificate"] * 9 + ["score"] * 2
    assert "best of several certificates is paid for" in every[9].statement
    again = certify(fresh, data, recipe=tiny, delta=0.1, seed=2)
    assert again.statement == every[2].statement  # the same certificate is not another one
    part = (data[0][:39], data[1][:39])
    assert certify(fresh, part, recipe=tiny, delta=0.1, seed=20).standing == "score"  # one sample left out
    assert certify(fresh, blobs(40, 1), recipe=tiny, delta=0.1).together is None
    listed = [certify(fresh, blobs(40, 2), recipe=tiny, delta=0.1, seed=s, evaluations=3) for s in range(4)]
    assert [c.together is None for c in listed] == [True, True, True, False]


def test_categories_that_are_drawn_anew_are_other_samples() -> None:
    tiny = Recipe(prior_fraction=0.0, epochs=0, passes=1)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        data = torch.eye(4)[torch.randint(0, 4, (200,), generator=g)], torch.randint(0, 2, (200,), generator=g)
        assert certify(lambda: torch.nn.Linear(4, 2), data, recipe=tiny).together is None
