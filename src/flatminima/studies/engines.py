"""Who computes a study's runs: this process, a pool of fresh ones, or Ray. Each run is a function of its configuration.

Another process imports the function by its module's name, with this process's search path, so that a study in a user's
own file works everywhere. A worker that dies takes only its run with it, and that is tried again.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from flatminima.errors import MissingExtra, UnknownName, UsageError
from flatminima.studies.study import Config, Result, Sources, Study

ENGINES = ("local", "ray")
_TRIES = 3  # of a run whose worker dies

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A run function that any process can find: module and name, and where to look for the module."""

    module: str
    name: str
    path: tuple[str, ...]

    @classmethod
    def of(cls, study: Study) -> Target:
        """Of a study's run.

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

    def __call__(self, config: Config, sources: Sources) -> Outcome:
        """`attempt`, in a process that may never have seen the module."""
        sys.path.extend(place for place in self.path if place not in sys.path)
        found: Any = importlib.import_module(self.module)
        for part in self.name.split("."):
            found = getattr(found, part)
        return attempt(found, config, sources)


def execute(
    study: Study,
    configs: list[Config],
    sources: Sources,
    todo: list[int],
    *,
    jobs: int = 1,
    engine: str = "local",
    address: str | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of the configurations at `todo`, as they come.

    Args:
        study: whose run to call. configs, sources: its arguments. todo: indices of configurations.
        jobs: processes; 1 with "local": this one. engine: "local" or "ray".
        address: of a running Ray cluster, or "auto"; None starts one on this machine, for this call alone.

    Raises:
        UnknownName: no such engine. MissingExtra: Ray is not installed. UsageError: see `Target.of`.
    """
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    if engine == "ray":
        yield from _with_ray(Target.of(study), configs, sources, todo, jobs, address)
    elif jobs == 1 or len(todo) < 2:
        for i in todo:
            yield i, attempt(study.run, configs[i], sources)
    else:
        yield from _with_pool(Target.of(study), configs, sources, todo, jobs)


def attempt(run: Any, config: Config, sources: Sources) -> Outcome:
    """One run as it is written down: its configuration, its result or its error, and how long it took."""
    started = time.perf_counter()
    outcome: Outcome
    try:
        result: Result = run(config, sources)
        json.dumps(result, allow_nan=False)
        outcome = {"result": result}
    except Exception as error:  # recorded, and shown; the other runs go on
        outcome = {"error": f"{type(error).__name__}: {error}"}
    return {"config": config, **outcome, "seconds": time.perf_counter() - started}


def _with_pool(
    target: Target, configs: list[Config], sources: Sources, todo: list[int], jobs: int
) -> Iterator[tuple[int, Outcome]]:
    """Spawned, since a fork of a process with threads may hang; a pool that breaks is replaced."""
    left, tries = list(todo), 0
    while left and tries < _TRIES:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_one_thread) as pool:
            futures = {pool.submit(target, configs[i], sources): i for i in left}
            for future in as_completed(futures):
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    continue
                left.remove(futures[future])
                yield futures[future], outcome
        tries += 1
        if left and tries == _TRIES - 1:
            jobs = 1  # one at a time: who kills the worker, and takes the others' runs with it, is then alone
    yield from _lost(left, configs)


def _with_ray(
    target: Target, configs: list[Config], sources: Sources, todo: list[int], jobs: int, address: str | None
) -> Iterator[tuple[int, Outcome]]:
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
        remote = ray.remote(num_cpus=1, max_retries=_TRIES - 1)(_called)
        waiting = {remote.remote(target, configs[i], dict(sources)): i for i in todo}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(done)
            try:
                yield i, ray.get(done)
            except ray.exceptions.RayError:
                yield from _lost([i], configs)
    finally:
        ray.shutdown()


def _called(target: Target, config: Config, sources: Sources) -> Outcome:
    _one_thread()
    return target(config, sources)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _lost(indices: Iterable[int], configs: list[Config]) -> Iterator[tuple[int, Outcome]]:
    for i in indices:
        yield i, {"config": configs[i], "error": f"its process died {_TRIES} times (memory?)", "seconds": 0.0}
