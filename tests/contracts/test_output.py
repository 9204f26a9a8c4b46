"""Whatever a network returns beside its logits: named once with `output=`, every measure is that of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, audit, catalog, measure, measures
from flatminima.budgets import names
from flatminima.cli.explain import part


class Both(nn.Module):
    """Features and logits, or logits alone; BatchNorm, and no bias, so that every measure is defined."""

    def __init__(self, both: Any) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False)
        self.both = both

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.norm(self.a(x)))
        return self.both(hidden, self.b(hidden))


FORMS: dict[str, tuple[Any, Any]] = {
    "a position": (lambda h, z: (h, z), 1),
    "a name": (lambda h, z: {"hidden": h, "scores": z}, "scores"),
    "a function": (lambda h, z: [h, [z]], lambda out: out[1][0]),
}
X, Y = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(60) % 3


def minimum(both: Any, output: Any = None) -> Minimum:
    torch.manual_seed(0)
    return Minimum(Both(both).double().eval(), (X, Y), output=output)


@pytest.fixture(scope="module")
def plain() -> Any:
    return measure(minimum(lambda h, z: z), names("thorough"))


@pytest.mark.parametrize("form", FORMS)
def test_every_measure_is_that_of_the_named_output(form: str, plain: Any) -> None:
    found = measure(minimum(*FORMS[form]), names("thorough"))
    assert set(found) == set(plain) == set(catalog.MEASURES)
    for name, estimate in found.items():
        assert (estimate.value, estimate.undefined) == (plain[name].value, plain[name].undefined), name


@pytest.mark.parametrize("options", [{"logit_norm": 25.0}, {"batchnorm": "batch", "chunk": 5}], ids=str)
def test_variants_and_other_networks_of_the_same_kind_take_the_named_output(options: dict[str, Any]) -> None:
    both, output = FORMS["a position"]
    one, two = minimum(lambda h, z: z), minimum(both, output)
    expected = measures.fisher_trace(one, subset=10, trials=2, **options).value
    assert expected is not None and measures.fisher_trace(two, subset=10, trials=2, **options).value == expected
    assert part(two).output == output


def test_the_audit_takes_the_named_output() -> None:
    both, output = FORMS["a name"]
    one, two = audit(minimum(lambda h, z: z), ["fisher_trace"]), audit(minimum(both, output), ["fisher_trace"])
    assert str(one) == str(two) and "moves" in str(one)
