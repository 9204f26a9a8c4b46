"""The network that a tracker watches: admitted once, taken as it is at every look, admitted again where it is another.

"Another" is one with other layers, devices, dtypes or frozen parameters; its weights may change as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from flatminima.core.fsdp import ShardedMinimum
from flatminima.core.guard import evaluating, untouched
from flatminima.core.losses import Loss
from flatminima.core.minimum import Minimum
from flatminima.core.network import Network
from flatminima.core.parameters import unwrap
from flatminima.optim.gathered import of_model, reshard
from flatminima.track.tracker_state import Options
from flatminima.track.train_mode import AsItTrains, mean_loss, one_sample, refuse

_WHOLE = 1 << 20  # samples at a time: the whole probe


class Watched:
    """A model in training, its probe and its loss.

    Args:
        model: compiled and DDP-wrapped ones are unwrapped. probe, loss: as for `Minimum`.
        options: mode, batches, seed, output, processes. quantities: names of what will be looked at.
        admitted: what to do with a network that was admitted, at first and again.

    Raises:
        UsageError: train mode where it has no meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        loss: str | Callable[[Any, Tensor], Tensor],
        options: Options,
        quantities: Any,
        admitted: Callable[[Network], None],
    ) -> None:
        self.model = unwrap(model)
        self.network: Network | None = None
        self._probe, self._loss, self._options, self._admitted = probe, loss, options, admitted
        self._signature: tuple[Any, ...] = ()
        self._as_it_trains: AsItTrains | None = None
        if options.mode == "train":
            refuse(self.model, quantities, options.ranks is None, self.sharded)
            self._as_it_trains = AsItTrains(self.model, options.output, options.seed)

    @property
    def sharded(self) -> bool:
        """Whether the weights lie in FSDP2's shards, also where a pass has left them gathered."""
        return bool(of_model(self.model)) or any(hasattr(p, "device_mesh") for p in self.model.parameters())

    @property
    def together(self) -> bool:
        """Whether all processes look."""
        return self._options.ranks is not None or self.sharded

    @property
    def passive(self) -> bool:
        """Whether another process looks, and this one does not."""
        several = dist.is_available() and dist.is_initialized()
        return several and dist.get_rank() != 0 and not self.together

    @property
    def loss_name(self) -> str:
        """Name of the loss of a sample."""
        return Loss.of(self._loss).name

    @contextmanager
    def look(self) -> Iterator[Network]:
        """The network at its weights of now, opened; what is followed is looked at within."""
        network = self._known()
        if network is None:
            network = self.admit()
        elif isinstance(network, Minimum):
            with network.opened_anew():
                yield network
            return
        with network.open():
            yield network

    def renewed(self) -> Network:
        """The network at its weights of now, for measures, which open it themselves."""
        network = self._known()
        if network is None:
            return self.admit()
        if isinstance(network, Minimum):
            network.renew()
        return network

    def admit(self) -> Network:
        """The network as it is, looked at anew.

        Raises:
            ModelError, DataError, NumericalError: as `Minimum` does.
        """
        network = self._made()
        self.network, self._signature = network, self._now()
        self._admitted(network)
        return network

    def _made(self) -> Network:
        asked: dict[str, Any] = {"seed": self._options.seed, "batch_size": self._options.batch_size or _WHOLE}
        if self._as_it_trains is not None:
            self._as_it_trains.remember()
            probe = one_sample(self._probe)
            with untouched(self._as_it_trains):
                return Minimum(self._as_it_trains, probe, mean_loss(self._loss), ranks=self._options.ranks, **asked)
        asked |= {"loss": self._loss, "output": self._options.output}
        if self.sharded:
            reshard(of_model(self.model))  # also after a pass that failed in the middle
            with evaluating(self.model):
                return ShardedMinimum(self.model, self._probe, **asked)
        with untouched(self.model):
            return Minimum(self.model, self._probe, ranks=self._options.ranks, **asked)

    def _known(self) -> Network | None:
        """The network that was admitted, where it is still the same."""
        if self.network is None or self._signature != self._now() or isinstance(self.network, ShardedMinimum):
            return None
        if self._as_it_trains is not None:
            self._as_it_trains.remember()
        return self.network

    def _now(self) -> tuple[Any, ...]:
        return tuple((n, id(p), p.shape, p.dtype, p.device, p.requires_grad) for n, p in self.model.named_parameters())
