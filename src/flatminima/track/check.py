"""One look at a network in training: its curvature and what else is followed, from as few passes as possible.

All Hessian quantities share the graphs of one gradient. Whatever moves the weights comes last, since a write spoils the
graphs; the weights are back, bit for bit, before the look ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from flatminima.core.minimum import Minimum
from flatminima.core.network import Network
from flatminima.core.perturbation import generator
from flatminima.errors import Undefined
from flatminima.estimate import Estimate
from flatminima.optim import SAM, PertOPT
from flatminima.statistics.curvature import Curvature, Products, products_of
from flatminima.statistics.lanczos import orthogonal
from flatminima.track.critical import critical
from flatminima.track.eigenvalue import Top
from flatminima.track.stability import Stability, own_of, sam_threshold, stability

if TYPE_CHECKING:
    from flatminima.track.tracker_state import Memory, Options

T = TypeVar("T")

_PROBES = 2  # vectors of the trace a look


class Check:
    """A look at the network at its weights of now; quantities by name.

    Args:
        network: opened for as long as the look takes. optimizer: its wrapper or itself, or None.
        memory: what is carried from look to look. options: how.
        step: of the optimizer, whose number names the random draws.
    """

    def __init__(self, network: Network, optimizer: Any, memory: Memory, options: Options, step: int) -> None:
        self.network, self.optimizer, self.memory, self.options, self.step = network, optimizer, memory, options, step
        self.rows = torch.arange(len(network.samples))
        self.products = 0
        self.top: Top | None = None
        self._products: dict[str, tuple[int, Any]] = {}
        self._gradient: tuple[float, Tensor] | None = None
        self._stability: Stability | None = None
        self._quantities: dict[str, Callable[[], Estimate]] = {
            "eigenvalue": self.eigenvalue,
            "preconditioned": self.preconditioned,
            "gauss_newton": lambda: self._followed("gauss_newton", self._of("gauss_newton")),
            "trace": self.trace,
            "gradient_norm": self.gradient_norm,
            "critical_sharpness": self.critical_sharpness,
            "update_sharpness": self.update_sharpness,
            "distance": self.distance,
        }

    def quantity(self, name: str) -> Estimate:
        """One quantity, begun anew with smaller batches where memory runs out.

        Raises:
            Undefined: it has no value here.
        """
        return self.network.within_memory(self._quantities[name])

    def eigenvalue(self) -> Estimate:
        """Largest eigenvalue of the Hessian."""
        return self._followed("eigenvalue", self._of("hessian"))

    def preconditioned(self) -> Estimate:
        """Largest eigenvalue of D (H + decay) D, and the threshold in the same units."""
        stable = self.stability()
        details = {"threshold": stable.threshold, "thresholds": list(stable.thresholds)}
        if stable.plain and self.top is not None:
            top = self.top
            if not top.converged:
                raise _unconverged(top)
            return Estimate(top.value, details=_details(top) | details)
        hessian = self._of("hessian")
        product = hessian if stable.plain else stable.product(hessian)
        return self._followed("preconditioned", product, hessian).with_details(**details)

    def trace(self) -> Estimate:
        """Hutchinson's, outside of the space in which the eigenvalue was searched, whose part is exact."""
        hessian = self._of("hessian")
        space, forms = hessian.space, []
        basis = torch.empty(0, space.here, device=self.network.device) if self.top is None else self.top.basis
        exact = 0.0 if self.top is None else self.top.diagonal
        for i in range(_PROBES):
            draw = torch.randint(0, 2, (space.size,), generator=generator(self.options.seed, 2 * self.step + i))
            vector = space.part(draw.float() * 2 - 1).to(self.network.device, hessian.precision)
            if len(basis):
                vector, _ = orthogonal(vector, basis, space)
            self.products += 1
            forms.append(float(space.dot(vector.double()[None], hessian(vector).double())[0]))
        values = torch.tensor(forms, dtype=torch.float64)
        error = math.sqrt(self.memory.spread.add(values) / len(forms))
        return Estimate(exact + float(values.mean()), error, details={"error_of": "draws", "probes": len(forms)})

    def gradient_norm(self) -> Estimate:
        """||g|| of the probe's mean loss."""
        return Estimate(self._norm(self.gradient()[1]), details={"probe_loss": self.gradient()[0]})

    def critical_sharpness(self) -> Estimate:
        """Along the probe's gradient, in units of the eigenvalue."""
        start, gradient = self.gradient()
        if not self._norm(gradient) > 0:
            raise Undefined("the probe's gradient is 0", "no_gradient")
        weights = self.network.parameters.flat()
        return self._critical("critical_step", weights, gradient, start)

    def update_sharpness(self) -> Estimate:
        """Along the optimizer's last update over its rate, from the weights before it, in units of the threshold."""
        if self.memory.before is None:
            raise Undefined(
                "the weights before the last step are not known: call tracker.step() at every step", "no_update"
            )
        before = self.memory.before.to(self.network.device)
        rate = self.rate()
        after = self.network.parameters.flat()
        if rate is None or before.shape != after.shape:
            raise Undefined(
                "an update's sharpness is in units of the learning rate: give the tracker its optimizer", "rate"
            )
        update = (before.double() - after.double()) / rate
        if not self._norm(update) > 0:
            raise Undefined("the last step did not move the weights", "no_update")
        return self._critical("update_step", before, update, None)

    def distance(self) -> Estimate:
        """||w - w_0||, w_0 where tracking began; details: relative to ||w_0||."""
        weights = self.network.parameters.flat()
        if self.memory.initial is None or self.memory.initial.shape != weights.shape:
            raise Undefined("the weights where tracking began are not known", "no_initial")
        initial = self.memory.initial.to(weights)
        far, size = (self._norm(v.double()) for v in (weights - initial, initial))
        return Estimate(far, details={"relative": far / size if size > 0 else None})

    def of_optimizer(self) -> dict[str, float]:
        """Numbers that PertOPT and SAM know without a pass."""
        own = own_of(self.optimizer)
        if isinstance(own, PertOPT) and not own.drawn:
            found = own.diagnostics()
            names = ("kappa_bound", "curvature_bound", "gated", "relative_noise")
            known = {f"pertopt/{name}": float(getattr(found, name)) for name in names}
            h = own.mean_h()
            return known if h is None else known | {"pertopt/h": h}
        if isinstance(own, SAM):
            last = own.last
            risen = {} if last is None else {"sam/rise": float(last.rise)}
            edge = None if self._gradient is None else sam_threshold(self.optimizer, self._norm(self._gradient[1]))
            return risen if edge is None else risen | {"sam/threshold": edge}
        return {}

    def stability(self) -> Stability:
        """Stability of the optimizer as it is now.

        Raises:
            Undefined: there is no optimizer, or nothing is known of it.
        """
        if self.optimizer is None:
            raise Undefined("no optimizer was given: its threshold is not known", "no_optimizer")
        if not isinstance(self.network, Minimum):
            raise Undefined("an optimizer's state in shards is not looked at", "sharded")
        if self._stability is None:
            self._stability = stability(self.optimizer, self.network.parameters.tensors)
        return self._stability

    def rate(self) -> float | None:
        """The largest learning rate."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        rates = [float(group["lr"]) for group in groups if group.get("lr") is not None]  # Adafactor may choose
        return max(rates) if rates and max(rates) > 0 else None

    def gradient(self) -> tuple[float, Tensor]:
        """The probe's mean loss and its gradient; free where there are Hessian products."""
        if self._gradient is None:
            hessian = self._products["hessian"][1] if "hessian" in self._products else None
            if isinstance(hessian, Products):
                self._gradient = hessian.value_and_gradient()
            else:
                self._gradient = self.network.mean_gradient(self.rows)
        return self._gradient

    def _of(self, curvature: Curvature) -> Any:
        """The products, whose graphs are kept; made anew after batches were halved."""
        size, products = self._products.get(curvature, (0, None))
        if size != self.network.batch_size:
            products = products_of(self.network, self.rows, curvature)  # type: ignore[arg-type]
            self._products[curvature] = self.network.batch_size, products
        return products

    def _followed(self, name: str, product: Any, of: Any = None) -> Estimate:
        of = product if of is None else of
        follower = self.memory.follower(name, self.options)
        top = follower.look(product, of.space, dtype=of.precision, device=self.network.device)
        self.products += top.products
        if name == "eigenvalue":
            self.top = top
        if not top.converged:
            raise _unconverged(top)
        return Estimate(top.value, details=_details(top))

    def _critical(self, kind: str, weights: Tensor, direction: Tensor, start: float | None) -> Estimate:
        network = self.network

        def loss(step: float) -> float:
            with network.at((weights.double() - step * direction).to(weights.dtype)):
                return float(network.losses(self.rows).mean())

        guess = self.memory.steps.get(kind)
        if guess is None:
            known = None if self.top is None or not self.top.value > 0 else 2.0 / self.top.value
            guess = known or self.rate() or 1.0
        found = critical(loss, guess, self.options.step_tolerance, start)
        self.memory.steps[kind] = found.step
        return Estimate(found.sharpness, details={"step": found.step, "forward_passes": found.evaluations})

    def _norm(self, vector: Tensor) -> float:
        return float(self.network.parameters.total(vector.square().sum()).sqrt())


def _details(top: Top) -> dict[str, Any]:
    return {
        "residual": top.residual,
        "error": top.error,
        "second": top.second,
        "products": top.products,
        "fresh": top.fresh,
    }


def _unconverged(top: Top) -> Undefined:
    return Undefined(
        f"not converged after {top.products} products: the residual is {top.residual:.2g} at a Ritz value of "
        f"{top.value:.4g}",
        "unconverged",
    )
