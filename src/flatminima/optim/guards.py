"""While weights are displaced, whoever would take them for the real ones is refused: no checkpoint holds noise.

Hooks of the modules that own the weights, put on with a block and taken off with it. A hook that cannot be copied or
pickled refuses copies of its module too. An optimizer knows parameters and not modules: those come from the model that
was given, or from the first forward pass within a block.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from flatminima.errors import UsageError
from flatminima.optim.shards import is_sharded, reshard

_REMEDY = "leave the `with ....perturbed():` block first"


class _Refusal:
    """A hook before `state_dict` or `load_state_dict`."""

    def __init__(self, guards: Guards, what: str) -> None:
        self.guards = guards
        self.what = what

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if self.guards.active:  # an interrupt may have left the hook behind
            self._refuse(module)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.guards.active:
            raise UsageError(f"a copy or pickle of a module while its weights are perturbed: {self.guards.remedy}")
        return _nothing, ()

    def _refuse(self, module: nn.Module) -> None:
        raise UsageError(
            f"{self.what} of {type(module).__name__} while its weights are perturbed: {self.guards.remedy}"
        )


def _nothing() -> Any:
    return lambda *_: None


class Guards:
    """The modules that own an optimizer's parameters, and the hooks they carry during a block.

    Args:
        remedy: what to do instead, for messages.
    """

    _unknown: set[int]  # parameters whose module was not met yet
    _owners: list[weakref.ref[nn.Module]]
    _whole: list[weakref.ref[nn.Module]]
    _sharded: list[weakref.ref[nn.Module]]  # whose weights FSDP2 gathers
    _reduced: list[tuple[weakref.ref[nn.Module], list[Any]]]  # by DistributedDataParallel, and how they were made
    _handles: list[RemovableHandle]

    def __init__(self, remedy: str = _REMEDY) -> None:
        self.remedy = remedy
        self._clear(())

    def __getstate__(self) -> dict[str, Any]:
        return {"remedy": self.remedy}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.remedy = state.get("remedy", _REMEDY)
        self._clear(())

    def _training_only(self, module: nn.Module, _: Any) -> None:
        """A hook before `forward`: a network in training mode at the block's start must not be evaluated within."""
        if self.active and not module.training:
            raise UsageError(
                f"a forward pass of {type(module).__name__} in eval() mode while its weights are perturbed: "
                f"{self.remedy}"
            )

    def enter(self, parameters: list[Tensor], model: nn.Module | None) -> None:
        """Guard the parameters, which are displaced from now on."""
        key = (id(model), *map(id, parameters))
        if key != self._key:
            self._clear(key)
            self._unknown = {id(p) for p in parameters}
            self._any_sharded = any(is_sharded(p) for p in parameters)
            if model is not None:
                self._meet(model)
                self._unknown = set()
        for reduced, layout in self._reduced:
            if (known := reduced()) is not None and _layout(known) != layout:
                raise UsageError(
                    "got weights of another dtype or memory format than DistributedDataParallel was made with, which "
                    "then no longer averages their gradients: wrap the network anew after changing it"
                )
        self.active = True
        if self._unknown:
            self._handles.append(register_module_forward_pre_hook(lambda module, _: self._meet_called(module)))
        for module in _alive(self._whole):
            self._guard_whole(module)
        for module in _alive(self._owners):
            self._handles.append(module.register_state_dict_pre_hook(self._saving))

    def leave(self) -> None:
        """The parameters are themselves again; harmless if they were."""
        self.active = False
        while self._handles:
            self._handles.pop().remove()

    def reshard(self) -> None:
        """Let the next pass gather the weights of now, where FSDP2 has gathered those of before."""
        if self._any_sharded:
            reshard(list(_alive(self._sharded)))

    def _clear(self, key: tuple[int, ...]) -> None:
        self._key = key
        self.active = False
        self._saving, self._loading = _Refusal(self, "state_dict()"), _Refusal(self, "load_state_dict()")
        self._unknown, self._any_sharded = set(), False
        self._owners, self._whole, self._sharded, self._reduced, self._handles = [], [], [], [], []

    def _meet_called(self, module: nn.Module) -> None:
        if self._unknown:
            for new in self._meet(module):
                self._handles.append(new.register_state_dict_pre_hook(self._saving))
            for whole in _alive(self._whole):
                self._guard_whole(whole)
            self.reshard()

    def _meet(self, module: nn.Module) -> list[nn.Module]:
        """Its modules that own parameters of ours, unless they are known."""
        ids = set(self._key[1:])
        parts = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]  # which take no such hooks
        owners = [m for m in parts if any(id(p) in ids for p in m._parameters.values())]
        if not owners:
            return []
        self._unknown -= {id(p) for m in owners for p in m._parameters.values()}
        known = {id(m) for m in _alive(self._owners)}
        new = [m for m in (*parts[:1], *owners) if id(m) not in known]
        self._owners += [weakref.ref(m) for m in dict.fromkeys(new)]
        whole = [m for m in parts if m is module or ids <= {id(p) for p in m.parameters()}]
        self._whole += [weakref.ref(m) for m in whole]
        self._reduced += [(weakref.ref(m), _layout(m)) for m in parts if isinstance(m, DistributedDataParallel)]
        if self._any_sharded:
            from torch.distributed.fsdp import FSDPModule

            self._sharded += [weakref.ref(m) for m in parts if isinstance(m, FSDPModule)]
        return list(dict.fromkeys(new))

    def _guard_whole(self, module: nn.Module) -> None:
        self._handles.append(module.register_load_state_dict_pre_hook(self._loading))
        if module.training and not hasattr(module, "_orig_mod"):
            self._handles.append(module.register_forward_pre_hook(self._training_only))


def _layout(module: nn.Module) -> list[Any]:
    return [(p.dtype, p.stride()) for p in module.parameters()]


def _alive(references: Iterable[weakref.ref[nn.Module]]) -> Iterable[nn.Module]:
    return (module for reference in references if (module := reference()) is not None)
