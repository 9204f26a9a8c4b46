"""Engines that compute a study's runs: this process, a pool, or Ray. Each run is a function of its configuration.

Another process imports the function by its module's name, with this process's search path, so that a study in a user's
own file works everywhere. A worker that dies takes only its run with it, and that is tried again. A run belongs to one
process at a time: several that share a folder share the work, and leave alone what another is at.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flatminima import interrupts
from flatminima.catalog.choices import ENGINES
from flatminima.errors import FolderInUse, MissingExtra, UnknownName, UsageError, WriteFailed
from flatminima.io import claimed, json_text, write_whole
from flatminima.studies import resumable
from flatminima.studies.images import on
from flatminima.studies.networks import FOLDER
from flatminima.studies.run_store import Run, read_run, result_beside, succeeded, under_way
from flatminima.studies.study import Config, Result, Sources, Study

_TRIES = 3  # of a run whose worker dies
_PASSING = (MemoryError, OSError, WriteFailed, torch.OutOfMemoryError)  # failures that another try may not meet
_PATIENCE = 10.0  # seconds that a worker has to keep its state
_LOOK = 2.0  # seconds from one look at other processes' work to the next

Told = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """A run to do: its configuration, where its data lie, the file for its result, and the device; None: the CPU."""

    config: Config
    sources: Sources
    file: Path
    device: str | None = None


@dataclass(frozen=True)
class Target:
    """A run function that any process can find: module and name, and where to look for the module."""

    module: str
    name: str
    path: tuple[str, ...]

    @classmethod
    def of(cls, study: Study) -> Target:
        """Make the work of a study's run.

        Raises:
            UsageError: the function has no name in a module, so that only this process can call it.
        """
        run = study.run
        found: Any = sys.modules.get(run.__module__)
        for part in run.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not run:
            raise UsageError(
                f"{study.id}: other processes cannot import {run.__qualname__}; write `run` as a function of its module"
            )
        return cls(run.__module__, run.__qualname__, tuple(sys.path))

    def __call__(self, work: Work) -> Run | None:
        """`attempt`, in a process that may never have seen the module."""
        with interrupts.ending_in_silence():
            sys.path.extend(place for place in self.path if place not in sys.path)
            found: Any = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
            return attempt(found, work)


def execute(
    study: Study,
    todo: list[Work],
    *,
    jobs: int = 1,
    engine: str = "local",
    address: str | None = None,
    told: Told = lambda: None,
) -> Iterator[tuple[Work, Run | None]]:
    """Yield each work with its outcome, as it comes; None where another process is at it, or has done it by now.

    Args:
        study: whose run to call. todo: with what.
        jobs: processes; 1 with "local": this one. engine: "local" or "ray".
        address: of a running Ray cluster, or "auto"; None starts one on this machine, for this call alone.
        told: called now and then, when a run may have come further.

    Raises:
        UnknownName: no such engine. MissingExtra: Ray is not installed. UsageError: see `Target.of`.
    """
    check_engine(study, engine, jobs)
    if engine == "ray":
        yield from _with_ray(Target.of(study), todo, jobs, address, told)
    elif jobs == 1 or len(todo) < 2:
        for work in todo:
            yield work, attempt(study.run, work, told)
    else:
        yield from _with_pool(Target.of(study), todo, jobs, told)


def check_engine(study: Study, engine: str, jobs: int) -> None:
    """Refuse, before anything is written, what `execute` cannot do.

    Raises:
        UnknownName: no such engine. UsageError: see `Target.of`.
    """
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    if engine == "ray" or jobs > 1:
        Target.of(study)


def attempt(run: Any, work: Work, told: Told = lambda: None) -> Run | None:
    """One run as it is written down: its configuration, its result or its error, and how long it took.

    Training that a kill cut short goes on. What a run that failed had kept is thrown away, as it would fail again from
    there; not where memory or a disk failed, which may have more room next time.
    """
    if not work.file.parent.is_dir():  # a worker on another machine, that does not see the folder
        return _attempt(run, work)[0]
    folder = under_way(work.file)
    try:
        with claimed(folder, wait=0.0):  # there are others to do
            if succeeded(read_run(work.file)):
                shutil.rmtree(folder, ignore_errors=True)
                return None
            study = work.file.parent.parent
            own = {"study": study.name, "config": work.config}
            place, others = study.parent / FOLDER, partial(result_beside, work.file)
            with resumable.keeping(folder, told, networks=place, own=own, others=others) as kept:
                outcome, of_use = _attempt(run, work)
            for clock in ("seconds", "core_seconds"):
                outcome[clock] += kept.before
            if kept.names:
                outcome["networks"] = kept.names
            if not of_use:
                shutil.rmtree(folder, ignore_errors=True)
            if succeeded(outcome):  # while nobody else may begin it
                with suppress(WriteFailed, UsageError):  # whoever puts it down says why it cannot be written
                    write_whole(work.file, json_text(outcome) + "\n")
            return outcome
    except FolderInUse:
        return None


def _attempt(run: Any, work: Work) -> tuple[Run, bool]:
    """What to write down, and whether what the run has kept is of use."""
    started, worked, of_use = time.perf_counter(), time.process_time(), True
    outcome: Run
    try:
        with on(work.device):
            result: Result = run(work.config, work.sources)
        _check(result)
        outcome = {"result": result}
    except (Exception, SystemExit) as error:  # recorded, and shown; the other runs go on
        outcome = {"error": f"{type(error).__name__}: {error}"}
        of_use = isinstance(error, _PASSING)
    where = {} if work.device is None else {"device": work.device}
    took = {"seconds": time.perf_counter() - started, "core_seconds": time.process_time() - worked}
    return {"config": work.config, **outcome, **took, **where}, of_use


def _check(result: Any) -> None:
    """Refuse a result that cannot be written down, by the name of what cannot.

    Raises:
        TypeError, ValueError: no dictionary, or a value that JSON has not.
    """
    if not isinstance(result, dict):
        raise TypeError(f"run gives {type(result).__name__} and no dictionary of numbers")
    for key, value in result.items():
        try:
            json_text({key: value}, None)
        except (TypeError, ValueError):
            kind = repr(value) if isinstance(value, float) else f"{type(value).__name__}, or what is in it"
            raise ValueError(
                f"run gives {kind} as {key!r}, which JSON has not; give a finite number, text or None"
            ) from None


def _with_pool(target: Target, todo: list[Work], jobs: int, told: Told) -> Iterator[tuple[Work, Run | None]]:
    """A pool whose worker dies is replaced; the runs that may have been under way are then tried again, each alone.

    Processes are spawned, since a fork of a process with threads may hang. A pool takes work in the order given: who
    killed the worker is among the first that have no result; a result each may be on its way besides.
    """
    left, suspects = list(todo), list[Work]()
    while left:
        unfinished: list[Work] = []
        for work, outcome, died in _pooled(target, left, jobs, told):
            if died:
                unfinished.append(work)
            else:
                yield work, outcome
        unfinished.sort(key=left.index)
        suspects += unfinished[: 2 * jobs]
        left = unfinished[2 * jobs :]
    for work in suspects:
        for _ in range(_TRIES - 1):
            ((_, outcome, died),) = _pooled(target, [work], 1, told)
            if not died:
                yield work, outcome
                break
        else:
            yield from _lost([work])


def _pooled(target: Target, todo: list[Work], jobs: int, told: Told) -> Iterator[tuple[Work, Run | None, bool]]:
    """Each work with its outcome, and whether the pool broke before it had one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin_worker) as pool, _stopped_with(pool):
        waiting: dict[Future[Run | None], Work] = {}
        for work in todo:
            try:
                waiting[pool.submit(target, work)] = work
            except BrokenProcessPool:
                yield work, None, True
        while waiting:
            done, _ = wait(waiting, _LOOK, FIRST_COMPLETED)
            told()
            for future in done:
                work = waiting.pop(future)
                try:
                    yield work, future.result(), False
                except BrokenProcessPool:
                    yield work, None, True


@contextmanager
def _stopped_with(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Where this process is stopped, the workers keep their state and end; what does not end in time is killed."""
    try:
        yield
    except BaseException:
        workers = multiprocessing.active_children()
        for worker in workers:
            worker.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
            if worker.is_alive():
                worker.kill()
        raise


def _with_ray(
    target: Target, todo: list[Work], jobs: int, address: str | None, told: Told
) -> Iterator[tuple[Work, Run | None]]:
    """Ray tries a run again whose worker died; a cluster started here listens on this machine only and ends with us."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "the engine 'ray'") from None
    own = address is None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "num_cpus": jobs} if own else {"address": address}
    ray.init(include_dashboard=False if own else None, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        devices = {work.device for work in todo if work.device is not None}
        accelerators = 1 if any(device.startswith("cuda") for device in devices) else 0
        remote = ray.remote(num_cpus=1, num_gpus=accelerators, max_retries=_TRIES - 1)(_called)
        waiting = {remote.remote(target, work): work for work in todo}
        while waiting:
            found, _ = ray.wait(list(waiting), num_returns=1, timeout=_LOOK)
            told()
            for done in found:
                work = waiting.pop(done)
                try:
                    yield work, ray.get(done)
                except ray.exceptions.RayError:
                    yield from _lost([work])
    finally:
        ray.shutdown()


def _called(target: Target, work: Work) -> Run | None:
    _one_thread()
    return target(work)


def _begin_worker() -> None:
    interrupts.handle_as_worker()
    _one_thread()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _lost(left: Iterable[Work]) -> Iterator[tuple[Work, Run]]:
    for work in left:
        yield work, {"config": work.config, "error": f"its process died {_TRIES} times (memory?)", "seconds": 0.0}
