"""The division of the samples: a fair draw, by contents, by groups; what repeats; what leaving samples out costs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, hypergeom
from torch import Tensor

from flatminima.certification.division.repeats import alikeness, evenness, find_overlap, find_repeats
from flatminima.certification.division.split import Division, _leave_out, fair_draw, hold_apart, nats_left_out, split
from flatminima.core.samples import Samples, as_samples
from flatminima.errors import DataError, UsageError


def continuous(n: int, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randint(0, 2, (n,), generator=g)


def categories(n: int, values: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One-hot codes drawn uniformly, labels at random."""
    g = torch.Generator().manual_seed(seed)
    return torch.eye(values)[torch.randint(0, values, (n,), generator=g)], torch.randint(0, 2, (n,), generator=g)


def table(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Five integer features of skewed categories, of which many rows repeat."""
    g = torch.Generator().manual_seed(seed)
    x = torch.stack([torch.randint(0, k, (n,), generator=g) ** 2 // k for k in (3, 4, 5, 6, 7)], 1).float()
    return x, torch.randint(0, 2, (n,), generator=g)


def contents(data: tuple[Tensor, Tensor], rows: Tensor) -> Counter[tuple[float, ...]]:
    x, y = data
    return Counter((*x[i].tolist(), int(y[i])) for i in rows.tolist())


def test_copies_go_to_either_side_as_in_a_fair_draw() -> None:
    """Of 6 copies among 30 samples, the number in the prior's 12 is hypergeometric over seeds.

    By contents alone all six went to one side together: that division fails this test by far.
    """
    x, y = continuous(30)
    x[:6], y[:6] = x[0], y[0]
    samples = as_samples((x, y))
    seeds = 3_000
    seen = Counter(int((fair_draw(samples, 0.4, s).prior < 6).sum()) for s in range(seeds))
    expected = seeds * hypergeom(30, 6, 12).pmf(np.arange(7))
    statistic = sum((seen[k] - expected[k]) ** 2 / expected[k] for k in range(7))
    assert statistic < chi2(6).ppf(1 - 1e-4)


def test_every_sample_is_as_likely_the_priors_as_any_other() -> None:
    """Copies or not: each of 20 samples is in the prior's half in half of the seeds."""
    x, y = continuous(20)
    x[10:], y[10:] = x[10], y[10]
    samples = as_samples((x, y))
    seeds = 2_000
    counts = torch.zeros(20)
    for seed in range(seeds):
        counts[fair_draw(samples, 0.5, seed).prior] += 1
    assert float((counts / seeds - 0.5).abs().max()) < 4.5 * math.sqrt(0.25 / seeds)


@pytest.mark.parametrize("make", [continuous, lambda n: categories(n, 5), table])
def test_the_division_does_not_depend_on_the_order(make: Any) -> None:
    data = make(200)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    other = data[0][shuffled], data[1][shuffled]
    one, two = split(as_samples(data), 0.3, 7), split(as_samples(other), 0.3, 7)
    assert len(one.prior) == 60 and len(one.bound) == 140
    assert contents(data, one.prior) == contents(other, two.prior)
    assert contents(data, one.bound) == contents(other, two.bound)
    assert set(one.prior.tolist()).isdisjoint(one.bound.tolist())


def groups_of(numbers: Tensor, rows: Tensor) -> set[int]:
    return set(numbers[rows].tolist())


def test_a_group_is_on_one_side_and_counts_once() -> None:
    x, y = continuous(600)
    numbers = torch.arange(600) // 4 % 100  # groups of 4 or 8
    found = split(as_samples((x, y)), 0.3, 0, groups=numbers)
    assert found.groups == 100
    assert len(found.bound) == 70 and len(groups_of(numbers, found.bound)) == 70
    assert len(groups_of(numbers, found.prior)) == 30
    assert groups_of(numbers, found.prior).isdisjoint(groups_of(numbers, found.bound))
    assert len(found.prior) == int(torch.isin(numbers, numbers[found.prior]).sum())  # whole groups
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    other = x[shuffled], y[shuffled]
    again = split(as_samples(other), 0.3, 0, groups=[f"patient {k}" for k in numbers[shuffled].tolist()])
    assert contents((x, y), found.bound) == contents(other, again.bound)
    assert contents((x, y), found.prior) == contents(other, again.prior)
    assert "100 groups" in found.evidence


def test_one_sample_of_a_group_is_drawn_uniformly_and_apart_from_the_division() -> None:
    """Each of a group's 3 samples is the one in a third of the seeds; copies of a row within it count as many."""
    x, y = continuous(36)
    x[1], y[1] = x[0], y[0]
    numbers = torch.arange(36) // 3
    samples = as_samples((x, y))
    seeds = 1_500
    picked = Counter(int(i) % 3 for s in range(seeds) for i in fair_draw(samples, 0.25, s, numbers).bound.tolist())
    total = sum(picked.values())
    assert total == 9 * seeds
    assert all(abs(picked[k] / total - 1 / 3) < 4.5 * math.sqrt(2 / 9 / total) for k in range(3))
    first = [bool((fair_draw(samples, 0.25, s, numbers).bound < 3).any()) for s in range(seeds)]
    assert abs(sum(first) / seeds - 0.75) < 4.5 * math.sqrt(0.1875 / seeds)


def test_groups_of_one_sample_are_a_fair_division_too() -> None:
    x, y = continuous(50)
    found = split(as_samples((x, y)), 0.5, 3, groups=range(50))
    assert (len(found.prior), len(found.bound), found.groups, found.nats) == (25, 25, 50, 0.0)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([1, 2], "got 2 groups for 100 samples"),
        ([*range(99), None], "got group None for sample 99"),
        (torch.full((100,), math.nan), "got group nan for sample 0"),
        ([0] * 100, "1 of 1 groups are left"),
        (torch.zeros(100, 2), "got group"),
    ],
)
def test_groups_that_are_none(groups: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        split(as_samples(continuous(100)), 0.0, 0, groups=groups)
    assert "\n" not in str(raised.value)


def test_independent_draws_are_not_said_to_repeat_too_evenly() -> None:
    """400 worlds of categories, few or many, alike or skewed, with or without singletons: no p-value below 1e-3."""
    g = np.random.default_rng(0)
    least = 1.0
    for k in range(400):
        n = int(g.integers(10, 3_000))
        shares = g.dirichlet(np.full(int(g.integers(2, 400)), g.choice([0.05, 0.5, 1.0, 50.0])))
        counts = g.multinomial(n, shares)
        if k % 2:
            counts = np.concatenate([counts, np.ones(int(g.integers(0, 500)), dtype=np.int64)])
        least = min(least, evenness(counts[counts > 0]))
    assert least > 1e-3


@pytest.mark.parametrize("times", [2, 3, 10, 100])
def test_rows_that_all_repeat_as_often_are_no_independent_draws(times: int) -> None:
    assert evenness(np.full(60, times)) < 1e-3
    almost = np.full(60, times)
    almost[:5] -= 1  # a few were dropped
    assert evenness(almost) < 1e-3 or times == 2
    x, y = categories(60, 60)
    found = split(as_samples((torch.eye(60).repeat(times, 1), y.repeat(times))), 0.5, 0)
    assert "counts more alike than independent draws" in found.doubt
    assert len(x) == 60


def oversampled(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of the rarer class drawn again with replacement, as RandomOverSampler does."""
    x, _ = continuous(n, seed=seed)
    y = (torch.arange(n) < n // 10).long()
    again = torch.randint(0, n // 10, (n,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([x, x[again]]), torch.cat([y, y[again]])


def with_identity(n: int = 300) -> tuple[Tensor, Tensor]:
    """Categories and one continuous column, each row three or four times."""
    x, y = categories(n, 8)
    x = torch.cat([x, torch.rand(n, 1, generator=torch.Generator().manual_seed(2))], 1)
    again = torch.cat([torch.arange(n).repeat(3), torch.arange(n // 2)])
    return x[again], y[again]


@pytest.mark.parametrize(
    "data",
    [
        oversampled(),
        with_identity(),
        tuple(t.repeat_interleave(7, 0) for t in continuous(60, d=1)),
        tuple(t[torch.randint(0, 60, (3_000,), generator=torch.Generator().manual_seed(0))] for t in continuous(60)),
        (continuous(100, d=784)[0].reshape(-1, 1, 28, 28).repeat(2, 1, 1, 1), torch.arange(200) % 2),
    ],
    ids=["oversampled class", "one continuous column", "one column", "bootstrap", "images twice, other labels"],
)
def test_copies_of_continuous_rows_are_no_independent_draws(data: tuple[Tensor, Tensor]) -> None:
    samples = as_samples(data)
    found = split(samples, 0.5, 0)
    assert "copies" in found.doubt or "alike" in found.doubt
    assert "groups=" in found.remedy and "\n" not in found.doubt
    stated = split(samples, 0.5, 0, repetition="independent")
    assert stated.stated == "every repeated row was drawn anew"
    assert "distinct" in stated.evidence and (stated.nats, stated.doubt) == (0.0, "")
    rows = samples.input_hashes.tolist()
    one_each = split(samples, 0.5, 0, groups=rows)
    assert one_each.groups == len(set(rows)) and (one_each.nats, one_each.doubt) == (0.0, "")
    assert groups_of(torch.from_numpy(samples.input_hashes.view(np.int64)), one_each.prior).isdisjoint(
        groups_of(torch.from_numpy(samples.input_hashes.view(np.int64)), one_each.bound)
    )


@pytest.mark.parametrize(
    "data",
    [
        categories(4_000, 4),
        categories(4_000, 16),
        categories(1_000, 300),
        table(3_000),
        (torch.randint(0, 60, (2_000, 1)).float() / 7 - 3, torch.arange(2_000) % 2),
        (torch.randint(0, 3, (2_000, 2), generator=torch.Generator().manual_seed(0)), torch.arange(2_000) % 2),
    ],
    ids=["4 values", "16 values", "300 values", "table", "one standardised category", "two integers"],
)  # fmt: skip
def test_independent_draws_that_repeat_are_a_certificate_s_samples(data: tuple[Tensor, Tensor]) -> None:
    for seed in range(3):
        found = split(as_samples(data), 0.5, seed)
        assert (found.nats, len(found.left_out), found.stated, found.doubt) == (0.0, 0, "", "")
        assert found.repeats.inputs < found.repeats.n
        assert "distinct" in found.evidence


def test_a_group_for_every_copy_hides_nothing() -> None:
    x, y = torch.eye(60).repeat(50, 1), categories(60, 60)[1].repeat(50)
    assert "counts more alike" in split(as_samples((x, y)), 0.5, 0, groups=range(3_000)).doubt
    x, y = (t.repeat(50, *(1,) * (t.dim() - 1)) for t in continuous(60))
    assert "alike" in split(as_samples((x, y)), 0.5, 0, groups=range(3_000)).doubt
    pairs = torch.arange(3_000) // 60 // 2 * 60 + torch.arange(3_000) % 60  # two copies of a row each
    assert "alike" in split(as_samples((x, y)), 0.5, 0, groups=pairs).doubt


@pytest.mark.parametrize("d", [1, 2, 3, 6, 11])
def test_rows_of_a_few_values_that_repeat_but_for_their_last_bits(d: int) -> None:
    x, y = continuous(80, d=d)
    g = torch.Generator().manual_seed(1)
    again = torch.randint(0, 80, (2_000,), generator=g)
    jittered = x[again] * (1 + 1e-7 * torch.randn(2_000, d, generator=g))
    found = split(as_samples((jittered, y[again])), 0.5, 0)
    assert "copies" in found.doubt or d <= 2  # two values in bfloat16 are categories as well
    assert split(as_samples(continuous(2_000, d=d)), 0.5, 0).doubt == ""


def test_a_few_copies_are_left_out_and_paid() -> None:
    x, y = continuous(2_000)
    x[:5], y[:5] = x[1_000:1_005], 1 - y[1_000:1_005]  # the labels say nothing
    samples = as_samples((x, y))
    for seed in range(5):
        found = split(samples, 0.5, seed)
        prior, bound = set(found.prior.tolist()), set(found.bound.tolist())
        for i in range(5):
            assert len({i, 1_000 + i} & bound) <= 1
            assert not ({i, 1_000 + i} & bound and {i, 1_000 + i} & prior)
        k = len(found.left_out)
        assert k >= 1 and found.nats == nats_left_out(1_000, k)
        assert len(found.bound) == 1_000 - k
        assert f"{k} left out of the bound" in found.evidence


def test_near_copies_within_the_data_are_left_out() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1_000, 3, 8, 8, generator=g)
    x[500:505] = x[:5].flip(3)
    found = split(as_samples((x, torch.arange(1_000) % 2)), 0.0, 0)
    assert set(found.left_out.tolist()) == {*range(5), *range(500, 505)}
    assert "5 flipped" in found.evidence


def test_what_leaving_out_costs_is_paid_by_a_union_over_subsets() -> None:
    """The shares of all sizes and subsets, times xi(n) / (2 sqrt n), stay below 1 for every n >= 8: delta is kept."""

    def xi(n: int) -> float:
        """E exp(n kl(mean, p)) at its worst (Maurer 2004): sum_k C(n, k) (k/n)^k (1 - k/n)^(n - k)."""
        logs = (
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            + (k * math.log(k / n) if k else 0.0) + ((n - k) * math.log(1 - k / n) if k < n else 0.0)
            for k in range(n + 1)
        )  # fmt: skip
        return math.fsum(math.exp(v) for v in logs)

    worst = max(xi(n) / (2 * math.sqrt(n)) for n in range(8, 300))
    assert worst < 0.7505
    n = 60
    shares = [math.comb(n, k) * math.exp(-nats_left_out(n, k)) for k in range(1, n - 7)]
    assert worst * (1 + math.fsum(shares)) <= 1.0
    assert math.fsum(shares) < 0.25
    assert nats_left_out(n, 0) == 0.0


FEW = continuous(400, d=40)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x * 255,
        lambda x: -x,
        lambda x: torch.nextafter(x, x + 1),
        lambda x: (x - x.mean(0)) / x.std(0),
        lambda x: x[:, None],
        lambda x: torch.cat([x[:100], torch.randn(300, 40)]) * 3 + 1,
    ],
)
def test_the_priors_samples_in_another_form_are_refused(change: Any) -> None:
    x, y = FEW
    found = hold_apart(as_samples((x, y)), as_samples((change(x), 1 - y)), 0)
    assert found.leak.startswith("the bound's samples are the prior's") and "samples of its own" in found.remedy


def test_samples_of_ones_own_are_no_copies() -> None:
    found = hold_apart(as_samples(FEW), as_samples(continuous(400, d=40, seed=1)), 0)
    assert len(found.bound) == 400 and (found.nats, found.leak, found.doubt) == (0.0, "", "")
    assert found.shared == "0 of 400 with equal inputs"
    for seed in range(20):
        one, two = categories(2_000, 12, 2 * seed), categories(1_500, 12, 2 * seed + 1)
        common = find_overlap(as_samples(one), as_samples(two))
        assert not common.many and common.repeated == 2_000


def test_a_few_of_the_priors_samples_are_left_out_and_paid() -> None:
    x, y = continuous(500, d=20)
    other = continuous(500, d=20, seed=1)[0]
    other[:4] = x[100:104] * 255
    found = hold_apart(as_samples((x, y)), as_samples((other, y)), 0)
    assert found.left_out.tolist() == [100, 101, 102, 103]
    assert found.nats == nats_left_out(500, 4)


@pytest.mark.parametrize(("copies", "tolerated"), [(5, True), (6, False)])
def test_one_in_a_hundred_may_be_anothers_and_no_more(copies: int, tolerated: bool) -> None:
    """500 samples: five of the prior's are left out and paid, six are a leak."""
    x, y = continuous(500, d=20)
    other = continuous(500, d=20, seed=1)[0]
    other[:copies] = x[:copies]
    found = hold_apart(as_samples((x, y)), as_samples((other, y)), 0)
    assert (found.leak == "") == tolerated
    assert find_overlap(as_samples((x, y)), as_samples((other, y))).many != tolerated


@pytest.mark.parametrize(("copies", "tolerated"), [(10, True), (11, False)])
def test_one_in_a_hundred_of_the_bounds_may_be_left_out_and_no_more(copies: int, tolerated: bool) -> None:
    lost = torch.arange(1_000) < copies
    found = _leave_out(torch.arange(1_000), lost)
    assert (found is not None) == tolerated
    assert found is None or (len(found[0]), len(found[1]), found[2]) == (
        1_000 - copies,
        copies,
        nats_left_out(1_000, copies),
    )


def test_a_group_on_both_sides_is_the_priors() -> None:
    """Rows of the same patients on both sides are no copies; nothing but their identifiers tells."""
    one, two = as_samples(continuous(300)), as_samples(continuous(300, seed=1))
    patients = torch.arange(300) % 100
    assert "100 of 100 groups in both" in hold_apart(one, two, 0, groups=patients, prior_groups=patients).leak
    assert "none of the prior's" in hold_apart(one, two, 0, groups=patients).leak
    apart = hold_apart(one, two, 0, groups=patients, prior_groups=patients + 100)
    assert (apart.leak, apart.nats, len(apart.bound)) == ("", 0.0, 100)
    paid = hold_apart(one, two, 0, groups=patients, prior_groups=patients + 99)
    assert (paid.leak, paid.nats, len(paid.bound)) == ("", nats_left_out(100, 1), 99)
    with pytest.raises(DataError, match="got 2 groups for 300 samples"):
        hold_apart(one, two, 0, groups=patients, prior_groups=[1, 2])


def test_the_same_categories_twice_are_too_much_alike() -> None:
    """Independent draws of 40 categories pass; the very samples of the prior, with other labels, do not."""
    x, y = categories(4_000, 40)
    assert "occur as often in both" in hold_apart(as_samples((x, y)), as_samples((x.flip(0), y)), 0).leak


@pytest.mark.parametrize("values", [2, 3, 16, 40])
def test_independent_sets_are_seldom_too_much_alike(values: int) -> None:
    """Of few categories equal counts are no wonder: p <= 1% in at most about 1% of the sets, as it says."""
    hashes = [as_samples(categories(130, values, seed)).input_hashes for seed in range(400)]
    p = [alikeness(one[:70], two[:60]) for one, two in zip(hashes[::2], hashes[1::2], strict=True)]
    assert sum(v <= 0.01 for v in p) <= binom.ppf(1 - 1e-4, 200, 0.01)


class Lying(Samples):
    """Samples whose keys cannot be made: everything goes through `take`."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_a_share_that_is_none(fraction: float) -> None:
    with pytest.raises(UsageError, match="expected a share"):
        split(Lying(*continuous(50)), fraction, 0)


def test_a_statement_that_is_none() -> None:
    with pytest.raises(UsageError, match="expected 'tested'"):
        split(as_samples(continuous(50)), 0.5, 0, repetition="yes")  # type: ignore[arg-type]


def test_divisions_are_values() -> None:
    found = split(as_samples(continuous(50)), 0.5, 0)
    assert isinstance(found, Division) and found.evidence == ""
    assert find_repeats(as_samples(continuous(50))).evidence == ""
