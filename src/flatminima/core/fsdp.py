"""A network whose weights no single process holds: FSDP2's shards, measured in place.

Every rank runs the same program; vectors of W entries (noise, gradients, Lanczos's basis) lie in parts as the weights
do, a batch is cut between the ranks, and outputs are put together again. FSDP2 has no double backward, so a product
with the Hessian is a central difference of two gradients: see `Differences`. Draws are those of one process, bit for
bit, so results agree with it to rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.batch import logits
from flatminima.core.guard import same_randomness
from flatminima.core.losses import Loss
from flatminima.core.minimum import Minimum, Passes, refuse_overflow, refuse_training_mode
from flatminima.core.parameters import Parameters
from flatminima.core.samples import Inputs, Samples, as_samples, leaves, map_tensors
from flatminima.core.statistic import Fold, Reads, Statistic
from flatminima.errors import ModelError, NumericalError, StaleMinimum, Undefined, UsageError
from flatminima.statistics import HessianProbes, Outputs, ParameterCount, PerturbedLoss, SampleCount, TopEigenvalues
from flatminima.statistics import WorstCaseLoss as WorstCase
from flatminima.statistics.hessian import ProbedHessian, group_edges, signs
from flatminima.statistics.krylov import Space

_ELSEWHERE = (Outputs, ParameterCount, SampleCount, PerturbedLoss, WorstCase, HessianProbes, TopEigenvalues)


@dataclass(frozen=True)
class ShardedParameters(Parameters):
    """The trainable parameters of a model under `fully_shard`, each cut along its first dimension.

    A flat vector here is this rank's part: of each parameter, in order, the entries that it holds.
    """

    spans: tuple[tuple[int, int], ...] = ()  # of each parameter's part in the whole flat vector
    modules: tuple[Any, ...] = ()  # that gather their weights for a pass
    group: Any = None

    @classmethod
    def of(cls, model: nn.Module) -> ShardedParameters:
        """Collect; refuse what is not sharded by FSDP2 along the first dimension over one group of processes.

        Raises:
            ModelError: naming the parameter. NumericalError: NaN or Inf in a parameter, on every rank.
        """
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor, Shard

        modules = tuple(m for m in model.modules() if isinstance(m, FSDPModule))
        for module in modules:  # a forward pass may have left whole weights in the shards' place
            module.reshard()
        named = list(model.named_parameters())
        meshes, spans, start, finite = [], [], 0, True
        for name, p in named:
            if not isinstance(p, DTensor) or p.placements != (Shard(0),):
                raise ModelError(
                    f"parameter {name!r} is not sharded along its first dimension: apply "
                    "torch.distributed.fsdp.fully_shard to the whole model, over a mesh of one dimension"
                )
            meshes.append(p.device_mesh)
            finite &= bool(torch.isfinite(p.to_local()).all())
            if p.requires_grad:
                spans.append(_span(p, start))
                start += p.numel()
        trainable = [(name, p) for name, p in named if p.requires_grad]
        if not trainable or any(mesh != meshes[0] for mesh in meshes):
            raise ModelError("got no trainable parameter, or parameters on several meshes; expected one mesh for all")
        frozen = sum(p.numel() for _, p in named) - start
        names, tensors = zip(*trainable, strict=True)
        found = cls(names, tensors, frozen, tuple(spans), modules, meshes[0].get_group())
        if not found.agree(finite):
            raise NumericalError("a parameter holds NaN or Inf; measures need finite weights")
        return found

    @property
    def local(self) -> list[Tensor]:
        """What this rank holds of each parameter; writing to it writes the weights."""
        return [p.detach().to_local() for p in self.tensors]  # type: ignore[attr-defined]

    @property
    def here(self) -> int:
        """Entries that this rank holds."""
        return sum(stop - start for start, stop in self.spans)

    def flat(self, dtype: torch.dtype | None = None) -> Tensor:
        return torch.cat([t.reshape(-1).to(dtype) if dtype else t.reshape(-1) for t in self.local])

    def part(self, vector: Tensor) -> Tensor:
        return torch.cat([vector[start:stop] for start, stop in self.spans])

    def agree(self, here: bool) -> bool:
        return float(self.total(torch.tensor(float(not here), device=self.local[0].device))) == 0.0

    def total(self, sums: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        import torch.distributed as dist

        dist.all_reduce(sums, group=self.group)
        return sums

    def reshard(self) -> None:
        """Let go of gathered weights: a later pass gathers what the shards then hold."""
        for module in self.modules:
            module.reshard()

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        self.reshard()
        for t, part in zip(self.local, vector.split([t.numel() for t in self.local]), strict=True):
            t.copy_(part.view(t.shape))


def _span(p: Any, start: int) -> tuple[int, int]:
    """Where the entries that this rank holds lie in the flat vector: rows in a row."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    width = p[0].numel() if p.dim() > 1 else 1
    first = start + offset[0] * width
    return first, first + math.prod(shape)


class Differences:
    """v -> H v of the mean loss by a central difference of gradients, (g(w + h v) - g(w - h v)) / 2 h.

    ``h = (3 eps)^(1/3) max(1, ||w||) / ||v||`` with eps the rounding of the weights: an error of order eps^(2/3) where
    the loss is smooth, about 3e-5 in float32 and 4e-11 in float64; at the kinks of a ReLU network, what is crossed.

    Args:
        minimum: a ShardedMinimum. indices: of samples.
    """

    def __init__(self, minimum: ShardedMinimum, indices: Tensor) -> None:
        self.minimum, self.indices, self.spent = minimum, indices, 0
        p = minimum.parameters
        self.count, self.size = len(indices), len(p)
        self.space = Space(self.size, p.here, p.total, p.part)

    @property
    def precision(self) -> torch.dtype:
        """In which the network computes."""
        return self.minimum.parameters.local[0].dtype

    def __call__(self, vector: Tensor) -> Tensor:
        """H v float64, of this rank's part of v.

        Raises:
            NumericalError: a product that is not finite.
        """
        self.spent += 1
        minimum, space = self.minimum, self.space
        with minimum.open():
            weights = minimum.parameters.flat()
            length = space.norm(vector.double())
            if length == 0:
                return torch.zeros_like(vector, dtype=torch.float64)
            h = (3 * torch.finfo(weights.dtype).eps) ** (1 / 3) * max(1.0, space.norm(weights.double())) / length
            try:
                minimum.parameters.assign(weights + (h * vector).to(weights))
                above = minimum.parameters.flat(torch.float64)
                _, found = minimum.mean_gradient(self.indices)
                minimum.parameters.assign(weights - (h * vector).to(weights))
                below = minimum.parameters.flat(torch.float64)
                found -= minimum.mean_gradient(self.indices)[1]
            finally:
                minimum.parameters.assign(weights)
            moved = space.norm(above - below)  # as rounded
            found *= length / moved
        if not math.isfinite(space.norm(found)):
            raise NumericalError("a Hessian product is not finite: the curvature overflows here")
        return found


class ShardedMinimum(Minimum):
    """A trained network under FSDP2 at its weights; for `measure`, on every rank.

    What it can give: losses and outputs, losses under random noise, the worst case in a box, trace and largest
    eigenvalues of the Hessian. What needs a sample's own gradient, or all weights in one place, is undefined.

    Args:
        model: after `torch.distributed.fsdp.fully_shard` on all its parameters, in eval mode, over one group.
        data, loss, batch_size, seed: as for `Minimum`; the same on every rank. A batch is cut between the ranks.

    Raises:
        ModelError, DataError, NumericalError: as for `Minimum`; or a parameter that is not sharded.

    Examples:
        >>> ShardedMinimum(nn.Linear(3, 2), (torch.randn(4, 3), torch.arange(4) % 2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        flatminima.errors.ModelError: parameter 'weight' is not sharded along its first dimension: ...
    """

    parameters: ShardedParameters

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: str | Callable[[Any, Tensor], Tensor] = "cross_entropy",
        *,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        import torch.distributed as dist

        if batch_size < 1:
            raise UsageError(f"got batch_size={batch_size}; it must be at least 1")
        refuse_training_mode(model)
        self.parameters = ShardedParameters.of(model)
        self.model = self._source = model
        self.loss = Loss.of(loss)
        with same_randomness():
            self.samples: Samples = as_samples(data)
        self.batch_size, self.seed, self.halvings = batch_size, seed, 0
        self.ranks = None
        self.device = self.parameters.local[0].device
        self._rank, self._size = (f(self.parameters.group) for f in (dist.get_rank, dist.get_world_size))
        self._writes_inputs = False
        self.passes = Passes()
        self._cache: dict[Statistic[Any], Any] = {}
        self._depth = 0
        self._mark = self._fingerprint()
        self.output_size = self._probe_outputs()

    def compute(self, keys: Sequence[Statistic[Any]]) -> None:
        """As `Minimum.compute`, for those statistics that shards can give; of the others the reason."""
        self._refuse_stale()
        for key in dict.fromkeys(keys):
            if key in self._cache:
                continue
            try:
                self._cache[key] = self._value(key)
            except Undefined as reason:
                self._cache[key] = reason

    def _value(self, key: Statistic[Any]) -> Any:
        curved = getattr(key, "curvature", "hessian") == "hessian"
        if not isinstance(key, _ELSEWHERE) or not curved:
            raise Undefined(
                f"{type(key).__name__} needs every weight, or a sample's own gradient, in one process; from FSDP's "
                "shards there are losses, gradients of the mean loss and differences of these"
            )
        if isinstance(key, HessianProbes):
            return self._probed(key)
        value = self.sweep([key])[key] if isinstance(key, Fold) and key.reads == Reads.OUTPUTS else key.compute(self)
        if isinstance(value, Undefined):
            raise value
        return value

    def _probed(self, key: HessianProbes) -> ProbedHessian:
        """`HessianProbes`, its diagonal this rank's part."""
        order = torch.arange(len(self.samples)) if key.order_seed is None else self.samples.order(key.seed)
        edges = group_edges(key.limit(self), key.groups)
        p = self.parameters
        diagonal = torch.zeros(p.here, dtype=torch.float64, device=self.device)
        traces = torch.zeros(len(edges) - 1, key.probes, dtype=torch.float64)
        sizes = torch.tensor([b - a for a, b in itertools.pairwise(edges)])
        for g, (start, stop) in enumerate(itertools.pairwise(edges)):
            products = Differences(self, order[start:stop])
            for k in range(key.probes):
                probe = p.part(signs(len(p), key.seed, g * key.probes + k)).to(self.device, products.precision)
                found = probe.double() * products(probe)
                diagonal += found * (stop - start)
                traces[g, k] = float(p.total(found.sum()))
        return ProbedHessian(diagonal.cpu() / (float(sizes.sum()) * key.probes), traces, sizes, len(self.samples))

    def own_products(self, indices: Tensor, curvature: str) -> Differences:
        if curvature != "hessian":
            raise Undefined("the Gauss-Newton matrix is no derivative of a gradient: FSDP's shards do not give it")
        return Differences(self, indices)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of a batch, each rank its share of the samples; the same on every rank, without a graph."""
        import torch.distributed as dist

        count = len(leaves(inputs)[0])
        with torch.no_grad():
            mine = self._run(map_tensors(lambda t: t[self._share(count)], inputs)).contiguous()
            self.parameters.reshard()
            every = [torch.empty_like(mine) for _ in range(self._size)]
            dist.all_gather(every, mine, group=self.parameters.group)
        self.passes.forward += count
        return torch.cat(every)[:count]

    def mean_gradient(self, indices: Tensor) -> tuple[float, Tensor]:
        p = self.parameters
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros(p.here, dtype=torch.float64, device=self.device)
        for rows in indices.split(self.batch_size):
            batch = self.batch(rows)
            share = self._share(len(rows))
            counted = torch.arange(len(share)) + self._rank * len(share) < len(rows)  # the rest repeats the last sample
            with torch.enable_grad():
                output = self._run(map_tensors(lambda t, share=share: t[share], batch.inputs))
                losses = self.loss(output, batch.targets[share])
                refuse = not bool(torch.isfinite(losses).all())
                if not p.agree(not refuse):
                    refuse_overflow(torch.tensor(math.inf))
                losses = losses * counted.to(losses)
                (losses.sum() * self._size).backward()  # FSDP takes the mean over ranks
            gradient += torch.cat([self._taken(t) for t in p.tensors])
            total += losses.detach().double().sum()
            self.passes.forward += len(rows)
            self.passes.backward += len(rows)
            p.reshard()
        return float(p.total(total)) / len(indices), gradient / len(indices)

    @staticmethod
    def _taken(p: Any) -> Tensor:
        """This rank's part of a gradient, which is then no longer the parameter's."""
        found = torch.zeros_like(p.to_local()) if p.grad is None else p.grad.to_local()
        p.grad = None
        flat: Tensor = found.detach().reshape(-1).double()
        return flat

    def _run(self, inputs: Inputs) -> Tensor:
        if isinstance(inputs, Tensor):
            return logits(self.model(inputs))
        return logits(self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs))

    def _share(self, count: int) -> Tensor:
        """This rank's positions in a batch: as many on every rank, the last sample as often as is needed."""
        each = -(-count // self._size)
        return (torch.arange(each) + self._rank * each).clamp_max(count - 1)

    @contextmanager
    def open(self) -> Iterator[None]:
        if self._depth:
            yield
            return
        self._refuse_stale()
        modes = [(m, m.training) for m in self.model.modules()]
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        grads = [(p, p.grad) for p in self.parameters.tensors]
        self._depth += 1
        try:
            with same_randomness():
                self.model.eval()
                for p, _ in grads:
                    p.grad = None
                yield
        finally:
            self._depth -= 1
            self.parameters.reshard()
            for module, training in modes:
                module.training = training
            for p, grad in grads:
                p.grad = grad
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)
            self._mark = self._fingerprint()

    def _fingerprint(self) -> tuple[Any, ...]:
        return tuple(float(t.double().sum()) for t in (*self.parameters.local, *self.model.buffers()))

    def _refuse_stale(self) -> None:
        changed = self._depth == 0 and self._fingerprint() != self._mark
        if not self.parameters.agree(not changed):
            raise StaleMinimum("the model's weights or buffers changed since this was made; make a new ShardedMinimum")

    def _probe_outputs(self) -> int:
        """One small forward pass: shapes, labels, finiteness."""
        with self.open(), torch.no_grad():
            batch = self.batch(torch.arange(min(2, len(self.samples))))
            output = self.forward(batch.inputs)
            self.loss = self.loss.fitted(output, batch.targets)
            batch._receive(output)
        self.passes = Passes()
        return batch.outputs[0].numel()
