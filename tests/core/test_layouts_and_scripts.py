"""Networks whose tensors or code torch holds in another form: sparse embeddings and buffers, TorchScript.

The truth is the same network in the ordinary form; its numbers are compared with autograd's in other files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum, measure
from flatminima.errors import ModelError

TOKENS = torch.randint(0, 10, (60, 4), generator=torch.Generator().manual_seed(0))
X, Y = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
MEASURES = ["fisher_trace", "fisher_logdet", "hessian_trace", "gradient_signal_to_noise", "pacgen", "path_norm"]


def table(model: nn.Module, x: Tensor) -> dict[str, str]:
    return {name: str(e) for name, e in measure(Minimum(model, (x, Y)), MEASURES, budget="fast").estimates.items()}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


class Words(nn.Module):
    def __init__(self, kind: str, sparse: bool) -> None:
        super().__init__()
        self.kind, self.sparse = kind, sparse
        if kind == "bag":
            self.table: nn.Module = nn.EmbeddingBag(10, 5, mode="sum", sparse=sparse)
        elif kind == "module":
            self.table = nn.Embedding(10, 5, padding_idx=0, sparse=sparse)
        else:
            self.weight = nn.Parameter(torch.randn(10, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.kind == "bag":
            return self.head(self.table(tokens).tanh())
        found = self.table(tokens) if self.kind == "module" else F.embedding(tokens, self.weight, sparse=self.sparse)
        return self.head(found.tanh().mean(1))


@pytest.mark.parametrize("kind", ["module", "function", "bag"])
def test_sparse_embeddings(kind: str) -> None:
    """Their gradients hold rows alone, which reshape and cat do not take."""
    sparse, dense = (seeded(lambda s=s: Words(kind, s)) for s in (True, False))  # type: ignore[misc]
    assert table(sparse, TOKENS) == table(dense, TOKENS)


class Graph(nn.Module):
    """A graph convolution over six nodes."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        edges = (torch.rand(6, 6) < 0.4).float() + torch.eye(6)
        self.register_buffer("edges", edges / edges.sum(1, keepdim=True))
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        if layout != torch.strided:
            self.edges = self.edges.to_sparse(layout=layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.edges @ self.first(x).tanh().T).T)


@pytest.mark.filterwarnings("ignore:Sparse CS")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_adjacency_buffers(layout: torch.layout) -> None:
    """The guard copies, compares and hashes them; a change is seen."""
    sparse = seeded(lambda: Graph(layout))
    before = sparse.edges.to_dense().clone()
    assert table(sparse, X) == table(seeded(lambda: Graph(torch.strided)), X)
    assert sparse.edges.layout == layout and torch.equal(sparse.edges.to_dense(), before)


def _plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


class Partly(nn.Module):
    """A compiled layer within an ordinary network."""

    def __init__(self, plain: nn.Sequential) -> None:
        super().__init__()
        self.compiled, self.rest = torch.jit.script(plain[:2]), plain[2:]

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.compiled(x))


SCRIPTS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "script": torch.jit.script,
    "trace": lambda plain: torch.jit.trace(plain, X[:5]),
    "partly": Partly,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SCRIPTS)
def test_torchscript(name: str) -> None:
    plain = seeded(_plain)
    compiled = SCRIPTS[name](copy.deepcopy(plain)).eval()
    before = {k: v.clone() for k, v in compiled.state_dict().items()}
    found, right = table(compiled, X), table(plain, X)
    assert "TorchScript's operations cannot be followed" in found.pop("path_norm")
    del right["path_norm"]
    assert found == right
    assert all(torch.equal(v, before[k]) for k, v in compiled.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_that_cannot_be_measured() -> None:
    dropout = torch.jit.script(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)))
    with pytest.raises(ModelError, match=r"in training mode and 1 is Dropout.*call model\.eval\(\)"):
        Minimum(dropout.train(), (X, Y))
    with pytest.raises(ModelError, match="no trainable parameter"):
        Minimum(torch.jit.freeze(torch.jit.script(seeded(_plain))), (X, Y))


class Counts(nn.Module):
    """Compiled code that replaces a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.layer(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_buffers_of_torchscript_come_back() -> None:
    model = torch.jit.script(seeded(Counts))
    table(model, X)
    assert int(model.calls) == 0
