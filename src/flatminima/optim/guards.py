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
from flatminima.optim import gathered
from flatminima.optim.shards import is_sharded

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

    _key: tuple[int, ...]  # of the model and the parameters
    _unknown: set[int]  # parameters whose module was not met yet
    _owners: list[weakref.ref[nn.Module]]
    _whole: list[weakref.ref[nn.Module]]
    _sharded: list[nn.Module]  # that gather them, during a block
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
        if anew := key != self._key:
            _refuse_copies(parameters)
            self._clear(())
            self._any_sharded = any(is_sharded(p) for p in parameters)
        if self._any_sharded:  # first: modules then hold the shards that the optimizer has, and are known by them
            self._sharded = gathered.of_parameters(parameters)
            self.reshard()
        if model is not None:
            _refuse_others(model, set(key[1:]))
        if anew:
            self._key, self._unknown = key, set(key[1:])
            for top in gathered.roots(self._sharded) if model is None else [model]:
                self._meet(top)
            if model is not None:
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
        self.active, self._sharded = False, []
        while self._handles:
            self._handles.pop().remove()

    def reshard(self) -> None:
        """Let the next pass gather the weights of now, where FSDP2 has gathered those of before."""
        gathered.reshard(self._sharded)

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
        return list(dict.fromkeys(new))

    def _guard_whole(self, module: nn.Module) -> None:
        self._handles.append(module.register_load_state_dict_pre_hook(self._loading))
        if module.training and not hasattr(module, "_orig_mod"):
            self._handles.append(module.register_forward_pre_hook(self._training_only))


def _refuse_copies(parameters: list[Tensor]) -> None:
    """Refuse an optimizer of what FSDP2 has gathered for a pass: neither it nor we would move the weights."""
    if found := gathered.copies(parameters):
        raise UsageError(
            f"got an optimizer of weights that fully_shard had gathered for a pass, {len(found)} of {len(parameters)}, "
            "which nobody trains: make it right after fully_shard, or after reshard() of every sharded module"
        )


def _refuse_others(model: nn.Module, ids: set[int]) -> None:
    """Refuse a model with none of these parameters: its passes would not see them move."""
    if not any(id(p) in ids for p in model.parameters()):
        raise UsageError(
            f"got model={type(model).__name__}, in which none of the optimizer's parameters is: make the optimizer "
            "after whatever replaces them (fully_shard, load_state_dict(assign=True))"
        )


def _layout(module: nn.Module) -> list[Any]:
    return [(p.dtype, p.stride()) for p in module.parameters()]


def _alive(references: Iterable[weakref.ref[nn.Module]]) -> Iterable[nn.Module]:
    return (module for reference in references if (module := reference()) is not None)
