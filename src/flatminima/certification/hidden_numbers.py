"""Numbers that a network has beside its parameters: in its code, its attributes, or integers that are no structure.

They belong to P and Q alike and no seed changes them, so samples kept there would be part of the prior. What a function
of the caller's can reach is looked through: globals, closures, defaults, constants, imports, classes, hooks, and all
that lies within these. Installed packages and the files that a function reads are not.
"""

from __future__ import annotations

import builtins
import dis
import importlib.machinery
import inspect
import re
import site
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.certification.contents import Contents
from flatminima.certification.information import MOST_NUMBERS, is_data

_OWN = str(Path(__file__).parents[1])
_INSTALLED = (
    *(sysconfig.get_paths()[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
)
_MOST_TOGETHER = 8 * MOST_NUMBERS  # and one a function, in all that is held: a table in many small pieces is one
_MOST_ALLOWING = 2_000  # functions
_MOST_FUNCTIONS = 10_000  # that are looked through, in half a minute; the whole of this library has 5,000
_COUNTER = "num_batches_tracked"  # of BatchNorm; nobody compares what has this name

_OF_A_TRACE = frozenset({"_graph", "_code", "_tracer_cls"})  # of torch.fx, whose function has its constants

_DOCUMENTED = getattr(inspect, "CO_HAS_DOCSTRING", 0)  # a flag of code, since Python 3.13

# Names by which code takes from its globals, or from an object, what a text names
_OF_GLOBALS = frozenset({"eval", "exec", "globals", "vars", "locals"})
_IMPORTING = frozenset({"import_module", "__import__"})
_BY_TEXT = frozenset({"getattr", "attrgetter", "__getattribute__", "__dict__", "modules"}) | _OF_GLOBALS | _IMPORTING


def numbers_held(network: nn.Module, *functions: Any) -> list[str]:
    """Names of what holds more than 64 numbers beside the network's parameters and floating-point buffers.

    Args:
        network: its modules' attributes, code and hooks are looked through. functions: those that made it, or are
            applied to what it returns.
    """
    search = _Search(network)
    tensors = [*network.named_buffers(), *network.named_parameters()]
    for name, t in tensors:
        if _of_no_seed(name, t) and is_data(t):
            search.found.add(name)
        search.look(f"attributes of {name}", [type(t), *getattr(t, "__dict__", {}).values()])
    for name, rest in _memory_beside([(name, t) for name, t in tensors if not nn.parameter.is_lazy(t)]):
        search.look(f"the memory that {name} is a part of", rest)
    for name, module in network.named_modules():
        for key, value in list(vars(module).items()):
            if not _computed(module, key):
                search.look(f"{name}.{key}".lstrip("."), value)
        search.look(type(module).__name__, type(module))
    for name, hooks in vars(torch.nn.modules.module).items():
        if name.startswith("_global_"):
            search.look(name, hooks)
    for function in functions:
        search.look(getattr(function, "__qualname__", type(function).__name__), function)
    return search.result()


def _of_no_seed(name: str, t: Tensor) -> bool:
    """Whether nobody compares a tensor under two seeds: integers, zeros and ones, and a counter's namesake."""
    if nn.parameter.is_lazy(t) or t.device.type == "meta":
        return False
    if not t.is_floating_point():
        return not t.is_complex() or not isinstance(t, nn.Parameter)
    return name.endswith(_COUNTER) or (t.dim() == 1 and bool(((t == 0) | (t == 1)).to_dense().all()))


def _memory_beside(tensors: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Memory of which a network's tensors are a small part, by the name of one that is in it."""
    detached = [(name, t.detach()) for name, t in tensors if t.layout is torch.strided and t.device.type != "meta"]
    strided = [(name, t) for name, t in detached if type(t) is Tensor]
    used: dict[int, int] = {}
    for _, t in strided:
        used[t.untyped_storage().data_ptr()] = used.get(t.untyped_storage().data_ptr(), 0) + t.nbytes
    for name, t in strided:
        memory = t.untyped_storage()
        if memory.nbytes() > used[memory.data_ptr()] + t.element_size() * MOST_NUMBERS:
            yield name, torch.empty(0, dtype=t.dtype, device=t.device).set_(memory)


def _computed(module: nn.Module, key: str) -> bool:
    """Whether torch computes an attribute from parameters before every pass, or made it of the module's code."""
    if isinstance(module, torch.fx.GraphModule) and key in _OF_A_TRACE:
        return True
    hooks = module._forward_pre_hooks.values()
    named = [h for h in hooks if _of_library(type(h)) and type(h).__module__.startswith("torch.nn.utils.")]
    return any(key in (getattr(h, "name", None), getattr(h, "_tensor_name", None)) for h in named)


class _Search:
    """What can be reached from a network, and how much of it is numbers.

    Attributes:
        found: names of what holds too many, or what cannot be counted.
    """

    def __init__(self, network: nn.Module) -> None:
        own = [*network.modules(), *network.parameters(), *network.buffers()]
        self.seen: dict[int, Any] = {id(thing): thing for thing in own}
        self.found: set[str] = set()
        self.amounts: dict[int, float] = {}
        self.all = Contents({}, self.amounts)
        self.ahead: deque[Any] = deque()
        self.modules: dict[str, types.ModuleType] = {}
        self.names: set[str] = set()
        self.unread: set[str] = set()
        self.functions = 0

    def result(self) -> list[str]:
        """Follow every function, class and module, and name what was found."""
        looked = -1
        while self.ahead or looked < len(self.seen):
            looked = len(self.seen)
            while self.ahead and self.functions < _MOST_FUNCTIONS:
                self._follow(self.ahead.popleft())
            if self.ahead:
                return sorted({*self.found, f"what lies beyond {_MOST_FUNCTIONS} functions that it can reach"})
            for module in list(self.modules.values()):
                self._module(module, self.names)
        if not self.found and self.all.more_than(_MOST_TOGETHER + min(self.functions, _MOST_ALLOWING)):
            self.found.add("what lies in small pieces")
        return sorted(self.found)

    def look(self, name: str, value: Any, documentation: bool = False) -> None:
        """Look through one value, and take note of what it leads to."""
        contents = Contents(self.seen, self.amounts)
        if documentation and isinstance(value, str):
            contents.documentation.add(value)
        else:
            contents.add(value)
        self.ahead += contents.links
        if contents.uncounted and not _of_a_package(value):
            self.found.add(f"{name} ({contents.uncounted[0]}, which cannot be counted)")
        elif contents.more_than(MOST_NUMBERS) and not _of_a_package(value):
            self.found.add(name)
        else:
            self.all.join(contents)

    def _follow(self, link: Any) -> None:
        if isinstance(link, type):
            self._class(link)
        elif isinstance(link, types.FunctionType):
            self._function(link)
        elif isinstance(link, types.CodeType):
            self._code(link, {}, link.co_name)
        elif isinstance(link, str):
            self._unread(link)
        elif not _installed(link):
            self.modules[link.__name__] = link

    def _class(self, kind: type) -> None:
        """What a class of the caller's, and its functions, hold."""
        if _of_library(kind):
            return
        self.ahead += [base for base in (*kind.__bases__, type(kind)) if id(base) not in self.seen]
        self.seen |= {id(base): base for base in (*kind.__bases__, type(kind))}
        for key, value in list(vars(kind).items()):
            self.look(f"{kind.__name__}.{key}", value, documentation=key == "__doc__")

    def _function(self, function: types.FunctionType) -> None:
        """What a function can reach; of an installed one, what it was given."""
        where = function.__qualname__
        self.functions += 1
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            self.look(f"{name} in {where}", cell)
        given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        self.look(f"its defaults in {where}", given)
        self.look(f"attributes of {where}", [*vars(function).values()])
        if not _of_an_installed(function):
            self.look(f"annotations of {where}", function.__annotations__)
            self._code(function.__code__, function.__globals__, where)

    def _code(self, code: types.CodeType, held: dict[str, Any], where: str) -> None:
        spoken: set[str] = set()
        for part in _codes(code):
            texts = self._constants(part, where)
            dotted = re.findall(r"\w[\w.]*", " ".join(texts))
            spoken |= {*dotted, *(word for name in dotted for word in name.split("."))}
        names, reached = {name for part in _codes(code) for name in part.co_names}, _global_names(code)
        if reached & _OF_GLOBALS or "__globals__" in names or ("sys" in reached and "modules" in names):
            names |= spoken
            reached |= names
        named = spoken if names & _BY_TEXT else set()
        self.names |= names | named
        for name in sorted(reached):
            value = held.get(name, vars(builtins).get(name))
            if isinstance(value, types.ModuleType):
                self._module(value, names | named)
            else:
                self.look(f"{name} in {where}", value)
        for name in [*_imported(code, held), *sorted(named if names & _IMPORTING else named & sys.modules.keys())]:
            if name in sys.modules:
                self._module(sys.modules[name], names | named)
            else:
                self.ahead.append(name)

    def _constants(self, code: types.CodeType, where: str) -> list[str]:
        """Look through constants of code; the first is its documentation where it is a text. Returns the others."""
        documented = not _DOCUMENTED or bool(code.co_flags & _DOCUMENTED)
        first = code.co_consts[:1] if documented and [*map(type, code.co_consts[:1])] == [str] else ()
        for text in first:
            self.look(f"documentation of {where}", text, documentation=True)
        constants = [c for c in code.co_consts[len(first) :] if not isinstance(c, types.CodeType)]
        self.look(f"its constants in {where}", constants)
        return [c for c in constants if isinstance(c, str)]

    def _module(self, module: types.ModuleType, names: Iterable[str], within: tuple[Any, ...] = ()) -> None:
        """What code can take from a module of the caller's by these names, and from the modules within."""
        if _installed(module) or module in within:
            return
        for name in sorted({*names, "__getattr__"} & vars(module).keys()):
            value = vars(module)[name]
            if isinstance(value, types.ModuleType):
                self._module(value, names, (*within, module))
            else:
                self.look(f"{module.__name__}.{name}", value, documentation=name == "__doc__")

    def _unread(self, name: str) -> None:
        """Look through the source of a module that was not imported yet."""
        spec = _spec(name)
        if spec is None or spec.origin is None or _is_installed(spec.origin) or spec.origin in self.unread:
            return
        self.unread.add(spec.origin)
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            try:
                code = spec.loader.source_to_code(spec.loader.get_data(spec.origin), spec.origin)
            except (OSError, SyntaxError, ValueError):
                return
            self._code(code, {"__package__": spec.parent, "__name__": name}, name)


def _of_library(kind: type) -> bool:
    """Whether a class belongs to Python or to an installed package, under the name that it says."""
    home = sys.modules.get(kind.__module__)
    found: Any = home
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind and _installed(home)


def _of_an_installed(function: types.FunctionType) -> bool:
    """Whether a function was defined in an installed module; a file's name can be made up."""
    home = sys.modules.get(function.__globals__.get("__name__", ""))
    return home is not None and vars(home) is function.__globals__ and _installed(home)


def _of_a_package(value: Any) -> bool:
    """Whether an object is one that an installed package defines, as scipy its distributions."""
    package = type(value).__module__.partition(".")[0]
    if package == "builtins" or not _of_library(type(value)):
        return False
    homes = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == package and _installed(m)]
    return any(thing is value for home in homes for thing in vars(home).values())


def _installed(module: Any) -> bool:
    spec = getattr(module, "__spec__", None)
    if getattr(module, "__name__", None) in sys.builtin_module_names:
        return True
    path = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    return path is not None and _is_installed(str(path))


def _is_installed(path: str) -> bool:
    return path in ("built-in", "frozen") or path.startswith((*_INSTALLED, _OWN))


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code reads from its globals; `self.table` is not the caller's variable `table`."""
    return {
        str(instruction.argval)
        for part in _codes(code)
        for instruction in dis.get_instructions(part)
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME"
    }


def _imported(code: types.CodeType, held: dict[str, Any]) -> Iterator[str]:
    """Names of the modules that code imports when it runs, and of the packages that they are in."""
    for part in _codes(code):
        before: list[Any] = [0, ()]  # what the instruction pops: a level and names
        for instruction in dis.get_instructions(part):
            if instruction.opname == "EXTENDED_ARG":
                continue
            if instruction.opname == "IMPORT_NAME":
                level, within = before[-2], before[-1] or ()
                name = _absolute(str(instruction.argval), level, held)
                parts = name.split(".")
                yield from (".".join(parts[: k + 1]) for k in range(len(parts)))
                yield from (f"{name}.{one}" for one in within)
            before = [before[-1], instruction.argval]


def _absolute(name: str, level: int, held: dict[str, Any]) -> str:
    """The name of a module that code imports from so many packages above its own."""
    package = str(held.get("__package__") or str(held.get("__name__", "")).rpartition(".")[0])
    above = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*above, name] if level else [name]).strip(".")


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module would come from, found without importing the packages that it is in."""
    spec, path = None, None
    parts = name.split(".")
    for k in range(len(parts)):
        try:
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: k + 1]), path)
        except (ImportError, ValueError, AttributeError, KeyError):  # what holds it was not imported either
            return None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
