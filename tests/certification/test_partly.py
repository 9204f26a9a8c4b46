"""Copies with something of their own: another column, a little noise, another tensor beside them, a step in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from torch import Tensor
from torch.nn.functional import interpolate

from flatminima.certification.division.copies import find_copies_within
from flatminima.certification.division.partly import CROWDED, crowded, lattice
from flatminima.certification.division.repeats import find_overlap
from flatminima.certification.division.split import split
from flatminima.core.samples import as_samples

N, ORIGINALS = 1_000, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_again(originals: Tensor, n: int = N) -> Tensor:
    return originals[torch.randint(0, len(originals), (n,), generator=generator(1))]


def doubt_of(x: Any) -> str:
    n = len(x if isinstance(x, Tensor) else next(iter(x.values())))
    return split(as_samples((x, torch.arange(n) % 2)), 0.5, 0).doubt


def rows(d: int, count: int = ORIGINALS) -> Tensor:
    return torch.randn(count, d, generator=generator())


@pytest.mark.parametrize(
    "originals",
    [
        torch.randint(0, 10_000, (ORIGINALS, 20), generator=generator()).float(),
        (rows(20) * 1_000).round() / 1_000,
        (rows(6) * 100).round() / 100,
        torch.randint(0, 256, (20, 1, 8, 8), generator=generator()).to(torch.uint8),
        torch.randint(1, 30_000, (ORIGINALS, 32), generator=generator()),
        torch.randint(0, 10_000, (ORIGINALS, 2), generator=generator()).float(),
    ],
    ids=["integers", "three decimals", "prices", "bytes", "texts", "two integers"],
)
def test_whole_numbers_that_agree_in_several_columns_are_copies(originals: Tensor) -> None:
    assert "are copies" in doubt_of(drawn_again(originals))


@pytest.mark.parametrize("d", [5, 10, 40])
@pytest.mark.parametrize(
    "own",
    [
        lambda n: torch.arange(n).float()[:, None],
        lambda n: torch.arange(n).float()[:, None] / n,
        lambda n: torch.randn(n, 1, generator=generator(2)),
    ],
    ids=["number", "share", "noise"],
)
def test_a_column_of_their_own_hides_no_copies(d: int, own: Callable[[int], Tensor]) -> None:
    x = torch.cat([drawn_again(rows(d), 500), own(500)], 1)
    assert "without some columns" in doubt_of(x)
    assert doubt_of(torch.cat([rows(d, 500), own(500)], 1)) == ""


@pytest.mark.parametrize("changed", [1, 2])
def test_columns_that_differ_for_some_of_the_copies(changed: int) -> None:
    """Columns of few values, in which the copies differ as weekdays do: a half of the others has them all."""
    x = torch.cat([drawn_again(rows(12)), torch.randn(N, changed, generator=generator(3)).mul(3).round().div(7)], 1)
    assert "are copies" in doubt_of(x)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2, 3e-2])
@pytest.mark.parametrize("d", [4, 6, 8, 11])
def test_noise_on_rows_of_a_few_values(d: int, noise: float) -> None:
    x = drawn_again(rows(d))
    assert "tight groups" in doubt_of(x + noise * torch.randn(x.shape, generator=generator(4)))


@pytest.mark.parametrize(("d", "noise"), [(1, 1e-4), (2, 1e-3), (3, 1e-3)])
def test_a_little_noise_on_fewer_values(d: int, noise: float) -> None:
    x = drawn_again(rows(d, 40))
    assert "tight groups" in doubt_of(x + noise * torch.randn(x.shape, generator=generator(4)))


def densities(n: int, d: int) -> dict[str, np.ndarray[Any, Any]]:
    """Independent draws of many kinds: skewed, with heavy tails, on a curve, in ten classes, mostly zero."""
    draw = np.random.default_rng(n + d)
    few, t = max(1, d // 2), draw.random(n) * 6
    kinds = [
        draw.exponential(size=(n, few)),
        (draw.random((n, d - few)) < 0.3).astype(float),
    ]
    centers = draw.uniform(-10, 10, (10, d))
    return {
        "normal": draw.standard_normal((n, d)),
        "uniform": draw.random((n, d)),
        "lognormal": np.exp(1.5 * draw.standard_normal((n, d))),
        "heavy tails": draw.standard_cauchy((n, d)),
        "of two kinds": np.concatenate(kinds, 1),
        "a curve": np.stack([np.sin((i + 1) * t) for i in range(d)], 1),
        "ten classes": centers[draw.integers(0, 10, n)] + draw.standard_normal((n, d)),
        "a tight class": centers[draw.integers(0, 10, n)] * 10 + 0.1 * draw.standard_normal((n, d)),
        "mostly zero": draw.exponential(size=(n, d)) * (draw.random((n, d)) < 0.3),
        "a walk": np.cumsum(draw.standard_normal((n, d)), 0),
        "one decimal": np.round(draw.standard_normal((n, d)), 1),
    }


@pytest.mark.parametrize("d", [1, 2, 4, 8, 11])
@pytest.mark.parametrize("n", [300, 2_000])
def test_independent_draws_are_not_said_to_be_crowded(n: int, d: int) -> None:
    shares = {name: crowded(x.astype(np.float32)) for name, x in densities(n, d).items()}
    assert all(share <= CROWDED for share in shares.values()), shares


def test_gaps_by_chance_are_as_the_page_says() -> None:
    """docs/certificates.md: a quarter in one dimension and on a curve, a twentieth in two, none in four."""
    one, two, four = (crowded(densities(2_000, d)["normal"].astype(np.float32)) for d in (1, 2, 4))
    curve = crowded(densities(2_000, 8)["a curve"].astype(np.float32))
    assert 0.15 < one < 0.35 and 0.15 < curve < 0.35 and 0.02 < two < 0.1 and four < 0.02


@pytest.mark.parametrize("load", [load_iris, load_wine, load_diabetes, load_breast_cancer])
def test_real_tables_are_not_doubted(load: Any) -> None:
    x = torch.from_numpy(load().data).float()
    assert doubt_of(x) == "" and doubt_of((x - x.mean(0)) / x.std(0)) == ""
    assert doubt_of(torch.cat([x, torch.arange(len(x)).float()[:, None]], 1)) == ""


def test_people_of_one_kind_are_no_copies() -> None:
    """A census: ages, hours, categories, and a weight that all people of a kind have in common."""
    g, n = generator(), 4_000
    kind = torch.randint(0, 500, (n,), generator=g)
    weight = torch.randint(10_000, 400_000, (500,), generator=g)[kind]
    others = [torch.randint(0, k, (n,), generator=g) for k in (73, 16, 7, 14, 6, 99)]
    x = torch.stack([weight, kind % 5, kind % 2, *others], 1).float()
    assert doubt_of(x) == "" and doubt_of((x - x.mean(0)) / x.std(0)) == ""


def smooth(count: int, channels: int, size: int, axes: int) -> Tensor:
    coarse = torch.randn(count, channels, *[4] * axes, generator=generator())
    return interpolate(coarse, size=[size] * axes, mode={1: "linear", 2: "bilinear", 3: "trilinear"}[axes])


def test_a_picture_beside_a_number_of_its_own() -> None:
    full = smooth(ORIGINALS, 1, 20, 2)
    moved = torch.cat([full[:, :, a : a + 16, b : b + 16] for a in range(4) for b in range(4)])
    age = torch.rand(len(moved), 1, generator=generator(5))
    assert "shifted" in doubt_of({"image": moved, "age": age})
    again = drawn_again(smooth(ORIGINALS, 1, 16, 2))
    assert "in one of their tensors" in doubt_of({"image": again, "age": torch.rand(N, 1, generator=generator(5))})
    unlike = torch.randn(N, 1, 16, 16, generator=generator(6))
    assert doubt_of({"image": unlike, "age": torch.rand(N, 1, generator=generator(5))}) == ""


@pytest.mark.parametrize(("noise", "said"), [(0.0, "in one of their tensors"), (0.01, "tight groups")])
def test_a_short_table_beside_one_of_its_own(noise: float, said: str) -> None:
    again, other = drawn_again(rows(8)), torch.randn(N, 8, generator=generator(5))
    assert said in doubt_of({"a": again + noise * torch.randn(N, 8, generator=generator(6)), "b": other})
    assert doubt_of({"a": torch.randn(N, 8, generator=generator(7)), "b": other}) == ""
    place = drawn_again(rows(2, 20))  # of twenty hospitals, beside much that is the patient's
    assert doubt_of({"a": torch.randn(N, 12, generator=generator(7)), "place": place}) == ""


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_volumes_that_were_moved(axis: int) -> None:
    full = smooth(40, 1, 10, 3)
    moved = torch.cat([full.narrow(axis, start, 8) for start in range(3)])
    moved = moved[tuple(slice(0, 8) if a > 1 else slice(None) for a in range(5))]
    found = find_copies_within(as_samples((moved, torch.zeros(len(moved), dtype=torch.int64))))
    assert len(found.kinds) >= 80 and "shifted" in set(found.kinds)


@pytest.mark.parametrize(("channels", "step"), [(3, 2), (3, 8), (1, 4)])
@pytest.mark.parametrize("flat", [False, True])
def test_windows_of_one_series(channels: int, step: int, flat: bool) -> None:
    series = interpolate(torch.randn(1, channels, 400, generator=generator()), size=4_000, mode="linear")[0]
    x = torch.stack([series[:, start : start + 64] for start in range(0, 3_900, step)])
    if channels > 1 or not flat:
        assert "shifted" in doubt_of(x)
        assert "shifted" in doubt_of(x.transpose(1, 2).contiguous())
    else:
        assert "shifted" in doubt_of(x.flatten(1))
    apart = torch.stack([series[:, start : start + 64] for start in range(0, 3_900, 64)])
    assert doubt_of(apart) == ""


def test_the_priors_samples_with_a_column_of_their_own() -> None:
    x, y = rows(10, 600), torch.zeros(600, dtype=torch.int64)
    numbered = [torch.cat([x, torch.randn(600, 1, generator=generator(seed))], 1) for seed in (7, 8)]
    found = find_overlap(*(as_samples((t, y)) for t in numbered))
    assert found.many and len(found.indices) == 600
    others = torch.cat([torch.randn(600, 10, generator=generator(9)), numbered[1][:, 10:]], 1)
    assert len(find_overlap(as_samples((numbered[0], y)), as_samples((others, y))).indices) == 0


@pytest.mark.parametrize(
    ("values", "even"),
    [
        ([1.0, 2.0, 5.0], True),
        ([0.125, 0.25], True),
        ([0.1234, 0.6, 0.77], False),
        ([3.0], True),
        ([0.0, 1 / 7, 3 / 7], True),
    ],
)
def test_what_is_on_a_lattice(values: list[float], even: bool) -> None:
    assert lattice(np.array(values)) is even
