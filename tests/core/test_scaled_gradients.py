"""Embeddings whose gradients are scaled by how often a token occurs: refused by name, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima.core.scaled_gradients import refuse_scaled_gradients
from flatminima.errors import ModelError

TOKENS = torch.tensor([[0, 1, 1], [2, 2, 2]])


class Called(nn.Module):
    """A function of a table's weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.function = nn.Embedding(5, 3), function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(tokens, self.table.weight).sum(-1)


SCALED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True)),
        "layer '0' has scale_grad_by_freq",
    ),
    "bag": (lambda: nn.EmbeddingBag(5, 3, scale_grad_by_freq=True), "the model has scale_grad_by_freq=True"),
    "scripted": (
        lambda: nn.Sequential(torch.jit.script(nn.Embedding(5, 3, scale_grad_by_freq=True))),
        "layer '0' has",
    ),
    "function": (lambda: Called(lambda t, w: F.embedding(t, w, scale_grad_by_freq=True)), "the network calls"),
    "bag's function": (
        lambda: Called(lambda t, w: F.embedding_bag(t, w, mode="sum", scale_grad_by_freq=True)),
        "the network calls",
    ),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scaled_gradients_are_refused_by_name(name: str) -> None:
    """A Hessian's trace of 1.127 instead of 1.165, and another at each batch size."""
    make, message = SCALED[name]
    model = make()
    with pytest.raises(ModelError, match=message) as caught:
        refuse_scaled_gradients(model, model(TOKENS))
    assert "\n" not in str(caught.value)


def test_what_has_the_losss_gradients_is_not() -> None:
    frozen = nn.Embedding(5, 3, scale_grad_by_freq=True).requires_grad_(False)
    for model in (nn.Embedding(5, 3), frozen, Called(F.embedding), nn.EmbeddingBag(5, 3)):
        refuse_scaled_gradients(model, model(TOKENS))
        refuse_scaled_gradients(model)
