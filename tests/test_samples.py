"""Data in every form: the same samples, the same order, or one line that says what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from case_networks import Net
from flatminima import Minimum
from flatminima.core.minimum import Converted
from flatminima.core.samples import Samples, as_samples, hash_bytes
from flatminima.core.samples.content import splitmix
from flatminima.errors import DataError
from flatminima.statistics import Outputs

N = 11
X, Y = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 4
PAIRS = TensorDataset(X, Y)


class Stream(IterableDataset[Any]):
    """Samples one by one; `passes` of them, or for ever again."""

    def __init__(self, passes: int = 10**9, noise: float = 0.0) -> None:
        self.passes, self.noise = passes, noise

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes -= 1
        for x, y in zip(X, Y, strict=True) if self.passes >= 0 else ():
            yield x + self.noise * torch.rand(1), y


class Augmented(Dataset[Any]):
    """Flips half of the time, as random horizontal flips do."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return (X[i].flip(0) if torch.rand(()) < 0.5 else X[i]), int(Y[i])


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": X[i], "labels": int(Y[i])}


def one_input(inputs: Any) -> Tensor:
    return inputs["x"] if isinstance(inputs, dict) else inputs


FORMS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (X, Y),
    "a list of two tensors": lambda: [X, Y],
    "a dict": lambda: {"x": X, "label": Y},
    "a list of samples": lambda: [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "a dataset": lambda: PAIRS,
    "a dataset of dicts": Dicts,
    "a loader": lambda: DataLoader(PAIRS, batch_size=4),
    "a loader of dicts": lambda: DataLoader(Dicts(), batch_size=4),
    "a loader of a subset": lambda: DataLoader(Subset(PAIRS, range(N)), batch_size=4),
    "a loader with a sampler": lambda: DataLoader(PAIRS, sampler=SequentialSampler(PAIRS), batch_size=4),
    "a loader with a batch sampler": lambda: DataLoader(
        PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 3, False)
    ),
    "a loader of whole batches": lambda: DataLoader([(X[:6], Y[:6]), (X[6:], Y[6:])], batch_size=None),
    "a stream": Stream,
    "a loader of a stream": lambda: DataLoader(Stream(), batch_size=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    samples = as_samples(FORMS[form]())
    assert len(samples) == N
    inputs, targets = samples.take(torch.tensor([7, 0]))
    assert torch.equal(one_input(inputs), X[[7, 0]]) and torch.equal(targets, Y[[7, 0]])
    reference = as_samples((X, Y))
    assert torch.equal(samples.order(3), reference.order(3))
    assert samples.fingerprint == reference.fingerprint


def _doubled(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([2 * x for x, _ in rows]), torch.stack([y for _, y in rows])


def test_a_loader_is_what_it_yields() -> None:
    """Its batch sampler decides, with drop_last, repetitions and order."""
    dropped = as_samples(DataLoader(PAIRS, batch_size=4, drop_last=True))
    assert len(dropped) == 8
    chosen = as_samples(DataLoader(PAIRS, batch_sampler=[[3, 1], [2]]))
    assert torch.equal(chosen.take(torch.arange(3))[0], X[[3, 1, 2]])
    collated = as_samples(DataLoader(PAIRS, batch_size=2, collate_fn=_doubled))
    assert torch.equal(collated.take(torch.arange(2))[0], 2 * X[:2])


def test_longer_tuples_end_with_the_target() -> None:
    inputs, targets = as_samples(TensorDataset(X, 2 * X, Y)).take(torch.tensor([4]))
    assert torch.equal(inputs[1], 2 * X[4:5]) and torch.equal(targets, Y[4:5])


def test_the_order_of_the_data_does_not_show() -> None:
    """Fingerprint and random orders are of the contents; float64 copies count as the same data."""
    mixed = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    one, two = as_samples((X, Y)), as_samples((X[mixed].double(), Y[mixed]))
    assert one.fingerprint == two.fingerprint
    for seed in (0, 1, -3):
        assert torch.equal(X[one.order(seed)], X[mixed][two.order(seed)])
        assert sorted(one.order(seed).tolist()) == list(range(N))
    assert not torch.equal(one.order(0), one.order(1))


def test_fingerprints_differ_with_the_contents() -> None:
    other, labels = X.clone(), Y.clone()
    other[5, 1] += 1e-6
    labels[2] += 1
    prints = [as_samples(data).fingerprint for data in ((X, Y), (other, Y), (X, labels), (X[:-1], Y[:-1]))]
    assert len(set(prints)) == 4


def test_orders_are_random() -> None:
    """Mean position of each sample over 400 seeds, within 4 standard errors of the middle."""
    samples = as_samples((X, Y))
    places = torch.stack([samples.order(seed).argsort() for seed in range(400)]).double()
    assert float(((places.mean(0) - (N - 1) / 2) / (places.std(0) / 20)).abs().max()) < 4


@pytest.mark.parametrize("form", FORMS)
def test_reading_does_not_move_the_random_state(form: str) -> None:
    """A DataLoader draws a seed from torch's generator whenever it is iterated."""
    data, model = FORMS[form](), Net(lambda s, x: s.a(x), a=nn.Linear(3, 4))
    state = torch.get_rng_state()
    minimum = Minimum(model, data)
    assert len(minimum[Outputs()].losses) == N and minimum.samples.fingerprint
    assert torch.equal(torch.get_rng_state(), state)


# -- copies of a sample ----------------------------------------------------------------------------------------------


def _plain_order(samples: Samples, seed: int) -> Tensor:
    """The order by content alone, as it was before copies had keys of their own."""
    salt = np.uint64(hash_bytes(seed.to_bytes(8, "little", signed=True)))
    return torch.from_numpy(np.argsort(splitmix(samples.hashes ^ salt), kind="stable"))


def test_distinct_samples_keep_their_order() -> None:
    """Committed numbers rest on it: the key of a first occurrence is the hash itself."""
    samples = as_samples((X, Y))
    assert np.array_equal(samples.keys, samples.hashes)
    for seed in (0, 7, -2):
        assert torch.equal(samples.order(seed), _plain_order(samples, seed))


def test_copies_are_samples_of_their_own() -> None:
    """Any order of data that repeats: the same fingerprint, keys and sequence of contents; no two keys are equal."""
    repeats = torch.tensor([0, 0, 1, 5, 5, 5, 5, 2, 10])
    mixed = repeats[torch.randperm(len(repeats), generator=torch.Generator().manual_seed(4))]
    one, two = as_samples((X[repeats], Y[repeats])), as_samples((X[mixed], Y[mixed]))
    assert len(set(one.keys.tolist())) == len(repeats) and len(set(one.hashes.tolist())) == 5
    assert one.fingerprint == two.fingerprint and sorted(one.keys) == sorted(two.keys)
    for seed in range(5):
        assert torch.equal(repeats[one.order(seed)], mixed[two.order(seed)])


def test_copies_fall_where_chance_puts_them() -> None:
    """50 samples, each 10 times: a draw of 100 holds the number of distinct ones that a fair draw holds.

    By content alone a draw would be ten whole clusters. The expectation is 50 (1 - C(490, 100) / C(500, 100)).
    """
    samples = as_samples((torch.arange(50.0).repeat(10)[:, None], torch.zeros(500, dtype=torch.int64)))
    found = [len(set((samples.order(seed)[:100] % 50).tolist())) for seed in range(200)]
    missing = math.prod((400 - i) / (500 - i) for i in range(10))
    error = float(np.std(found)) / math.sqrt(len(found))
    assert abs(float(np.mean(found)) - 50 * (1 - missing)) < 4 * error


class Later(Dataset[Any]):
    """Reads as it is until all of it was read `calm` times, then one sample in four differs."""

    def __init__(self, calm: int) -> None:
        self.left = calm * 40

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.left -= 1
        return torch.full((3,), float(i) + (self.left < 0 and i % 4 == 0)), i % 3


def test_data_that_differs_in_a_later_pass_is_refused() -> None:
    """Rare augmentation, a cache that turns over, a file that is written: no few samples show it at the start."""
    samples = as_samples(DataLoader(Later(calm=4), batch_size=8))
    assert len(samples.hashes) == 40
    with pytest.raises(DataError, match=r"sample \d+ is not what it was when it was read before"):
        for _ in range(8):
            for rows in torch.arange(40).split(8):
                samples.take(rows)


def test_samples_in_a_coarser_dtype_keep_their_order() -> None:
    samples = as_samples((X.double() / 3, Y))
    assert np.array_equal(Converted(samples, torch.float64).hashes, samples.hashes)
    coarse = Converted(samples, torch.bfloat16)
    assert np.array_equal(coarse.hashes, samples.hashes) and torch.equal(coarse.order(1), samples.order(1))
    assert coarse.take(torch.arange(2))[0].dtype == torch.bfloat16


# -- refusals --------------------------------------------------------------------------------------------------------

NAN = X.clone()
NAN[6, 1] = torch.nan
REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("no samples", lambda: (X[:0], Y[:0]), "no samples in data; a Minimum needs at least 1"),
    ("empty dataset", lambda: TensorDataset(X[:0], Y[:0]), "no samples in data"),
    ("empty loader", lambda: DataLoader(PAIRS, batch_size=64, drop_last=True), r"no samples in data.*drop_last"),
    ("empty stream", lambda: Stream(0), "no samples in data"),
    ("generator", lambda: ((x, y) for x, y in [(X, Y)]), "one-pass generator; statistics need several passes"),
    ("iterator", lambda: iter(DataLoader(PAIRS)), "one-pass _SingleProcessDataLoaderIter"),
    ("stream that runs out", lambda: Stream(1), "two passes over an IterableDataset differ"),
    ("stream with noise", lambda: Stream(noise=0.1), "two passes over an IterableDataset differ"),
    ("noisy loader", lambda: DataLoader(Stream(noise=0.1)), "two passes over a DataLoader without indices differ"),
    ("shuffling loader", lambda: DataLoader(PAIRS, shuffle=True), "DataLoader that shuffles.*shuffle=False"),
    ("random sampler", lambda: DataLoader(PAIRS, sampler=SubsetRandomSampler(range(9))), "that shuffles"),
    ("weighted sampler", lambda: DataLoader(PAIRS, sampler=WeightedRandomSampler([1.0] * N, N)), "that shuffles"),
    (
        "batch sampler that shuffles",
        lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 2, False)),
        "that shuffles",
    ),
    ("augmentation", Augmented, r"sample \d+ differs when read twice: the data is augmented"),
    ("augmentation in a loader", lambda: DataLoader(Augmented(), batch_size=2), "differs when read twice"),
    ("lengths", lambda: (X, Y[:-2]), r"different lengths \[9, 11\]; give one target a sample"),
    ("lengths in a tuple", lambda: ((X, X[:5]), Y), r"different lengths \[5, 11\]"),
    ("NaN", lambda: (NAN, Y), "sample 6 holds NaN or Inf in its input; clean or drop it"),
    ("Inf in one number a sample", lambda: (torch.tensor([1.0, 2.0, torch.inf]), Y[:3]), "sample 2 holds NaN or Inf"),
    ("NaN in a tuple", lambda: ((X, NAN), Y), "sample 6 holds NaN or Inf in its input"),
    ("NaN in a dict", lambda: {"x": NAN, "labels": Y}, "sample 6 holds NaN or Inf in its input"),
    ("NaN in a stream", lambda: DataLoader([(NAN, Y)], batch_size=None), "sample 6 holds NaN or Inf in its input"),
    ("NaN in targets", lambda: (X, NAN[:, 1]), "sample 6 holds NaN or Inf in its target"),
    ("a number for targets", lambda: (X, torch.tensor(3)), "without dimensions"),
    ("two samples in a tuple", lambda: ((X[0], 1), (X[1], 0)), "pair of tuple and tuple; expected tensors or arrays"),
    ("a number", lambda: 3, r"data of type int; expected \(inputs, targets\), a Dataset or a DataLoader"),
    ("a dict without labels", lambda: {"x": X, "y": Y}, r"keys \['x', 'y'\]; expected one of labels"),
    ("samples without targets", lambda: TensorDataset(X), r"expected \(inputs, targets\)"),
    ("words for labels", lambda: [(x, "cat") for x in X], "encode classes as integers"),
    ("words for inputs", lambda: [("cat", 1), ("dog", 0)], "expected tensors"),
    (
        "ragged",
        lambda: DataLoader([(X[:2], Y[:2]), (X[:2, :2], Y[:2])], batch_size=None),
        "do not fit together",
    ),
]


@pytest.mark.parametrize(("data", "message"), [pytest.param(d, m, id=name) for name, d, m in REFUSED])
def test_refused_in_one_line(data: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        as_samples(data())
    assert "\n" not in str(caught.value)


def test_augmentation_is_seen_every_time() -> None:
    """A flip that happens half of the time: eight samples read four times miss it once in 16 million."""
    for seed in range(200):
        torch.manual_seed(seed)
        with pytest.raises(DataError, match="augmented"):
            as_samples(Augmented())


class Late(Dataset[Any]):
    """A NaN that shows when it is read."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return NAN[i], Y[i]


def test_a_nan_in_a_dataset_is_named_by_its_place() -> None:
    with pytest.raises(DataError, match="sample 6 holds NaN or Inf in its input"):
        Minimum(nn.Linear(3, 4), Late(), batch_size=4)


def test_a_nan_far_behind_is_named_by_its_place() -> None:
    """Beyond the first chunk that is read."""
    x = torch.zeros(1200, 3)
    x[1100, 2] = torch.inf
    with pytest.raises(DataError, match="sample 1100 holds NaN or Inf in its input"):
        Minimum(nn.Linear(3, 4), TensorDataset(x, torch.arange(1200) % 4))


def test_samples_are_samples() -> None:
    samples = as_samples((X, Y))
    assert isinstance(samples, Samples) and as_samples(samples) is samples
    assert samples.hashes.dtype == np.uint64
