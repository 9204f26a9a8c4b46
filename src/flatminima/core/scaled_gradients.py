"""Refusal of gradients that are none of the loss's: of an embedding that divides a token's by how often it occurs.

`scale_grad_by_freq=True` is a recipe of training. Outputs are as without it, but what autograd hands out depends on the
other tokens of the batch, so that no two batch sizes agree on a gradient, a Fisher matrix or a Hessian.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flatminima.errors import ModelError

_FLAG = "scale_grad_by_freq"


def refuse_scaled_gradients(model: nn.Module, outputs: Tensor | None = None) -> None:
    """Refuse a trainable embedding with `scale_grad_by_freq=True`.

    Args:
        model: whose layers are looked at.
        outputs: of some samples, with their graph, in which the function behind the layer's back shows too.

    Raises:
        ModelError: naming the layer, or the function.
    """
    for name, module in model.named_modules():
        if getattr(module, _FLAG, False) is True and any(p.requires_grad for p in module.parameters()):
            where = f"layer {name!r}" if name else "the model"
            raise ModelError(f"{where} has {_REASON}: set it to False, which changes no output")
    if outputs is not None and _in_graph(outputs):
        raise ModelError(f"the network calls torch.nn.functional.embedding with {_REASON}: leave it out")


_REASON = f"{_FLAG}=True, whose gradients depend on the other tokens of a batch and are not the loss's"


def _in_graph(outputs: Tensor) -> bool:
    stack: list[Any] = [outputs.grad_fn]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, f"_saved_{_FLAG}", False) is True:
            return True
        stack += [following for following, _ in node.next_functions]
    return False
