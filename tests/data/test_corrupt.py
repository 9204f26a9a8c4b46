"""Label noise: exact counts, uniform labels, nested sets."""

from __future__ import annotations

import pytest
import torch

from flatminima.data import append_confusion, corrupt_labels, random_labels
from flatminima.errors import DataError

TARGETS = torch.arange(10).repeat(100)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.333, 1.0])
def test_exactly_the_share_asked_for_differs(fraction: float) -> None:
    noisy = corrupt_labels(TARGETS, fraction, 10, 0, exclude_old=True)
    assert int((noisy != TARGETS).sum()) == round(fraction * 1000)
    assert int(noisy.min()) >= 0 and int(noisy.max()) <= 9


def test_by_default_one_label_in_ten_is_right_by_chance() -> None:
    """Would catch a draw that leaves out the old label: none of 1000 would be right, instead of 100 +- 9.5."""
    right = int((random_labels(TARGETS, 10, 0) == TARGETS).sum())
    assert abs(right - 100) < 4 * 90**0.5


def test_new_labels_are_uniform() -> None:
    counts = torch.bincount(corrupt_labels(torch.zeros(9000, dtype=torch.int64), 1.0, 9, 3), minlength=9)
    assert bool(((counts - 1000).abs() < 4 * (1000 * 8 / 9) ** 0.5).all())


def test_more_noise_contains_less_noise() -> None:
    little, much = (corrupt_labels(TARGETS, fraction, 10, 5, exclude_old=True) for fraction in (0.2, 0.6))
    changed = little != TARGETS
    assert much[changed].equal(little[changed])


def test_a_seed_decides_and_the_targets_are_untouched() -> None:
    before = TARGETS.clone()
    assert corrupt_labels(TARGETS, 0.5, 10, 1).equal(corrupt_labels(TARGETS, 0.5, 10, 1))
    assert not corrupt_labels(TARGETS, 0.5, 10, 1).equal(corrupt_labels(TARGETS, 0.5, 10, 2))
    assert TARGETS.equal(before)


def test_confusion_sets_are_appended_and_nested() -> None:
    inputs, pool = torch.rand(20, 3), torch.rand(50, 3)
    targets = torch.arange(20) % 4
    x, y = append_confusion(inputs, targets, pool, 30, 4, seed=1)
    assert x.shape == (50, 3) and x[:20].equal(inputs) and y[:20].equal(targets)
    assert len({tuple(row) for row in x[20:].tolist()} & {tuple(row) for row in pool.tolist()}) == 30
    smaller, labels = append_confusion(inputs, targets, pool, 10, 4, seed=1)
    assert x[:30].equal(smaller) and y[:30].equal(labels)
    none, _ = append_confusion(inputs, targets, pool, 0, 4, seed=1)
    assert none.equal(inputs)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: corrupt_labels(TARGETS, 1.5, 10, 0), "fraction=1.5"),
        (lambda: corrupt_labels(TARGETS, 0.5, 9, 0), "run from 0 to 9"),
        (lambda: corrupt_labels(TARGETS, 0.5, 1, 0, exclude_old=True), "classes=1"),
        (lambda: corrupt_labels(TARGETS.float(), 0.5, 10, 0), "int64"),
        (
            lambda: append_confusion(torch.zeros(2, 3), TARGETS[:2], torch.zeros(4, 3), 5, 10, 0),
            "5 .* pool of 4",
        ),
        (
            lambda: append_confusion(torch.zeros(2, 3), TARGETS[:2], torch.zeros(4, 2), 1, 10, 0),
            "same kind of samples",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call: object, match: str) -> None:
    with pytest.raises(DataError, match=match):
        call()  # type: ignore[operator]
