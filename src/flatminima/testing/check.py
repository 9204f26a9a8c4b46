"""`check_untouched`: the same bits in every ambient mode and in two threads, or one clean refusal; nothing else moved.

In the spirit of scikit-learn's `check_estimator`: one call for a measure, an optimizer or a model of one's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from flatminima.core.parameters import copied
from flatminima.errors import FlatMinimaError, UsageError
from flatminima.testing.modes import MODES, Mode
from flatminima.testing.state import ITEMS, OF_PROCESS, bits, changed, snapshot

_PATIENCE = 300.0  # seconds for two threads that may wait for each other
_PLAIN = "no mode"
_SHARED = ("threads", "hooks of all modules")  # a mode of another thread's moves them


class NotUntouched(AssertionError):
    """Something else was changed, another number came out, or an error that is no refusal."""


@dataclass(frozen=True)
class Report:
    """Outcome of each mode and number of threads.

    Attributes:
        outcomes: (mode, threads) -> "same", or the refusal.
    """

    outcomes: dict[tuple[str, int], str]

    @property
    def refused(self) -> list[tuple[str, int]]:
        """Modes in which it was refused."""
        return [where for where, outcome in self.outcomes.items() if outcome != "same"]


@dataclass
class _Try:
    """One call: what it gave or raised, and what of its thread's modes it left changed."""

    value: Any = None
    error: BaseException | None = None
    moved: Sequence[str] = ()


def check_untouched(
    act: Callable[[nn.Module], Any],
    model: nn.Module,
    *,
    moves: Iterable[str] = (),
    modes: Iterable[str] | None = None,
    threads: Iterable[int] = (1, 2),
    refusals: tuple[type[BaseException], ...] = (FlatMinimaError,),
    own_forward: bool = False,
) -> Report:
    """Call `act` on copies of a model in every ambient mode, in one and in two threads, and compare everything.

    Args:
        act: takes a model and returns numbers, tensors, or dataclasses, lists and dictionaries of them; for a measure
            ``lambda model: my_measure(Minimum(model, (x, y)))``, for an optimizer a step that returns the loss.
        model: it is never changed; each call has a copy.
        moves: names of `ITEMS` that it is meant to change, such as "parameters" and "gradients" of an optimizer.
        modes: names of `MODES`; None: all sixteen.
        threads: how many calls there are at once, each on its own copy.
        refusals: classes of errors that refuse; the message has one line.
        own_forward: `act` runs the model itself, as a training step does, which a mode may change: in a mode numbers
            are compared with those of the same mode alone, and an error of the model's is none of `act`'s.

    Returns:
        A Report.

    Raises:
        NotUntouched: with the mode, the number of threads and what differs.
        UsageError: an unknown item or mode.

    Examples:
        >>> import torch
        >>> check_untouched(lambda m: m.weight.sum().item(), nn.Linear(2, 1), modes=["no_grad"]).refused
        []
    """
    moves, modes = tuple(moves), None if modes is None else tuple(modes)
    for kind, names, known in (("item", moves, ITEMS), ("mode", modes or (), MODES)):
        for name in names:
            if name not in known:
                raise UsageError(f"unknown {kind} of state {name!r}; known: {', '.join(known)}")
    for name in MODES if modes is None else modes:
        with MODES[name].enter():  # what torch imports and sets for one the first time is not `act`'s doing
            pass
    plain = _tried(act, [copied(model)], None)[0]
    if plain.moved:
        raise NotUntouched(f"in {_PLAIN}: {', '.join(plain.moved)} changed")
    if plain.error is not None:
        raise plain.error
    truth, outcomes = bits(plain.value), dict[tuple[str, int], str]()
    for mode in (_PLAIN, *(MODES if modes is None else modes)):
        expected = truth
        if own_forward and mode != _PLAIN:
            alone = _tried(act, [copied(model)], MODES[mode])[0]
            expected = None if alone.error is not None else bits(alone.value)
        for count in threads:
            outcomes[mode, count] = _outcome(act, model, mode, count, expected, moves, refusals, own_forward)
    return Report(outcomes)


def _outcome(
    act: Callable[[nn.Module], Any],
    model: nn.Module,
    mode: str,
    count: int,
    expected: Any,
    moves: tuple[str, ...],
    refusals: tuple[type[BaseException], ...],
    own_forward: bool,
) -> str:
    """ "same" or the refusal of `count` calls at once in a mode; raises `NotUntouched` for anything else."""
    where = f"in {mode}, {count} at once" if count > 1 else f"in {mode}"
    models = [copied(model) for _ in range(count)]
    before = [snapshot(m) for m in models]
    tries = _tried(act, models, MODES.get(mode))
    for m, was in zip(models, before, strict=True):
        differs = changed(was, snapshot(m), moves)
        if differs:
            raise NotUntouched(f"{where}: {', '.join(differs)} changed")
    said = "same"
    for each in tries:
        if each.moved:
            raise NotUntouched(f"{where}: {', '.join(each.moved)} changed within the mode")
        if each.error is None:
            if expected is not None and bits(each.value) != expected:
                raise NotUntouched(f"{where}: got other numbers than alone and without a mode: {each.value!r}"[:400])
        elif isinstance(each.error, refusals) and "\n" not in str(each.error):
            said = str(each.error)
        elif not own_forward or mode == _PLAIN:
            kind = type(each.error).__name__
            raise NotUntouched(f"{where}: raised {kind}, which is no refusal: {each.error}"[:400]) from each.error
        else:
            said = f"{type(each.error).__name__} of the model"
    return said


def _tried(act: Callable[[nn.Module], Any], models: Sequence[nn.Module], mode: Mode | None) -> list[_Try]:
    """One call for each model, at once if there are several; each thread in the mode."""
    found = [_Try() for _ in models]
    barrier = threading.Barrier(len(models))
    inner = [name for name in OF_PROCESS if name not in _SHARED]

    def call(i: int) -> None:
        try:
            with mode.enter() if mode is not None and not mode.of_process else nullcontext():
                before = snapshot(models[i], inner)
                barrier.wait(_PATIENCE)
                try:
                    found[i].value = act(models[i])
                except BaseException as error:
                    found[i].error = error
                barrier.wait(_PATIENCE)  # the other's switches of the process are back as well
                found[i].moved = changed(before, snapshot(models[i], inner))
        except BaseException as error:
            found[i].error = found[i].error or error

    with ExitStack() as stack:
        if mode is not None and mode.of_process:
            stack.enter_context(mode.enter())
        if len(models) == 1:
            call(0)
            return found
        threads = [threading.Thread(target=call, args=(i,), name=f"check {i}") for i in range(len(models))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE)
        if any(thread.is_alive() for thread in threads):
            raise NotUntouched("two calls at once wait for each other")
    return found
