"""Every form that data comes in: the same samples as tensors, or one line that names what was seen and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flatminima import Minimum
from flatminima.core.samples import as_samples, spread
from flatminima.errors import DataError, UsageError
from flatminima.statistics import Outputs

N = 11
X, Y = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 4
PAIRS = TensorDataset(X, Y)


def batches(size: int, make: Callable[..., Any] = tuple) -> list[Any]:
    return [make((x, y)) for x, y in zip(X.split(size), Y.split(size), strict=True)]


class Endless(IterableDataset[Any]):
    """The samples over and over, every pass the same."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from zip(X, Y, strict=True)


class OnlyIter:
    """Neither a length nor indices, as readers of other libraries have it."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Columns:
    """As an unformatted `datasets.Dataset`: rows of Python lists and numbers."""

    def __init__(self, *extra: str) -> None:
        self.extra = extra

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": X[i].tolist(), "label": int(Y[i])} | {name: "words" for name in self.extra}


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "a read-only array": lambda: (np.frombuffer(X.numpy().tobytes(), np.float32).reshape(N, 3), Y.numpy()),
    "arrays of the other byte order": lambda: (X.numpy().astype(">f4"), Y.numpy().astype(">i2")),
    "arrays turned around": lambda: (X.numpy()[::-1].copy()[::-1], Y.numpy()[::-1].copy()[::-1]),
    "labels in a list": lambda: (X, Y.tolist()),
    "lists of numbers": lambda: (X.tolist(), Y.tolist()),
    "lists of tensors": lambda: (list(X), list(Y)),
    "a list of arrays": lambda: ([x.numpy() for x in X], Y.numpy()),
    "labels of uint8": lambda: (X, Y.to(torch.uint8)),
    "labels of uint16": lambda: (X, Y.to(torch.uint16)),
    "labels of uint64": lambda: (X.numpy(), Y.numpy().astype(np.uint64)),
    "a graph behind it": lambda: (X.clone().requires_grad_() * 1, Y),
    "a dict of arrays": lambda: {"x": X.numpy(), "labels": Y.numpy()},
    "ragged batches": lambda: batches(4),
    "batches of lists, as a loader makes them": lambda: list(DataLoader(PAIRS, batch_size=11)),
    "batches of equal size": lambda: [[X[:5], Y[:5]], [X[5:10], Y[5:10]], [X[10:], Y[10:]]],
    "batches of dicts": lambda: [{"x": x, "labels": y} for x, y in batches(4)],
    "batches of arrays": lambda: [(x.numpy(), y.numpy()) for x, y in batches(4)],
    "a loader of ragged batches": lambda: DataLoader(batches(4), batch_size=None),
    "an iterable of batches": lambda: OnlyIter(batches(4)),
    "an iterable of samples": lambda: OnlyIter(list(zip(X, Y, strict=True))),
    "samples of arrays": lambda: [(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)],
    "samples of lists": lambda: [(x.tolist(), int(y)) for x, y in zip(X, Y, strict=True)],
    "rows of lists": Columns,
    "a loader of rows of lists": lambda: DataLoader(Columns(), batch_size=3),
    "a stream of rows of lists": lambda: OnlyIter([Columns()[i] for i in range(N)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str) -> None:
    samples, right = as_samples(FORMS[form]()), as_samples((X, Y))
    inputs, targets = samples.take(torch.tensor([7, 0]))
    assert torch.equal(inputs["x"] if isinstance(inputs, dict) else inputs, X[[7, 0]])
    assert torch.equal(targets.long(), Y[[7, 0]])
    assert torch.equal(samples.order(3), right.order(3)) and samples.fingerprint == right.fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_every_form_can_be_measured(form: str) -> None:
    """The same losses as of tensors, whatever the batches."""

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(3, 4)
    right = Minimum(model, (X, Y))[Outputs()].losses
    assert torch.allclose(Minimum(model, FORMS[form](), batch_size=3)[Outputs()].losses, right)


def test_a_limit() -> None:
    """The first so many, of whatever form."""
    right = as_samples((X[:5], Y[:5]))
    forms: list[Any] = [
        (X, Y),
        {"x": X, "labels": Y},
        PAIRS,
        DataLoader(PAIRS, batch_size=4),
        DataLoader(batches(4), batch_size=None),
        batches(4),
        Endless(),
        DataLoader(Endless(), batch_size=3),
        list(zip(X, Y, strict=True)),
        as_samples((X, Y)),
    ]
    for data in forms:
        samples = as_samples(data, limit=5)
        assert len(samples) == 5 and samples.fingerprint == right.fingerprint, type(data)
        assert len(as_samples(data, limit=N)) == N
    assert len(Minimum(nn.Linear(3, 4), Endless(), limit=N).samples) == N
    for bad in (0, -1, 2.5, True):
        with pytest.raises(UsageError, match=r"limit=.*at least 1"):
            as_samples((X, Y), limit=bad)  # type: ignore[arg-type]


def test_a_stream_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatminima.core.samples.sources._MOST", 1 << 16)
    with pytest.raises(DataError, match=r"an IterableDataset goes on after \d+ samples.*pass limit="):
        as_samples(Endless())

    class Repeats(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield 0

    with pytest.raises(DataError, match=r"sampler goes on after 1100 samples of 11; pass limit="):
        as_samples(DataLoader(PAIRS, sampler=Repeats()))


# -- token lists of different lengths --------------------------------------------------------------------------------

LENGTHS = [3, 7, 2, 5, 7, 4, 1, 6, 2]
TOKENS = [torch.arange(1, n + 1) + i for i, n in enumerate(LENGTHS)]


class Sentences(Dataset[Any]):
    """Lists of tokens with an attention mask, in some order of the file."""

    def __init__(self, order: list[int], tokens_labelled: bool = False) -> None:
        self.rows, self.tokens_labelled = order, tokens_labelled

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        t = TOKENS[self.rows[i]].tolist()
        labels: Any = t if self.tokens_labelled else len(t) % 2
        return {"input_ids": t, "attention_mask": [1] * len(t), "labels": labels}


def left_padded(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A collate function as those of tokenizers: to the longest of the batch, on the left."""
    longest = max(len(item["input_ids"]) for item in items)
    rows = {
        k: torch.tensor([[0] * (longest - len(item[k])) + item[k] for item in items])
        for k in ("input_ids", "attention_mask")
    }
    return rows | {"labels": torch.tensor([item["labels"] for item in items])}


class Reader(nn.Module):
    """A classifier whose answer depends on the length that it is padded to, so that another padding shows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return self.head(hidden.mean(1))  # over the padded length


ORDERS = [list(range(9)), [8, 2, 6, 4, 0, 1, 7, 5, 3], [6, 2, 8, 0, 5, 3, 7, 4, 1]]


@pytest.mark.parametrize("form", ["a dataset", "a loader that pads"])
def test_padding_depends_neither_on_batches_nor_on_the_order(form: str) -> None:
    """To the longest of the data set: the same fingerprint, orders and losses. Catches padding a batch at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader()
    seen = set()
    for order in ORDERS:
        for batch_size in (1, 2, 9):
            data: Any = Sentences(order)
            if form != "a dataset":
                data = DataLoader(data, batch_size=batch_size, collate_fn=left_padded)
            m = Minimum(model, data, batch_size=batch_size)
            inputs, _ = m.samples.take(torch.tensor([0]))
            assert inputs["input_ids"].shape == (1, 7)
            losses = m[Outputs()].losses[torch.tensor(order).argsort()]
            draw = [order[i] for i in m.samples.order(1).tolist()]
            seen.add((m.samples.fingerprint, tuple(draw), tuple(f"{x:.6f}" for x in losses)))
    assert len(seen) == 1


def test_padded_labels_do_not_count() -> None:
    samples = as_samples(Sentences(list(range(9)), tokens_labelled=True))
    inputs, targets = samples.take(torch.tensor([2]))
    assert targets.tolist() == [[3, 4, -100, -100, -100, -100, -100]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0]]


def test_lengths_without_a_mask_are_refused() -> None:
    with pytest.raises(DataError, match=r"samples differ in shape: \(3,\), int and \(7,\), int; pad them.*collate_fn"):
        as_samples([(t, i % 2) for i, t in enumerate(TOKENS)])


# -- entries beyond input and target ---------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.a(x) + self.b(z)


class Optional(nn.Linear):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


def test_longer_samples_are_inputs_where_the_network_takes_them() -> None:
    model = Two()
    flat, nested = Minimum(model, TensorDataset(X, 2 * X, Y)), Minimum(model, ((X, 2 * X), Y))
    assert torch.equal(flat[Outputs()].losses, nested[Outputs()].losses)


@pytest.mark.parametrize(
    ("model", "takes"),
    [(nn.Linear(3, 4), "takes 1"), (Optional(3, 4), "takes 1 to 2")],
)
@pytest.mark.parametrize("form", ["a dataset", "a loader", "batches"])
def test_a_third_entry_is_refused_by_name(model: nn.Module, takes: str, form: str) -> None:
    """A weight or an index after the label would be taken for the target."""
    data = TensorDataset(X, Y, torch.arange(N) % 4)
    forms: dict[str, Any] = {
        "a dataset": data,
        "a loader": DataLoader(data, batch_size=4),
        "batches": DataLoader([data[:6], data[6:]], batch_size=None),
    }
    with pytest.raises(DataError, match=rf"samples of 3 entries \(\(3,\) float32, \(\) int64, .*{takes}:.*target\)"):
        Minimum(model, forms[form])


# -- labels on every path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [4, -100, -1])
@pytest.mark.parametrize("form", ["tensors", "a dataset", "a loader", "batches", "rows", "a stream"])
def test_a_wrong_label_is_named_wherever_it_is(form: str, label: int) -> None:
    y = Y.clone()
    y[9] = label
    pairs = TensorDataset(X, y)
    data: dict[str, Any] = {
        "tensors": (X, y),
        "a dataset": pairs,
        "a loader": DataLoader(pairs, batch_size=4),
        "batches": [(X[:6], y[:6]), (X[6:], y[6:])],
        "rows": [{"input": x.tolist(), "label": int(k)} for x, k in zip(X, y, strict=True)],
        "a stream": OnlyIter(list(zip(X, y, strict=True))),
    }
    what = r"ignored by \w+" if label == -100 else "out of range"
    for loss in ("cross_entropy", nn.CrossEntropyLoss(reduction="none")):
        with pytest.raises(DataError, match=rf"label {label} of sample 9 is {what}"):
            Minimum(nn.Linear(3, 4), data[form], loss)


def test_labels_of_bool_and_beyond_int64() -> None:
    with pytest.raises(DataError, match=r"labels of dtype torch.bool"):
        Minimum(nn.Linear(3, 2), (X, Y > 1))
    assert len(Minimum(nn.Linear(3, 1), (X, (Y > 1)[:, None]), "binary_cross_entropy")[Outputs()].losses) == N
    far = Y.numpy().astype(np.uint64)
    far[3] = 2**63 + 5
    with pytest.raises(DataError, match=r"target 9223372036854775813, beyond int64"):
        as_samples((X, far))


# -- refusals --------------------------------------------------------------------------------------------------------


def _jagged() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)], layout=torch.jagged)


class Broken(Dataset[Any]):
    def __init__(self, place: int) -> None:
        self.place = place

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i == self.place:
            raise KeyError("image 5")
        return X[i], int(Y[i])


class WithoutLength(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return X[i], int(Y[i])


def _uncollatable(items: list[Any]) -> Any:
    raise RuntimeError("stack expects each tensor to be equal size\nand more")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "jagged": (lambda: (_jagged(), Y[:2]), r"nested tensor as input.*pad it: torch.nested.to_padded_tensor"),
    "sparse": (lambda: (X.to_sparse(), Y), r"layout sparse_coo as input.*pass \.to_dense\(\)"),
    "sparse rows": (lambda: (X.to_sparse_csr(), Y), r"layout sparse_csr as input"),
    "sparse in a dict": (lambda: {"x": X.to_sparse(), "labels": Y}, r"layout sparse_coo as input"),
    "sparse targets": (lambda: (X, X.to_sparse()), r"layout sparse_coo as target"),
    "sparse samples": (lambda: [(x.to_sparse(), 1) for x in X], r"layout sparse_coo as input"),
    "meta": (lambda: (X.to("meta"), Y), r"input on the meta device"),
    "quantised": (lambda: (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), Y), r"\.dequantize\(\)"),
    "ragged lists": (lambda: ([[1.0, 2.0], [1.0]], [0, 1]), r"inputs of different lengths in one list; pad them"),
    "ragged tensors": (lambda: ([torch.zeros(2), torch.zeros(3)], [0, 1]), r"shapes \(2,\) and \(3,\).*pad them"),
    "words": (lambda: (X, ["cat"] * N), r"targets of type str_? .*encode classes as integers"),
    "array of words": (lambda: (X, np.array(["cat"] * N)), r"encode classes as integers"),
    "array of objects": (lambda: (np.array([{}] * N), Y), r"input of type dict; expected tensors"),
    "a column of words": (lambda: Columns("text"), r"column 'text' holds text; expected tensors.*remove_columns"),
    "two data sets": (lambda: {"train": PAIRS, "test": PAIRS}, r"several data sets \['test', 'train'\]; pass one"),
    "a masked array": (lambda: (np.ma.masked_greater(X.numpy(), 1.0), Y), r"masked array as input.*\.filled"),
    "an array alone": (lambda: X.numpy(), r"ndarray without targets; pass \(inputs, targets\)"),
    "a tensor alone": (lambda: X, r"Tensor without targets"),
    "a name": (lambda: "mnist", r"str without targets"),
    "pairs that may be either": (
        lambda: [(X[:4], Y[:4]), (X[4:8], Y[4:8])],
        r"may be batches or samples.*batch_size=None",
    ),
    "inputs or samples": (lambda: ([torch.zeros(2, 3), torch.ones(2, 3)], [0, 1]), r"samples or inputs.*torch\.stack"),
    "no batches": (lambda: [], r"no samples in data"),
    "an empty iterable": (lambda: OnlyIter([]), r"no samples in data"),
    "a generator": (lambda: (pair for pair in batches(4)), r"one-pass generator; statistics need several passes"),
    "a broken file": (lambda: Broken(10), r"sample 10 of 11 cannot be read: KeyError: 'image 5'"),
    "a broken first file": (lambda: Broken(0), r"sample 0 of 11 cannot be read"),
    "no length": (WithoutLength, r"WithoutLength without a length; make it an IterableDataset"),
    "a broken collate function": (
        lambda: DataLoader(PAIRS, collate_fn=_uncollatable),
        r"the collate function fails on 8 samples: RuntimeError: stack expects each tensor to be equal size$",
    ),
    "None": (lambda: None, r"data of type NoneType"),
    "samples of None": (lambda: [(None, 1), (None, 0)], r"input of type NoneType; expected tensors"),
    "two targets": (lambda: [(x, (1, torch.tensor(2.0))) for x in X], r"target of 2 tensors a batch; expected one"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested", "ignore:.*quanti")
def test_refused_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        as_samples(make())
    assert "\n" not in str(caught.value)


# -- many samples ----------------------------------------------------------------------------------------------------


def test_more_samples_than_float32_has_integers() -> None:
    """torch.linspace(...).long() ends at an index that is not there."""
    for count in (1, 2, 5, 2**24 + 3, 2**40 + 1):
        for places in (1, 4, 8):
            indices = spread(count, places)
            assert len(indices) == min(places, count) and int(indices[0]) == 0
            assert int(indices[-1]) == (count - 1 if min(places, count) > 1 else 0)
            assert bool((indices.diff() > 0).all())
