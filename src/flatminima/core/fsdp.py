"""A network whose weights no single process holds: FSDP2's shards, measured in place.

Every rank runs the same program; vectors of W entries (noise, gradients, Lanczos's basis) lie in parts as the weights
do, a batch is cut between the ranks, and outputs are put together again. FSDP2 has no double backward, so a product
with the Hessian is a central difference of two gradients: see `Differences`. Draws are those of one process, bit for
bit, so results agree with it to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from flatminima.core.activation_pattern import Kinks
from flatminima.core.admission import refuse_training_mode
from flatminima.core.ambient import neutral
from flatminima.core.guard import same_randomness
from flatminima.core.identity import sample_bytes
from flatminima.core.network import Network
from flatminima.core.samples import Inputs, Samples, as_samples, leaves, map_tensors
from flatminima.core.scaled_gradients import refuse_scaled_gradients
from flatminima.core.sharded_parameters import ShardedParameters
from flatminima.core.space import Space
from flatminima.core.spent import Passes
from flatminima.core.statistic import Fold, Needs, Reads, Statistic
from flatminima.errors import ModelError, NumericalError, StaleMinimum, Undefined

_SHORTER = (1.0, 0.25, 2.0**-5, 2.0**-8, 2.0**-11)  # of a difference's first length, tried in turn
_AGREE = 0.05  # of two lengths' products, relative; kinks and noise differ by far more
_SCALED = 0.05  # of a gradient along itself, against a difference of losses
_HALF = (torch.bfloat16, torch.float16)


class Differences:
    """v -> H v of the mean loss by a central difference of gradients, (g(w + h v) - g(w - h v)) / 2 h.

    ``h = (3 eps)^(1/3) max(1, ||w||) / ||v||`` with eps the rounding of the weights: an error of order eps^(2/3) where
    the loss is smooth, about 3e-5 in float32 and 4e-11 in float64; the first product is compared with one of a quarter
    of the length. Across a kink (of a ReLU, say) a difference is no derivative, however many there are to average
    over: h is cut until the network stays within one linear piece, on every sample.

    Args:
        minimum: a ShardedMinimum. indices: of samples.
    """

    def __init__(self, minimum: ShardedMinimum, indices: Tensor) -> None:
        self.minimum, self.indices, self.spent = minimum, indices, 0
        p = minimum.parameters
        self.count, self.size = len(indices), len(p)
        self.space = Space(self.size, p.here, p.total, p.part)
        self._agreed = False

    @property
    def precision(self) -> torch.dtype:
        """The dtype in which the network computes."""
        return self.minimum.parameters.local[0].dtype

    def __call__(self, vector: Tensor) -> Tensor:
        """H v float64, of this rank's part of v.

        Raises:
            Undefined: the loss has kinks nearer than the weights' precision can step, or is not smooth.
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
            found, kinked = self._difference(weights, vector, h, length)
            if kinked:
                found = self._within_a_piece(weights, vector, h, length)
            elif not self._agreed:
                other, _ = self._difference(weights, vector, h * _SHORTER[1], length)
                gap, size = space.norm(found - other), space.norm(found)
                if not gap <= _AGREE * size:
                    raise Undefined(
                        f"differences of gradients over two lengths disagree by {gap / max(size, 1e-300):.0%}: the "
                        "loss is not smooth enough for them",
                        "not_smooth",
                    )
                self._agreed = True
        if not math.isfinite(space.norm(found)):
            raise NumericalError("a Hessian product is not finite: the curvature overflows here")
        return found

    def _within_a_piece(self, weights: Tensor, vector: Tensor, h: float, length: float) -> Tensor:
        for share in _SHORTER[1:]:
            found, kinked = self._difference(weights, vector, h * share, length)
            if not kinked:
                return found
        raise Undefined(
            "differences of gradients cross kinks of the network (ReLU, max pooling) at every step that the weights' "
            "precision allows: measure in one process, or on fewer samples",
            "kinks",
        )

    def _difference(self, weights: Tensor, vector: Tensor, h: float, length: float) -> tuple[Tensor, bool]:
        """The central difference, and whether a kink was crossed on any rank."""
        minimum, space = self.minimum, self.space
        sides: list[int] = []
        try:
            minimum.parameters.assign(weights + (h * vector).to(weights))
            above = minimum.parameters.flat(torch.float64)
            with Kinks() as kinks:
                _, found = minimum.mean_gradient(self.indices)
            sides.append(kinks.pattern)
            minimum.parameters.assign(weights - (h * vector).to(weights))
            below = minimum.parameters.flat(torch.float64)
            with Kinks() as kinks:
                found -= minimum.mean_gradient(self.indices)[1]
            sides.append(kinks.pattern)
        finally:
            minimum.parameters.assign(weights)
        moved = space.norm(above - below)  # as rounded
        crossed = not minimum.parameters.agree(sides[0] == sides[1])
        return found * (length / moved if moved else math.nan), crossed


class ShardedMinimum(Network):
    """A trained network under FSDP2 at its weights; for `measure`, on every rank.

    What it can give: losses and outputs, losses under random noise, the worst case in a box, trace and largest
    eigenvalues of the Hessian. What needs a sample's own gradient, or all weights in one place, is undefined.

    Args:
        model: after `torch.distributed.fsdp.fully_shard` on all its parameters, in eval mode, over one group, without
            a mixed-precision policy that computes in half precision.
        data, loss, batch_size, seed, output: as for `Minimum`; the same on every rank. A batch is cut between the
            ranks.

    Raises:
        ModelError, DataError, NumericalError: as for `Minimum`; or a parameter that is not sharded.

    Examples:
        >>> ShardedMinimum(nn.Linear(3, 2), (torch.randn(4, 3), torch.arange(4) % 2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        flatminima.errors.ModelError: parameter 'weight' is not sharded along its first dimension: ...
    """

    offers: ClassVar[Needs] = Needs.LOSSES | Needs.GRADIENTS | Needs.PRODUCTS
    parameters: ShardedParameters

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: str | Callable[[Any, Tensor], Tensor] = "cross_entropy",
        *,
        batch_size: int = 256,
        seed: int = 0,
        output: int | str | Callable[[Any], Tensor] | None = None,
    ) -> None:
        import torch.distributed as dist

        super().__init__(loss, batch_size, seed, output)
        with neutral():
            refuse_training_mode(model)
            refuse_scaled_gradients(model)
            self.parameters = ShardedParameters.of_shards(model)
            _refuse_half(self.parameters.modules)
            self.model = model
            with same_randomness():
                self.samples: Samples = as_samples(data)
            self.device = self.parameters.local[0].device
            self.eps = max(torch.finfo(p.dtype).eps for p in self.parameters.local)
            self._rank, self._size = (f(self.parameters.group) for f in (dist.get_rank, dist.get_world_size))
            self._mark = self._marks()
            self.output_size = self._probe()

    def content(self) -> str | None:
        return None

    def can_sweep(self, fold: Fold[Any, Any]) -> bool:
        return fold.reads == Reads.OUTPUTS

    def compute(self, keys: Sequence[Statistic[Any]], *, tolerant: bool = False) -> None:
        with neutral():
            super().compute(keys, tolerant=tolerant)

    def in_precision(self, dtype: torch.dtype) -> Self:
        raise Undefined(
            f"the noise is below the precision of the weights ({self.parameters.local[0].dtype}), of which there is no "
            "copy where they lie in shards",
            "precision",
        )

    def own_products(self, indices: Tensor, curvature: str) -> Differences:
        if curvature != "hessian":
            raise Undefined("the Gauss-Newton matrix is no derivative of a gradient: FSDP's shards do not give it")
        return Differences(self, indices)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of a batch, each rank its share of the samples; the same on every rank, without a graph."""
        import torch.distributed as dist

        count = len(leaves(inputs)[0])
        with torch.no_grad():
            mine = self.run(map_tensors(lambda t: t[self._share(count)], inputs)).contiguous()
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
                output = self.run(map_tensors(lambda t, share=share: t[share], batch.inputs))
                losses = self.loss(output, batch.targets[share])
                if not p.agree(bool(torch.isfinite(losses).all())):
                    raise Undefined("the loss overflows within the box: use a smaller alpha", "not_finite")
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

    def _share(self, count: int) -> Tensor:
        """This rank's positions in a batch: as many on every rank, the last sample as often as is needed."""
        each = -(-count // self._size)
        return (torch.arange(each) + self._rank * each).clamp_max(count - 1)

    @contextmanager
    def open(self) -> Iterator[None]:
        if self._depth:
            yield
            return
        with neutral():
            self.refuse_stale()
            modes = [(m, m.training) for m in self.model.modules()]
            buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
            grads = [(p, p.grad) for p in self.parameters.tensors]
            self._depth += 1
            try:
                with same_randomness(), _synchronised(self.parameters.modules):
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

    def _marks(self) -> tuple[Any, ...]:
        return tuple(sample_bytes(t).cpu().numpy().tobytes() for t in (*self.parameters.local, *self.model.buffers()))

    def refuse_stale(self) -> None:
        changed = self._depth == 0 and self._marks() != self._mark
        if not self.parameters.agree(not changed):
            raise StaleMinimum("the model's weights or buffers changed since this was made; make a new ShardedMinimum")

    def _probe(self) -> int:
        """One small forward pass: shapes, labels, finiteness; and one backward pass: the size of the gradient."""
        few = torch.arange(min(2, len(self.samples)))
        with self.open(), torch.no_grad():
            batch = self.batch(few)
            output = self.forward(batch.inputs)
            self.loss = self.loss.fitted(output, batch.targets)
            batch._receive(output)
            self._refuse_scaled_gradients(torch.arange(min(self.batch_size, len(self.samples))))
        self.passes = Passes()
        return batch.outputs[0].numel()

    def _refuse_scaled_gradients(self, indices: Tensor) -> None:
        """Along the gradient g the loss must rise by ||g||^2: a divide factor or a hook may have scaled g.

        Raises:
            ModelError: naming the factor.
        """
        p = self.parameters
        _, gradient = self.mean_gradient(indices)
        square = float(p.total(gradient.square().sum()))
        weights = p.flat()
        size = float(p.total(weights.double().square().sum())) ** 0.5
        h = (3 * torch.finfo(weights.dtype).eps) ** (1 / 3) * max(1.0, size) / max(square**0.5, 1e-300)
        losses = []
        try:
            for sign in (1.0, -1.0):
                p.assign(weights + (sign * h * gradient).to(weights))
                losses.append(self.mean_loss(indices))
        finally:
            p.assign(weights)
        rise, noise = (losses[0] - losses[1]) / (2 * h), torch.finfo(weights.dtype).eps * abs(losses[0]) / h
        if noise > _SCALED * square:  # too flat to tell
            return
        if abs(rise - square) > 4 * _SCALED * square and abs(rise - square) > 4 * noise:
            raise ModelError(
                f"FSDP's gradients are {square / rise if rise else math.inf:.3g} times those of the mean loss: reset "
                "set_gradient_divide_factor and hooks on gradients before measuring"
            )


@contextmanager
def _synchronised(modules: Sequence[Any]) -> Iterator[None]:
    """Gradients summed over the ranks within the block, whatever gradient accumulation has switched off."""
    before = []
    for module in modules:
        group = module._get_fsdp_state()._fsdp_param_group
        before.append((module, None if group is None else (group.reduce_grads, group.all_reduce_grads)))
        module.set_requires_gradient_sync(True, recurse=False)
        module.set_requires_all_reduce(True, recurse=False)
    try:
        yield
    finally:
        for module, kept in before:
            if kept is not None:
                module.set_requires_gradient_sync(kept[0], recurse=False)
                module.set_requires_all_reduce(kept[1], recurse=False)


def _refuse_half(modules: Sequence[Any]) -> None:
    """Refuse shards that are cast to half precision for each pass: small moves of the weights vanish in the cast.

    Raises:
        ModelError: naming the policy.
    """
    for module in modules:
        policy = module._get_fsdp_state()._mp_policy
        if policy.param_dtype in _HALF:
            raise ModelError(
                f"fully_shard's MixedPrecisionPolicy computes in {str(policy.param_dtype).removeprefix('torch.')}, "
                "where a small move of the weights vanishes: shard the network without it to measure"
            )
