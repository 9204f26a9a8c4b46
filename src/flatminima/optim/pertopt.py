"""PertOPT: train with noise as wide as the local curvature allows (Wang et al. 2018, Algorithm 1).

Surprises in the paper's box, all kept: no noise at t = 0; the epoch counts from 1, and since ln 2 < 1 the first epoch
*amplifies*; kappa comes from w_{t-1}; rho divides each |h_t - h_{t-1}| by one scalar ||w_t - w_{t-1}||; h has no bias
correction; the box lacks the theory's 1/3, 1/9 and sqrt(m). Where it would divide by zero: nothing moved gives rho = 0,
no curvature gives sigma = kappa. At the published eta kappa binds nearly everywhere: see `diagnostics()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.core.perturbation import mix
from flatminima.errors import UsageError
from flatminima.optim.blocks import walk
from flatminima.optim.curvature import CurvatureState, Levels
from flatminima.optim.diagnostics import Census, Diagnostics, choose_eta, threshold, warn
from flatminima.optim.displacement import Gradients, Shared
from flatminima.optim.noise import NoiseStream
from flatminima.optim.schedule import Clock, depends_on_epoch, log_anneal
from flatminima.optim.shards import is_sharded
from flatminima.optim.wrapper import Wrapper

_LOOK_EVERY = 1024  # steps between two looks at the noise, after the first at 1, 2, 4, 8, ...


class PertOPT(Wrapper):
    """PertOPT around any base optimizer; one backward pass a step, at w_t + u.

    h_{t+1} = beta1 h_t + (1 - beta1) g^2,  rho = |h_t - h_{t-1}| / ||w_t - w_{t-1}||,
    kappa = gamma |w_{t-1}| / ln(1 + epoch) + eps,
    sigma = min(1 / (ln(1 + epoch) sqrt(eta (h_t + rho kappa))), kappa) where |g_t| < beta2, else 0,
    u ~ U(-sigma, sigma),  w_{t+1} = base(w_t; gradient at w_t + u).

    g is the gradient as `step()` finds it: of the mean loss, unscaled, clipped, without weight decay. Three tensors a
    parameter are kept (h, w_{t-1} and sigma), two where h is Adam's or AdamW's own second moment: beta2 of Adam equal
    to beta1 here, no L2 penalty. BatchNorm's running statistics are those of the noisy network, as in the paper;
    `torch.optim.swa_utils.update_bn` measures them again.

    Args:
        base: the optimizer that steps. Its groups may set `pert_eta`, `pert_gamma`, `pert_eps`, `pert_beta1`,
            `pert_beta2` and `perturb` (False: no noise and no state) of their own.
        eta: weight of the curvature, > 0, or "auto": chosen so that `auto_share` of the coordinates feel it.
        gamma: noise relative to the weight, >= 0. The paper's experiments use 1 and 10; 10 can destroy training.
        eps: noise of a weight that is 0, >= 0. With gamma = eps = 0 this is exactly the base.
        beta1: of the running mean of squared gradients, in [0, 1).
        beta2: gate, > 0.
        steps_per_epoch: advances `epoch`; None: set `opt.epoch` yourself.
        seed: of the noise; torch's global random state is not touched.
        noise: "shared": the same on every rank; "per_rank": independent, averaged by the gradients' mean.
        curvature: "paper": h as it is, about 1 / batch_size of the Fisher diagonal, starting at 0. "fisher": times
            batch_size / (1 - beta1^t), which depends on neither.
        batch_size: samples per step over all ranks; only for "fisher".
        anneal: epoch -> factor in place of 1 / ln(1 + epoch).
        auto_share: of the coordinates, in (0, 1); only for eta="auto".
        compile: fuse the arithmetic with torch.compile; a string names the backend.
        model: that owns the parameters. Inside the block its `state_dict()`, copies and forward passes in eval mode
            are refused; without it, from the block's first forward pass on.

    Source: Wang, Keskar, Xiong, Socher, arXiv 1809.07402, Algorithm 1.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([0.01, 0.02]))
        >>> opt = PertOPT(torch.optim.SGD([w], lr=0.1), gamma=0.1, steps_per_epoch=10)
        >>> for _ in range(3):
        ...     with opt.perturbed():
        ...         (w @ w).backward()
        ...     opt.step(); opt.zero_grad()
        >>> opt.epoch
        1
    """

    name = "pertopt"
    seed: Shared[int] = Shared()
    noise: Shared[str] = Shared()
    batch_size: Shared[int | None] = Shared()
    anneal: Shared[Callable[[float], float]] = Shared()
    auto_share: Shared[float] = Shared()

    def __init__(
        self,
        base: Optimizer,
        eta: float | Literal["auto"] = 0.01,
        gamma: float = 0.1,
        eps: float = 1e-5,
        beta1: float = 0.999,
        beta2: float = 0.1,
        steps_per_epoch: int | None = None,
        *,
        seed: int = 0,
        noise: Literal["shared", "per_rank"] = "shared",
        curvature: Literal["paper", "fisher"] = "paper",
        batch_size: int | None = None,
        anneal: Callable[[float], float] = log_anneal,
        auto_share: float = 0.5,
        compile: bool | str = False,
        model: nn.Module | None = None,
    ) -> None:
        if noise not in ("shared", "per_rank"):
            raise UsageError(f"got noise={noise!r}; it is 'shared' or 'per_rank'")
        if curvature not in ("paper", "fisher"):
            raise UsageError(f"got curvature={curvature!r}; it is 'paper' or 'fisher'")
        if (curvature == "fisher") != (batch_size is not None) or (batch_size is not None and batch_size < 1):
            raise UsageError(f"got {curvature=!r} with {batch_size=}; 'fisher', and only it, needs a batch size")
        if not 0 < auto_share < 1:
            raise UsageError(f"got auto_share={auto_share!r}; a share of the coordinates lies in (0, 1)")
        self.clock = Clock(steps_per_epoch)
        self._warned: set[str] = set()
        backend = None if compile is False else ("inductor" if compile is True else compile)
        self._curvature = CurvatureState(base, backend)
        own = {"perturb": True, "pert_eta": eta, "pert_gamma": gamma, "pert_eps": eps}
        own |= {"pert_beta1": beta1, "pert_beta2": beta2}
        numbers = {"pert_step": 0, "pert_epoch": 1.0, "pert_seed": seed, "pert_ready": 0, "pert_squared_distance": -1.0}
        super().__init__(base, own, numbers=numbers, model=model)
        self.seed = seed
        self.noise = noise
        self.batch_size = batch_size
        self.anneal = anneal
        self.auto_share = auto_share

    @property
    def epoch(self) -> float:
        """Epoch of the coming step, from 1. Set it at the start of each epoch, or give `steps_per_epoch`."""
        return self.clock.epoch

    @epoch.setter
    def epoch(self, value: float) -> None:
        self.clock.epoch = value

    @property
    def drawn(self) -> bool:
        """Whether the noise of the coming step is drawn already, so that `diagnostics()` has nothing to look at."""
        return self._curvature.settled

    def diagnostics(self) -> Diagnostics:
        """Census of the coming step's noise, between `step()` and the next `perturbed()`. One pass over memory.

        Raises:
            UsageError: the noise of the coming step is drawn already, and with it what it came from is gone.
        """
        self._outside("diagnostics()")
        if self.drawn:
            raise UsageError("the noise of this step is drawn already: ask for diagnostics() after step()")
        with torch.no_grad():
            self._curvature.fit()
            return self._census().finish(self.clock.step)

    def mean_h(self) -> float | None:
        """Mean of h over the coordinates that have had a gradient: what noise is sized by. None: none has."""
        self._outside("mean_h()")
        return self._curvature.mean_h()

    def _census(self) -> Census:
        census = Census()
        for part in self._curvature.parts(self.param_groups):
            for _, (w, previous, h, drift) in walk(part.blocks, part.weights, part.previous, part.h, part.drift):
                census.add(w, previous, h, drift, self._numbers_of(part.group, drift))
        return census

    def perturbed(self) -> AbstractContextManager[None]:
        """Forward and backward in this block, at w + u; afterwards the weights are as they were, bit for bit."""
        return self._block()

    def _evaluate(self, closure: Callable[[], Any], before: Gradients) -> Any:
        entered = self._at.entered
        with self.perturbed(), torch.enable_grad():
            loss = closure()
        if not entered:
            self._refuse_added(before)
        return loss

    def _micro_batch(self, closure: Callable[[], Any]) -> Any:
        with self.perturbed(), torch.enable_grad():
            return closure()

    def _by_epoch(self) -> str:
        return "anneal=" if self.anneal is not log_anneal and depends_on_epoch(self.anneal) else ""

    def _needs_block(self) -> bool:
        return True

    def _displace(self) -> None:
        curvature, step = self._curvature, self.clock.step
        if step == 0 or not curvature.live:
            return
        curvature.fit()
        if not curvature.settled and self._due():
            self._look()
        kernel = "settle_rest" if curvature.settled else "settle"
        seed = self._noise_seed()
        levels = Levels(lambda device: NoiseStream(seed, step, device), curvature.offsets(self.param_groups))
        for part in curvature.parts(self.param_groups):
            numbers = self._numbers_of(part.group, part.drift[0])
            for block, (w, previous, h, drift) in walk(part.blocks, part.weights, part.previous, part.h, part.drift):
                noise = levels.of(part, block)
                curvature.settled = True
                curvature.call(kernel, w, previous, h, drift, *numbers)
                block.scatter(drift, part.drift)
                block.scatter(previous, part.previous)
                self._at.moved.extend(
                    block.pairs(part.weights, part.previous) if block.span is None else [(w, previous)]
                )
                curvature.call("displace", w, drift, noise)
                block.scatter(w, part.weights)

    def _before_base(self) -> None:
        if self.clock.step == 0:
            self._curvature.live.clear()  # an empty checkpoint's
        self._curvature.before(self.param_groups)

    def _after_base(self) -> None:
        self._curvature.after(self.param_groups)
        self.clock.step += 1

    def _blank(self) -> None:
        self._curvature.blank(self.param_groups)

    def _due(self) -> bool:
        t = self.clock.step
        return t & (t - 1) == 0 or t % _LOOK_EVERY == 0

    def _look(self) -> None:
        """Choose eta where it is automatic, and warn."""
        for number, group in enumerate(self.param_groups):
            if group["pert_eta"] == "auto":
                found = []
                for part in self._curvature.parts(self.param_groups):
                    if part.number == number:
                        for _, (previous, h, drift) in walk(part.blocks, part.previous, part.h, part.drift):
                            numbers = self._numbers_of(group, drift, eta=1.0)
                            found.append(threshold(previous, h, drift, *numbers))
                eta = choose_eta(found, self.auto_share)
                if eta is not None:
                    group["pert_eta_chosen"] = eta / self._scale(group)
        census = self._census()
        # what falls to nothing later was noise before, and a shard does not speak for all
        at_once = self.clock.step == 1 and self.anneal is log_anneal
        refuse = at_once and not any(is_sharded(p) for p in self._parameters())
        warn(census.finish(self.clock.step), census.narrow, self._warned, refuse=refuse)

    def _numbers_of(self, group: dict[str, Any], like: Tensor, eta: float | None = None) -> tuple[Any, ...]:
        """gamma (annealed), eps, anneal / sqrt(eta), pull of a group."""
        anneal = float(self.anneal(self.clock.epoch))
        if eta is None:
            given = group["pert_eta"]
            eta = (group.get("pert_eta_chosen", 1.0) if given == "auto" else float(given)) * self._scale(group)
        scale = anneal * eta**-0.5
        return group["pert_gamma"] * anneal, float(group["pert_eps"]), scale, self._curvature.pull(like)

    def _scale(self, group: dict[str, Any]) -> float:
        """Of h; a factor of h and rho alike is a factor of eta."""
        if self.batch_size is None:
            return 1.0
        return self.batch_size / (1.0 - float(group["pert_beta1"]) ** max(self.clock.step, 1))

    def _noise_seed(self) -> int:
        if self.noise == "shared" or not torch.distributed.is_initialized():
            return self.seed
        if any(is_sharded(p) for p in self._parameters()):
            raise UsageError('got noise="per_rank" for sharded weights, which are one network: use "shared"')
        return mix(self.seed, 1 + torch.distributed.get_rank())

    def _tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        self._curvature.fit()
        return dict(self._curvature.live)

    def _numbers(self) -> dict[str, Any]:
        distance = self._curvature.distance
        return {
            "pert_step": self.clock.step,
            "pert_epoch": self.clock.by_hand,
            "pert_seed": self.seed,
            "pert_ready": int(self._curvature.settled),
            "pert_squared_distance": -1.0 if distance is None else float(distance),
        }

    def _load(self, tensors: dict[Tensor, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        self.clock.load(int(numbers["pert_step"]), float(numbers["pert_epoch"]))
        self.seed = int(numbers["pert_seed"])
        square = numbers["pert_squared_distance"]
        distance = None if square is None or float(square) < 0 else torch.tensor(float(square), dtype=torch.float64)
        home = next(iter(tensors)).device if tensors else torch.device("cpu")
        ready = bool(numbers["pert_ready"])
        if numbers["pert_step"] and not tensors and any(group["perturb"] for group in self.param_groups):
            raise UsageError(
                f"got a checkpoint of step {numbers['pert_step']} without PertOPT's tensors: a tool has dropped them "
                "(torch.distributed.checkpoint keeps them with flatten_optimizer_state_dict=False)"
            )
        self._curvature.load(tensors, None if distance is None else distance.to(home), ready)

    def _check(self, group: dict[str, Any]) -> None:
        eta, gamma, eps, beta1, beta2 = (group[f"pert_{key}"] for key in ("eta", "gamma", "eps", "beta1", "beta2"))
        if eta != "auto" and not (isinstance(eta, int | float) and math.isfinite(eta) and eta > 0):
            raise UsageError(f"got pert_eta={eta!r}; a positive number or 'auto'")
        for key, value in (("gamma", gamma), ("eps", eps)):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"got pert_{key}={value!r}; noise is finite and >= 0")
        if not (0 <= beta1 < 1 and beta2 > 0):
            raise UsageError(f"got pert_beta1={beta1!r}, pert_beta2={beta2!r}; 0 <= beta1 < 1 and beta2 > 0")
