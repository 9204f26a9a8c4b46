"""Where memory runs out, batches halve and the work begins anew: the same numbers, the model untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measure
from flatminima.core.gradient_check import out_of_memory
from flatminima.errors import NumericalError

NAMES = ["fisher_logdet", "fisher_trace", "pacgen", "expected_sharpness", "hessian_trace", "robustness", "sharpness"]


def cuda() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def cpu() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


@dataclass
class Limits:
    room: int
    late: int


class Room(nn.Module):
    """A network that fits `room` samples; `late` lets the first forward passes of a full batch through."""

    def __init__(self, room: int, error: Callable[[], Exception] = cuda, late: int = 0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.limits = Limits(room, late)  # an object of its own: the guard puts attributes and collections back
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limits.room:
            if not self.limits.late:
                raise self.error()
            self.limits.late -= 1
        out: Tensor = self.net(x)
        return out


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 3, generator=generator, dtype=torch.float64), torch.arange(40) % 2


def table(model: nn.Module, batch_size: int = 32):  # type: ignore[no-untyped-def]
    from functools import partial

    from flatminima import measures

    small = [partial(getattr(measures, n), subset=2) if n.startswith("fisher") else n for n in NAMES]
    m = Minimum(model.eval(), data(), batch_size=batch_size)
    return m, measure(m, small)


@pytest.mark.parametrize(
    ("error", "late"),
    [(cuda, 0), (cpu, 0), (MemoryError, 0), (cuda, 3), (cuda, 60)],
    ids=["cuda", "cpu", "python", "in admission", "later"],
)
def test_the_same_numbers_in_smaller_batches(error: Callable[[], Exception], late: int) -> None:
    torch.manual_seed(0)
    model = Room(5, error, late)
    before = copy.deepcopy(model.state_dict())
    m, found = table(model)
    assert m.batch_size == 4 and "batches halved to 4 samples, because memory ran out" in found.notes
    model.limits.room = 1000
    _, whole = table(model)
    for name in found:
        assert float(found[name]) == pytest.approx(float(whole[name]), rel=1e-9), name
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("halved" in note for note in whole.notes)


def test_not_even_one_sample_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    m = Minimum(Room(1000).eval(), data())
    full = property(lambda self: 0, lambda self, room: None)  # of the class: the network is the same
    monkeypatch.setattr(Limits, "room", full, raising=False)
    with pytest.raises(NumericalError, match=r"one sample at a time .CUDA out of memory"):
        measure(m, ["margin"])


def test_other_errors_are_not_memory() -> None:
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="allocate"):  # what torch says today
        torch.empty(10**15)
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        assert out_of_memory(error)


def test_a_check_of_second_derivatives_that_ran_out_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was remembered as passed from its first moment on."""
    from flatminima.statistics import second_derivatives

    real, calls = second_derivatives._examine, list[str]()

    def failing(minimum: Minimum, curvature: str) -> object:
        calls.append(curvature)
        if len(calls) == 1:
            raise cpu()
        return real(minimum, curvature)

    monkeypatch.setattr(second_derivatives, "_examine", failing)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 2
    value = measure(Minimum(Room(20).eval(), (x, y)), ["hessian_trace"])["hessian_trace"].value
    assert value is not None and calls == ["hessian", "hessian"]
