"""Parameters that lie in each other's memory: one weight where they agree entry by entry, else one clear refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.core.sharing import aliases, repeats
from flatminima.errors import ModelError

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
FLAT = torch.randn(64, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """Two parameters, and a buffer where one is given."""

    def __init__(self, one: Tensor, other: Tensor, buffer: Tensor | None = None, *, trains: bool = True) -> None:
        super().__init__()
        self.one = nn.Parameter(one)
        self.other = nn.Parameter(other, requires_grad=trains)
        self.register_buffer("kept", buffer)


def square() -> Tensor:
    return FLAT.clone()[:16].view(4, 4)


def flat() -> Tensor:
    return FLAT.clone()


def viewed(make: Callable[[Tensor], Tensor]) -> Callable[[], Two]:
    def build() -> Two:
        weight = nn.Parameter(square())
        return Two(weight, make(weight.data))

    return build


OVERLAPPING: dict[str, Callable[[], Two]] = {
    "a transpose": viewed(torch.t),
    "a row": viewed(lambda w: w[1]),
    "a column": viewed(lambda w: w[:, 1]),
    "every second column": viewed(lambda w: w[:, ::2]),
    "another shape": viewed(lambda w: w.view(2, 8)),
    "the diagonal": viewed(torch.diagonal),
    "another dtype": viewed(lambda w: w.view(torch.bfloat16)),
    "another dtype, within": viewed(lambda w: w.view(torch.int16)[:, 1::2].view(torch.float16)),
    "one entry": viewed(lambda w: w[3, 3:]),
    "a transpose of a transpose's part": viewed(lambda w: w.t()[1:, 2:].t()[:, :1]),
    "a buffer": lambda: (lambda w: Two(w, square(), w.t()))(square()),
    "the same weight in a buffer": lambda: (lambda w: Two(w, square(), w))(square()),
}


@pytest.mark.parametrize("name", OVERLAPPING)
@pytest.mark.parametrize("trains", [True, False])
def test_memory_of_a_trainable_weight_is_no_other_weights(name: str, trains: bool) -> None:
    """Each is moved with the other, while the gradient of each is a part of the true one."""
    net = OVERLAPPING[name]()
    if net.other.is_floating_point():
        net.other.requires_grad_(trains)
    with pytest.raises(ModelError, match="overlap in memory"):
        aliases(net)


def _windows() -> Two:
    whole = flat()
    return Two(whole[:16].view(4, 4), whole[16:32].view(4, 4).t())


def _columns() -> Two:
    whole = flat().view(8, 8)
    return Two(whole[:, :3], whole[:, 3:], whole.clone())


def _interleaved() -> Two:
    whole = flat()
    return Two(whole[::2], whole[1::2])


def _never_moved() -> Two:
    weight = square()
    return Two(flat(), weight, weight.t(), trains=False)


def _computed_buffer() -> Two:
    net = Two(square(), flat())
    net.register_buffer("kept", net.one.t())  # with a graph that gradients pass
    return net


APART: dict[str, Callable[[], Two]] = {
    "beside each other": _windows,
    "columns of one matrix": _columns,
    "in turns": _interleaved,
    "two that never move": _never_moved,
    "a buffer with a graph": _computed_buffer,
    "nothing": lambda: Two(torch.empty(0), torch.empty(0, 3)),
}


@pytest.mark.parametrize("name", APART)
def test_whoever_has_no_entry_in_common_is_let_be(name: str) -> None:
    assert aliases(APART[name]()) == {}


def test_strides_of_a_single_entry_say_nothing() -> None:
    """A kernel of one pixel is laid out alike in both memory formats."""
    kernel = torch.randn(4, 3, 1, 1)
    net = Two(kernel, kernel.as_strided(kernel.shape, (3, 1, 7, 5)))
    assert aliases(net) == {id(net.other): net.one}


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (FLAT.as_strided((4, 3), (1, 1)), True),
        (FLAT.as_strided((4, 3), (2, 3)), True),
        (FLAT.as_strided((4, 3), (3, 2)), False),
        (FLAT.as_strided((2, 3), (3, 2)), False),
        (FLAT[:4].expand(3, 4), True),
        (FLAT[:4].expand(1, 4), False),
        (FLAT[:16].view(4, 4).t(), False),
        (FLAT[::5], False),
    ],
)
def test_entries_in_one_place(tensor: Tensor, found: bool) -> None:
    assert repeats(tensor) == found == (len({*_addresses(tensor)}) < tensor.numel())
    if found:
        net = nn.Linear(4, 3)
        net.weight = nn.Parameter(tensor)
        with pytest.raises(ModelError, match="several entries are one in memory"):
            Minimum(net, (X, Y))


def _addresses(tensor: Tensor) -> list[int]:
    places = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        places += (torch.arange(size) * stride).view(-1, *[1] * (tensor.dim() - dim - 1))
    return places.flatten().tolist()


class Autoencoder(nn.Module):
    """Decodes with the transpose of what it encodes with."""

    def __init__(self, *, by_parameter: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.head = nn.Linear(4, 3, bias=False), nn.Linear(3, 4), nn.Linear(4, 3)
        self.by_parameter = by_parameter
        if by_parameter:
            self.decoder.weight = nn.Parameter(self.encoder.weight.t())
        else:
            del self.decoder.weight

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.encoder(x))
        decoded = self.decoder(z) if self.by_parameter else F.linear(z, self.encoder.weight.t(), self.decoder.bias)
        return self.head(torch.tanh(decoded))


def test_a_tied_autoencoder_is_measured_as_the_refusal_says() -> None:
    """By two parameters its Hessian's trace was .867 where it is 2.178."""
    with pytest.raises(ModelError, match=r"'decoder.weight' and parameter 'encoder.weight' .*F.linear\(x, weight.t"):
        Minimum(Autoencoder(by_parameter=True), (X, Y))
    net = Autoencoder(by_parameter=False).double()
    loss = lambda *weights: F.cross_entropy(  # noqa: E731
        torch.func.functional_call(net, dict(zip(dict(net.named_parameters()), weights, strict=True)), X.double()), Y
    )
    blocks = torch.autograd.functional.hessian(loss, tuple(net.parameters()))
    truth = sum(
        float(row[i].flatten()[:: p.numel() + 1].sum())
        for i, (row, p) in enumerate(zip(blocks, net.parameters(), strict=True))
    )
    found = measures.hessian_trace(Minimum(net, (X.double(), Y)), samples=12)
    assert found.value == pytest.approx(truth, abs=4 * found.stderr + 1e-9)
