"""Products of norms of transformers' weight matrices, against singular values and merged adapters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from flatminima import Minimum, measure
from flatminima.measures import (
    frobenius_norm,
    lipschitz,
    path_norm,
    power_law_exponent,
    spectral_complexity,
    spectral_norm,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is not ours


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        h = self.norm(x)
        return self.head(x + self.attention(h, h, h, need_weights=False)[0])


def transformer() -> Minimum:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (12, 5))
    return Minimum(Block().double().eval(), (tokens, tokens), "causal_lm")


def test_the_products_are_those_of_the_matrices_singular_values():
    """Tied weights once, vectors not at all, no margin, no constants; balanced is their geometric mean."""
    minimum = transformer()
    weights = [p.detach() for p in minimum.model.parameters() if p.dim() == 2]
    assert len(weights) == 3  # the tied one, the projections' three, the output's
    two = [float(torch.linalg.svdvals(w)[0]) ** 2 for w in weights]
    fro = [float(w.square().sum()) for w in weights]
    log_two, log_fro = sum(map(math.log, two)), sum(map(math.log, fro))
    table = measure(minimum, [frobenius_norm, spectral_norm, spectral_complexity, path_norm, lipschitz])
    assert table["frobenius_norm"].value == pytest.approx(log_fro, rel=1e-12)
    assert table["spectral_norm"].value == pytest.approx(log_two, rel=1e-10)
    ratios = sum(f / t for f, t in zip(fro, two, strict=True))
    assert table["spectral_complexity"].value == pytest.approx(log_two + math.log(ratios), rel=1e-10)
    assert "no margin" in table["spectral_norm"].details["note"]
    assert table["spectral_norm"].details["layers"].keys() == {
        "words.weight", "attention.in_proj_weight", "attention.out_proj.weight"
    }  # fmt: skip
    balanced = frobenius_norm(minimum, normalise="balanced")
    assert balanced.value == pytest.approx(math.log(3) + log_fro / 3, rel=1e-12)
    assert "Kim" in table["lipschitz"].undefined and table["path_norm"].value is None


def test_a_matrix_of_zeros_and_other_networks_have_no_product():
    minimum = transformer()
    with torch.no_grad():
        minimum.model.attention.out_proj.weight.zero_()
    again = Minimum(minimum.model, (minimum.samples.inputs, minimum.samples.targets), "causal_lm")
    assert "all zeros" in spectral_norm(again).undefined
    plain = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3)).eval()
    tokens = torch.randint(0, 9, (12, 5))
    assert "int64" in frobenius_norm(Minimum(plain, (tokens, tokens[:, 0] % 3))).undefined


def test_huge_and_tiny_matrices_keep_their_digits():
    minimum = transformer()
    before = spectral_norm(minimum).value
    with torch.no_grad():
        minimum.model.attention.in_proj_weight.mul_(1e-200)
    again = Minimum(minimum.model, (minimum.samples.inputs, minimum.samples.targets), "causal_lm")
    assert spectral_norm(again).value == pytest.approx(before - 400 * math.log(10), rel=1e-10)


class Mixed(nn.Module):
    """Twelve and more eigenvalues a layer, and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(12), nn.Linear(12, 14), nn.Linear(14, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(self.norm(x))))


class Adapter(nn.Module):
    """A low-rank adapter in torch's own way, with two matrices that are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 12)), nn.Parameter(torch.randn(14, 2))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def _pruned_twice(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.4)
    return prune.random_unstructured(layer, "weight", 0.3)


MAKERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
    "adapter": lambda layer: parametrize.register_parametrization(layer, "weight", Adapter(), unsafe=True),
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": _pruned_twice,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_are_those_in_effect(kind):
    """Numbers and names are those of a plain layer that holds the weight that is made; nothing is moved by the look."""
    torch.manual_seed(0)
    net, x, y = Mixed().double(), torch.randn(30, 12, dtype=torch.float64), torch.arange(30) % 12
    MAKERS[kind](net.a)
    net.double()(x)
    with torch.no_grad():
        for p in net.parameters() if kind != "orthogonal" else ():  # which torch then makes zeros of
            p.add_(0.3 * torch.rand_like(p))
    net.eval()(x)
    plain = Mixed().double()
    kept = {name: p for name, p in net.named_parameters() if not name.startswith("a.") or name == "a.bias"}
    plain.load_state_dict({**kept, "a.weight": net.a.weight.detach()})
    before = {name: t.clone() for name, t in net.state_dict().items()}
    made, expected = Minimum(net, (x, y)), Minimum(plain.eval(), (x, y))
    for measured in (frobenius_norm, spectral_norm, spectral_complexity):
        assert measured(made).value == pytest.approx(measured(expected).value, rel=1e-9)
    assert set(spectral_norm(made).details["layers"]) == {"a.weight", "b.weight"}
    fits = [power_law_exponent(m, max_error=math.inf).details["fits"] for m in (made, expected)]
    assert fits[0].keys() == fits[1].keys() >= {"b.weight"}
    for name in fits[0].keys() - {"a.weight"} if kind == "orthogonal" else fits[0]:  # whose eigenvalues are 1 and 1
        assert fits[0][name] == pytest.approx(fits[1][name], rel=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_made_weight_follows_what_it_is_made_from():
    """The old hook's attribute is that of the last forward pass, which may be another file's."""
    net, x = Mixed().double(), torch.randn(9, 12, dtype=torch.float64)
    nn.utils.weight_norm(net.a)
    with torch.no_grad():
        net.a.weight_g.mul_(10.0)
    found = spectral_norm(Minimum(net, (x, torch.arange(9)))).details["layers"]["a.weight"]
    net(x)
    assert found == pytest.approx(2 * math.log(float(torch.linalg.matrix_norm(net.a.weight, 2))), rel=1e-10)


def test_a_weight_that_one_layer_makes_and_another_takes_as_it_is():
    """Two matrices; a parametrized layer that is called in two places is one."""
    net, x = Mixed().double(), torch.randn(9, 12, dtype=torch.float64)
    net.a, net.b = nn.Linear(12, 12, bias=False).double(), nn.Linear(12, 12).double()
    net.b.weight, net.again = net.a.weight, net.a
    parametrizations.spectral_norm(net.a)
    found = spectral_norm(Minimum(net.eval(), (x, torch.arange(9)))).details["layers"]
    assert list(found) == ["b.weight", "a.weight"]
    assert found["a.weight"] == pytest.approx(0, abs=0.05) and found["b.weight"] != pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("kind", ["lora", "dora", "head", "ia3"])
def test_adapters_count_as_what_they_make_of_their_layer(kind):
    """Against the merged model: W + (alpha / r) B A, not W, A and B as three matrices, nor a head that was replaced."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'flatminima[hf]'")
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'flatminima[hf]'")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    torch.manual_seed(0)
    tokens = torch.randint(1, 11, (9, 6))
    common = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapter = {
        "lora": lambda: peft.LoraConfig(r=2, init_lora_weights=False, **common),
        "dora": lambda: peft.LoraConfig(r=2, init_lora_weights=False, use_dora=True, **common),
        "head": lambda: peft.LoraConfig(r=2, init_lora_weights=False, modules_to_save=["score"], **common),
        "ia3": lambda: peft.IA3Config(feedforward_modules=[], init_ia3_weights=False, **common),
    }[kind]()
    model = peft.get_peft_model(transformers.GPT2ForSequenceClassification(config), adapter).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.3)
    data = (tokens, torch.arange(9) % 2)
    before = [p.detach().clone() for p in model.parameters()]
    found = {f.__name__: f(Minimum(model, data)) for f in (frobenius_norm, spectral_norm)}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    merged = model.merge_and_unload().eval().requires_grad_()
    for name, estimate in found.items():
        truth = measure(Minimum(merged, data), [name])[name]
        assert estimate.value == pytest.approx(truth.value, rel=1e-9)
        assert len(estimate.details["layers"]) == len(truth.details["layers"]) == 7
