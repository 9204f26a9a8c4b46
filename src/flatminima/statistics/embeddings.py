"""Continuous inputs of a network: its own, or of a network of tokens the embeddings that the tokens are looked up in.

Perturbations of texts are defined there (Miyato, Dai & Goodfellow 2017, sec. 3): a token has no direction, its
embedding has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.batch import Batch
from flatminima.core.samples import Inputs, leaves
from flatminima.errors import Undefined

_TOKENS = "input_ids"


@contextmanager
def continuous_inputs(batch: Batch) -> Iterator[list[Tensor]]:
    """Leaves to differentiate by; of a network of tokens the list is filled by a forward pass within the block.

    Raises:
        Undefined: no floating-point input, and no embedding that looks tokens of the input up.
    """
    if not of_tokens(batch.inputs):
        yield batch.open_inputs()
        return
    found: list[Tensor] = []
    handles = [
        module.register_forward_hook(_opening(_tokens(batch.inputs), found))
        for module in batch.minimum.model.modules()
        if isinstance(module, nn.Embedding)
    ]
    if not handles:
        raise Undefined("the network's input is not continuous (token ids or categories), and it has no embedding")
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def of_tokens(inputs: Inputs) -> bool:
    """Whether no input is a tensor of real numbers."""
    return not any(t.is_floating_point() for t in leaves(inputs))


def refuse_unopened(found: list[Tensor]) -> None:
    """Refuse embeddings of which a forward pass looked nothing up."""
    if not found:
        raise Undefined("the network's input is not continuous (token ids or categories), and no embedding looks it up")


def _tokens(inputs: Inputs) -> list[Tensor]:
    """The tensors of tokens, not masks or kinds of token."""
    if isinstance(inputs, dict) and _TOKENS in inputs:
        return [inputs[_TOKENS]]
    return [t for t in leaves(inputs) if t.dtype == torch.int64]


def _opening(tokens: list[Tensor], found: list[Tensor]) -> Callable[..., Any]:
    """A hook that makes an embedding's output a leaf where its input is the tokens, or a view of them."""
    places = {t.data_ptr() for t in tokens}

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        looked_up = args[0] if args and isinstance(args[0], Tensor) else None
        if looked_up is None or looked_up.data_ptr() not in places or not isinstance(output, Tensor):
            return output
        leaf = output.detach().requires_grad_()
        found.append(leaf)
        return leaf

    return hook
