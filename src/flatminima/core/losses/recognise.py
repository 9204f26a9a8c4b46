"""Recognition of the loss that a name, one of torch's modules or functions, or a callable is.

Torch's own are recognised by identity: a module of exactly torch's forward, or a function of ``torch.nn.functional``,
plain or in a ``functools.partial``. A subclass that overrides forward, a module with hooks and every other callable are
what they compute, and nothing is assumed of them.

``reduction="mean"`` is taken as the mean over samples where it is one; ``"sum"`` is refused, since the sum over a
sample's entries and the sum over samples are one number there.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import loss as torch_losses

from flatminima.core.losses.cross_entropy import CrossEntropy
from flatminima.core.losses.elementwise import BinaryCrossEntropy, SquaredError
from flatminima.core.losses.loss import Loss, PerSample
from flatminima.core.losses.user import UserLoss
from flatminima.errors import DataError, UnknownName

BUILT_IN: dict[str, Loss] = {
    "cross_entropy": CrossEntropy("cross_entropy", labels=True),
    "mse": SquaredError(),
    "binary_cross_entropy": BinaryCrossEntropy(),
    "token_cross_entropy": CrossEntropy("token_cross_entropy", classes_last=True),
    "token_cross_entropy_sequence": CrossEntropy("token_cross_entropy_sequence", classes_last=True, total=True),
    "causal_lm": CrossEntropy("causal_lm", classes_last=True, shifted=True),
    "causal_lm_sequence": CrossEntropy("causal_lm_sequence", classes_last=True, shifted=True, total=True),
}


def recognise(loss: str | PerSample | Loss) -> Loss:
    """The `Loss` of a name, of torch's own losses, or of a callable.

    Raises:
        UnknownName: no built-in of this name.
        DataError: a loss of torch whose reduction mixes the samples, or a callable of other arguments.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in BUILT_IN:
            raise UnknownName("loss", loss, BUILT_IN, "or pass a callable(output, target) -> (batch,)")
        return BUILT_IN[loss]
    if not callable(loss):
        raise DataError(
            f"got a loss of type {type(loss).__name__}; expected a name ({', '.join(BUILT_IN)}), one of torch's losses "
            "or a callable(output, target) -> (batch,)"
        )
    _refuse_other_arguments(loss)
    found = _of_module(loss) or _of_function(loss)
    return UserLoss(_name(loss), loss) if found is None else found


def _refuse_other_arguments(loss: Any) -> None:
    """Raise DataError where a callable does not take an output and a target and no more (``GaussianNLLLoss``)."""
    try:
        signature = inspect.signature(_inner(loss))
    except (ValueError, TypeError):  # a builtin tells nobody what it takes
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise DataError(
            f"got the loss {_name(loss)}({', '.join(signature.parameters)}), which is not called with (output, target) "
            "alone; expected a callable(output, target) -> (batch,): wrap it in one that takes the rest from the "
            "output or the target and has one loss a sample, reduction='none'"
        ) from None


def _inner(loss: Any) -> Any:
    """What tells the arguments: of a module, alone or in a partial, its forward."""
    if isinstance(loss, functools.partial):
        return functools.partial(_inner(loss.func), *loss.args, **loss.keywords)
    by_forward = isinstance(loss, nn.Module) and type(loss).__call__ is nn.Module.__call__
    return loss.forward if by_forward else loss


def _name(loss: Any) -> str:
    inner = loss.func if isinstance(loss, functools.partial) else loss
    return str(getattr(inner, "__name__", type(inner).__name__))


def _of_module(loss: Any) -> Loss | None:
    """Of a torch module with exactly torch's forward and no hooks, or of its bound forward."""
    bound = getattr(loss, "__func__", None)
    if any(bound is kind.forward for kind in (*_MODULES, *_FUNCTION_OF)):
        loss = loss.__self__
    if not isinstance(loss, torch_losses._Loss) or "forward" in vars(loss):
        return None
    if loss._forward_hooks or loss._forward_pre_hooks or type(loss).__call__ is not nn.Module.__call__:
        return None
    for kind, make in _MODULES.items():
        if type(loss).forward is kind.forward:
            return make(kind.__name__, vars(loss) | dict(loss.named_buffers()))
    function = next((f for kind, f in _FUNCTION_OF.items() if type(loss).forward is kind.forward), None)
    return None if function is None else _other(type(loss).__name__, _unreduced(loss), loss.reduction, function)


def _of_function(loss: Any) -> Loss | None:
    """Of a function of torch.nn.functional, alone or with keywords."""
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        if loss.args:
            return None
        loss, options = loss.func, dict(loss.keywords)
    if any(loss is function for function in _OTHER) and all(options.get(key) is None for key in _LEGACY):
        whole = functools.partial(loss, **options | {"reduction": "none"})
        return _other(loss.__name__, whole, options.get("reduction", "mean"), loss)
    make = next((make for function, make in _FUNCTIONS.items() if function is loss), None)
    if make is None or not options.keys() <= _OPTIONS or any(options.get(k) is not None for k in _LEGACY):
        return None
    return make(loss.__name__, {"reduction": "mean"} | options)


def _unreduced(loss: Any) -> Any:
    """The module with a loss for each entry, or each sample; the user's own stays as it is."""
    if loss.reduction == "none":
        return loss
    other = copy.copy(loss)
    other.reduction = "none"
    return other


def _other(name: str, unreduced: PerSample, reduction: str, function: Callable[..., Tensor]) -> Loss:
    """Any other of torch's losses, by its values; its mean over entries is the mean over samples of a sample's mean."""
    of_batch = reduction == "batchmean" and function is F.kl_div
    if reduction not in ("none", "mean") and not of_batch:
        raise DataError(_REDUCED.format(name=name, reduction=reduction))
    return UserLoss(
        name,
        unreduced,
        entries="sum" if of_batch else "mean",
        like_outputs=_OTHER[function],
        of_probabilities=function is F.binary_cross_entropy,
    )


def _mean(name: str, options: dict[str, Any]) -> bool:
    """Whether the reduction is the mean. Raises DataError for a sum."""
    reduction = options["reduction"]
    if reduction not in ("none", "mean"):
        raise DataError(_REDUCED.format(name=name, reduction=reduction))
    return bool(reduction == "mean")


def _cross_entropy(name: str, options: dict[str, Any]) -> Loss:
    weight, smoothing = _weight(options, "weight"), float(options.get("label_smoothing", 0.0))
    ignored = int(options.get("ignore_index", -100))
    mean = _mean(name, options)
    return CrossEntropy(name, soft=True, weight=weight, smoothing=smoothing, ignored=ignored, mean=mean)


def _negative_log_likelihood(name: str, options: dict[str, Any]) -> Loss:
    ignored = int(options.get("ignore_index", -100))
    mean = _mean(name, options)
    return CrossEntropy(name, weight=_weight(options, "weight"), ignored=ignored, mean=mean, normalised=True)


def _binary(name: str, options: dict[str, Any]) -> Loss:
    _mean(name, options)
    return BinaryCrossEntropy(name, _weight(options, "weight"), _weight(options, "pos_weight"))


def _squared(name: str, options: dict[str, Any]) -> Loss | None:
    _mean(name, options)
    return None if options.get("weight") is not None else SquaredError(name)


def _weight(options: dict[str, Any], key: str) -> Tensor | None:
    weight = options.get(key)
    return weight.detach().clone() if isinstance(weight, Tensor) else None


Make = Callable[[str, dict[str, Any]], Loss | None]

_MODULES: dict[type[nn.Module], Make] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _negative_log_likelihood,
    nn.BCEWithLogitsLoss: _binary,
    nn.MSELoss: _squared,
}
_FUNCTIONS: dict[Callable[..., Tensor], Make] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _negative_log_likelihood,
    F.binary_cross_entropy_with_logits: _binary,
    F.mse_loss: _squared,
}
# whether targets have the outputs' shape; the margins over classes have labels, and a loss a sample
_OTHER: dict[Callable[..., Tensor], bool] = {
    F.binary_cross_entropy: True,
    F.hinge_embedding_loss: True,
    F.huber_loss: True,
    F.kl_div: True,
    F.l1_loss: True,
    F.multi_margin_loss: False,
    F.multilabel_margin_loss: True,
    F.multilabel_soft_margin_loss: True,
    F.poisson_nll_loss: True,
    F.smooth_l1_loss: True,
    F.soft_margin_loss: True,
}
_FUNCTION_OF: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.BCELoss: F.binary_cross_entropy,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
    nn.HuberLoss: F.huber_loss,
    nn.KLDivLoss: F.kl_div,
    nn.L1Loss: F.l1_loss,
    nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.MultiMarginLoss: F.multi_margin_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
}
_LEGACY = {"size_average", "reduce"}
_OPTIONS = {"weight", "pos_weight", "label_smoothing", "ignore_index", "reduction", *_LEGACY}
_REDUCED = (
    "got {name} with reduction={reduction!r}, which mixes the samples of a batch; measures need the loss of each: "
    "pass reduction='none'"
)
