"""`Tracker`: curvature of the loss while a network trains, for one call a step.

Weights, BatchNorm, gradients, modes and random states are those of a run without it, bit for bit. Whatever fails is
said once, and training goes on.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatminima.core.ambient import neutral
from flatminima.core.fsdp import ShardedMinimum
from flatminima.core.network import Network
from flatminima.errors import Absent, Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.io import versions, write_whole
from flatminima.measuring import measure
from flatminima.track.check import Check
from flatminima.track.events import events
from flatminima.track.log import SCHEMA, Header, Log, LogRow
from flatminima.track.quantities import QUANTITIES, intervals
from flatminima.track.sinks import as_sinks
from flatminima.track.table import TrackTable
from flatminima.track.tracked_network import Watched
from flatminima.track.tracker_state import Memory, Options
from flatminima.untrusted import refuse_other_files

_SAVE_SECONDS = 30.0  # between two writes of what is carried, beside the log
STATE = ".state"  # added to the log's name
_AS_MEASURES = {"noise_scale": "gradient_noise_scale", "expected_sharpness": "expected_sharpness"}


class TrackerWarning(UserWarning):
    """Something that a tracker cannot follow; training goes on."""


class Tracker:
    """Follow curvature and other quantities of a network in training, on a fixed probe of samples.

    Between checks `step` costs next to nothing. At a check the network is looked at as it is, in eval mode or, with
    `Options(mode="train")`, as it trains: nothing of it changes. The eigenvector is carried from check to check, and
    products with the Hessian go on until the residual says that the eigenvalue is within the tolerance; what has not
    converged is no number.

    Args:
        model: in training; compiled and DDP-wrapped ones are unwrapped, FSDP2's are looked at in their shards.
        probe: samples that every check looks at: what `Minimum` takes as data. The cost of a check is in proportion.
        loss: as for `Minimum`; should be the training loss, where thresholds are to mean something.
        optimizer: the run's, or a wrapper of it; None: no preconditioner and no threshold.
        every: steps between two checks.
        quantities: names of `QUANTITIES` or of the catalogue's measures, or name -> steps between two looks; None:
            `usual(every)`, to which others are added with `|`.
        log: a JSON-lines file, a row a check; one that is there is gone on with. Beside it lies what is carried.
        sinks: one or several targets of `track.as_sink`.
        strict: raise instead of saying it once.
        options: mode, tolerance, cap on products, batches, seed, processes.

    Raises:
        UsageError, ModelError, DataError: options or a probe that cannot be, before training begins.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> tracker = Tracker(model, (x, y), optimizer=optimizer, every=2)
        >>> for step in range(4):
        ...     optimizer.zero_grad()
        ...     loss = nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     _ = tracker.step(step, loss)
        >>> [row["step"] for row in tracker.table()], tracker.table()[-1]["threshold"]
        ([0, 2], 4.0)
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        loss: str | Callable[[Any, Tensor], Tensor] = "cross_entropy",
        optimizer: Any = None,
        every: int = 50,
        quantities: Iterable[str] | Mapping[str, int] | None = None,
        log: str | os.PathLike[str] | None = None,
        sinks: Any = None,
        strict: bool = False,
        options: Options | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"got every={every!r}; a whole number of steps from 1")
        self.intervals = intervals(quantities, every)
        self.optimizer, self.strict, self.options = optimizer, strict, options or Options()
        self.memory = Memory()
        self.memory.follower("eigenvalue", self.options)  # refuses the options now
        self.sinks = as_sinks(sinks)
        self.rows: list[LogRow] = []
        self.seconds = 0.0  # spent in checks
        self.watched = Watched(model, probe, loss, self.options, self.intervals, self._fit)
        self._said: set[str] = set()
        self._last: dict[str, int] = {}
        self._losses: list[Any] = []
        self._log: Log | None = None
        self._saved = -math.inf
        self._began = time.perf_counter()
        self.passive = self.watched.passive
        self.header: Header = {}
        if not self.passive:
            self._begin(log)

    def step(self, step: int, loss: Any = None) -> LogRow | None:
        """Call after every step of the optimizer.

        Args:
            step: its number, from 0. loss: of the step, a number or a tensor of one; it is not waited for.

        Returns:
            The row, where this was a check; None otherwise.
        """
        if self.passive:
            return None
        try:
            return self._step(step, loss)
        except Exception as error:  # whatever it is, training goes on
            if self.strict:
                raise
            self._say(Absent.of(error).reason)
            return None

    def table(self) -> TrackTable:
        """The rows so far, those of the log that this run went on with among them."""
        return TrackTable(self.header, tuple(self.rows))

    @property
    def overhead(self) -> float:
        """Seconds in checks over all other seconds since the tracker was made."""
        return self.seconds / max(time.perf_counter() - self._began - self.seconds, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """State to carry, for a checkpoint: directions, where tracking began, when each quantity was looked at."""
        return {"memory": self.memory.state_dict(), "last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        if self.passive or not state:
            return
        memory = Memory()
        memory.load_state_dict(state["memory"], self.options)
        self.memory, self._last = memory, {name: int(step) for name, step in state["last"].items()}
        if self.watched.network is not None:
            self._fit(self.watched.network)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict` to a file, whole or not at all; where the system refuses, that is said."""
        self._guarded(str(path), lambda: write_whole(path, lambda file: torch.save(self.state_dict(), file)))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote, where it is there; where it is damaged, that is said."""
        file = Path(path)
        if self.passive or not file.exists():
            return
        try:
            refuse_other_files(file)
            self.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged file may raise anything
            if self.strict:
                raise
            self._say(f"cannot go on from {file}: {Absent.of(error).reason}; the next check begins afresh")

    def close(self) -> None:
        """Write what is carried beside the log; also done every half a minute."""
        if self._log is not None:
            self._keep()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- a check -----------------------------------------------------------------------------------------------------

    def _step(self, step: int, loss: Any) -> LogRow | None:
        if loss is not None:
            self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        due = [name for name in self.intervals if self._is_due(name, step)]
        row = None
        if due:
            with neutral():
                row = self._check(step, due)
        if "update_sharpness" in self.intervals and self._is_due("update_sharpness", step + 1):
            network = self.watched.network
            self.memory.before = None if network is None else network.parameters.flat()
        return row

    def _is_due(self, name: str, step: int) -> bool:
        interval, last = self.intervals[name], self._last.get(name)
        return last is None or step < last or step // interval > last // interval

    def _check(self, step: int, due: list[str]) -> LogRow:
        began = time.perf_counter()
        row: LogRow = {"step": step, "values": {}, "stderr": {}, "undefined": {}, "details": {}, "events": []}
        row |= self._loss() | {"lr": self._rate(), "threshold": None, "thresholds": None, "edge": None}
        self._last |= dict.fromkeys(due, step)
        row["products"] = 0
        try:
            self._look(row, step, due)
        except Exception as error:
            if self.strict:
                raise
            reason = Absent.of(error).reason
            row["undefined"] |= {name: reason for name in due if name not in row["values"]}
            self._say(reason)
        row["events"] = events(row, self.rows)
        row["seconds"] = round(time.perf_counter() - began, 6)
        while self.rows and self.rows[-1]["step"] >= step:  # a run that went back
            self.rows.pop()
        self.rows.append(row)
        self._tell(row)
        self.seconds += time.perf_counter() - began
        return row

    def _look(self, row: LogRow, step: int, due: list[str]) -> None:
        with self.watched.look() as network:
            check = Check(network, self.optimizer, self.memory, self.options, step)
            for name in _ordered(due):
                if name == "optimizer":
                    self._note(row, name, check.of_optimizer)
                elif name in QUANTITIES and name not in _AS_MEASURES:
                    self._note(row, name, lambda name=name: check.quantity(name))  # type: ignore[misc]
            row["products"] = check.products
            self._note_threshold(row, check)
        names = [name for name in due if name not in QUANTITIES or name in _AS_MEASURES]
        if names:
            asked = [_AS_MEASURES.get(name, name) for name in names]
            table: Mapping[str, Estimate] = measure(self.watched.renewed(), asked)  # type: ignore[arg-type]
            for name in names:
                found = table[_AS_MEASURES.get(name, name)]
                self._note(row, name, lambda found=found: found)  # type: ignore[misc]

    def _note(self, row: LogRow, name: str, work: Callable[[], Estimate | dict[str, float]]) -> None:
        """A quantity's value, or why there is none."""
        try:
            found = work()
        except Undefined as error:
            row["undefined"][name] = error.reason
            row["values"][name] = None
            return
        except Exception as error:
            if self.strict:
                raise
            row["undefined"][name] = Absent.of(error).reason
            row["values"][name] = None
            self._say(f"{name}: {row['undefined'][name]}")
            return
        if isinstance(found, dict):
            row["values"] |= {key: value if math.isfinite(value) else None for key, value in found.items()}
            return
        row["values"][name] = found.value
        if found.stderr is not None:
            row["stderr"][name] = found.stderr
        if found.undefined is not None:
            row["undefined"][name] = found.undefined
        details = found.to_dict()["details"]
        row["details"][name] = {key: value for key, value in details.items() if not isinstance(value, dict | list)}

    def _note_threshold(self, row: LogRow, check: Check) -> None:
        try:
            stable = check.stability()
        except Undefined as error:
            if error.code not in ("no_optimizer", "no_state"):
                self._say(error.reason)
            return
        row["threshold"], row["thresholds"] = stable.threshold, list(stable.thresholds)
        value = row["values"].get("preconditioned")
        if value is None and stable.plain:
            value = row["values"].get("eigenvalue")
        row["edge"] = None if value is None else value / stable.threshold

    def _loss(self) -> dict[str, Any]:
        """Mean, greatest and last loss since the last check; one wait for an accelerator."""
        losses, self._losses = self._losses, []
        if not losses:
            return {"loss": None, "loss_last": None, "loss_max": None}
        values = _numbers(losses)
        finite = [v for v in values if math.isfinite(v)]
        found: dict[str, Any] = {
            "loss": sum(finite) / len(finite) if finite else None,
            "loss_last": values[-1] if math.isfinite(values[-1]) else None,
            "loss_max": max(finite) if finite else None,
        }
        if len(finite) < len(values):
            self._say("the training loss is not finite")
            found["loss_not_finite"] = True
        return found

    def _rate(self) -> float | None:
        groups = getattr(self.optimizer, "param_groups", None) or []
        rates = [float(group["lr"]) for group in groups if group.get("lr") is not None]  # Adafactor may choose
        return max(rates) if rates else None

    def _tell(self, row: LogRow) -> None:
        if self._log is not None:
            log = self._log
            self._guarded("the log", lambda: log.write(row))
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._keep()
        values = {name: value for name, value in row["values"].items() if value is not None}
        values |= {name: row[name] for name in ("loss", "lr", "threshold", "edge") if row[name] is not None}
        for sink in self.sinks:
            self._guarded("a sink", lambda sink=sink: sink(row["step"], values))  # type: ignore[misc]

    def _guarded(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if self.strict:
                raise
            self._say(f"{what} failed: {Absent.of(error).reason}")

    # -- the network -------------------------------------------------------------------------------------------------

    def _begin(self, log: str | os.PathLike[str] | None) -> None:
        network = self.watched.admit()
        self.memory.initial = network.parameters.flat()
        samples = network.samples if self.options.mode == "eval" else network.samples.take(torch.arange(1))[1][0]
        self.header = {
            "kind": "header",
            "schema": SCHEMA,
            "model": type(self.watched.model).__name__,
            "parameters": len(network.parameters),
            "samples": len(samples),
            "loss_function": self.watched.loss_name,
            "mode": self.options.mode,
            "intervals": self.intervals,
            "optimizer": None if self.optimizer is None else type(self.optimizer).__name__,
            "tolerance": self.options.tolerance,
            "versions": versions(),
        }
        together = self.watched.together
        if log is not None and not (together and dist.get_rank() != 0):
            self._log = Log(log, self.header)
            self.rows = list(self._log.rows)
            if self.rows and not together:
                self.restore(self._state_file())

    def _state_file(self) -> Path:
        assert self._log is not None
        return self._log.path.with_name(self._log.path.name + STATE)

    def _keep(self) -> None:
        self._saved = time.monotonic()
        if self.watched.together:
            return  # the others would not read it, and all must look alike
        self.save(self._state_file())

    def _fit(self, network: Network) -> None:
        sizes = [(name, p.numel()) for name, p in network.parameters]
        if isinstance(network, ShardedMinimum):
            sizes = [(name, p.to_local().numel()) for name, p in network.parameters]  # type: ignore[attr-defined]
        self.memory.fit(sizes, network.device)

    def _say(self, what: str) -> None:
        """Once each."""
        if what not in self._said:
            self._said.add(what)
            try:
                warnings.warn(f"tracker: {what}; training goes on", TrackerWarning, stacklevel=4)
            except TrackerWarning as raised:  # warnings are errors here; training does not die of this one
                print(f"warning: {raised}", file=sys.stderr)


def _ordered(due: list[str]) -> list[str]:
    """Shared graphs first; what moves the weights last."""
    moves = ("critical_sharpness", "update_sharpness")
    return [n for n in QUANTITIES if n in due and n not in moves] + [n for n in moves if n in due]


def _numbers(losses: list[Any]) -> list[float]:
    """Numbers, and tensors of one or of a loss a sample, of one device or of several."""
    plain = all(isinstance(v, Tensor) and v.dim() == 0 for v in losses)
    if plain and len({(v.device, v.dtype) for v in losses}) == 1:
        return [float(v) for v in torch.stack(losses).float().tolist()]
    return [float(torch.as_tensor(v).float().mean()) for v in losses]
