"""Hugging Face models as they come (random weights): dict batches, masks, tied heads, `.logits`, sdpa attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flatminima.core.minimum import Minimum
from flatminima.core.samples import map_tensors
from flatminima.statistics import FisherDiagonal, Gram, HessianProbes

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'flatminima[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the library warns about is not ours

N, T, V = 8, 6, 40
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


def text(labels: str) -> Rows:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (N, T), generator=g)
    mask = torch.ones_like(ids)
    mask[::3, -2:] = 0
    target = ids.masked_fill(mask == 0, -100) if labels == "tokens" else torch.randint(0, 3, (N,), generator=g)
    return Rows({"input_ids": ids, "attention_mask": mask, "labels": target})


def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 3, 8, 8, generator=g).double(), torch.randint(0, 3, (N,), generator=g)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config), text("tokens"), "causal_lm"


def llama() -> Any:
    config = transformers.LlamaConfig(vocab_size=V, num_key_value_heads=2, max_position_embeddings=T, **SMALL)
    return transformers.LlamaForCausalLM(config), text("tokens"), "causal_lm"


def bert() -> Any:
    config = transformers.BertConfig(vocab_size=V, max_position_embeddings=T, num_labels=3, **SMALL)
    return transformers.BertForSequenceClassification(config), text("classes"), "cross_entropy"


def vit() -> Any:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config), images(), "cross_entropy"


@pytest.mark.parametrize("make", [gpt2, llama, bert, vit], ids=lambda f: f.__name__)
def test_gradients_and_hessian_products_of_transformers(make: Any) -> None:
    """Layer rules against one autograd pass a sample, and a Hessian product against differences of gradients."""
    torch.manual_seed(0)
    model, data, loss = make()
    model = model.double().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    minimum = Minimum(model, data, loss)
    assert minimum.follows_layers
    order = minimum.samples.order(0)
    inputs, targets = minimum.samples.take(order)

    def gradient(i: slice) -> Tensor:
        part = map_tensors(lambda t: t[i], inputs)
        out = model(**part) if isinstance(part, dict) else model(part)
        total = minimum.loss(out.logits, targets[i]).sum()
        grads = torch.autograd.grad(total, minimum.parameters.tensors, allow_unused=True, materialize_grads=True)
        return torch.cat([t.reshape(-1) for t in grads])

    jacobian = torch.stack([gradient(slice(i, i + 1)) for i in range(N)])
    gram = minimum[Gram(N, 1, 0)].matrices()[0]
    rtol = 1e-5 if make is llama else 1e-8  # its RMSNorm computes in float32, whatever the weights are
    torch.testing.assert_close(gram, jacobian @ jacobian.T, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(minimum[FisherDiagonal()], jacobian.square().mean(0), rtol=rtol, atol=1e-10)

    from flatminima.statistics.hessian import rademacher

    found = float(minimum[HessianProbes(1, None, 0)].traces)
    weights = minimum.parameters.flat()
    probe = rademacher(weights, 0, 0)
    step = 1e-4  # some of these networks compute norms in float32 whatever their weights: a wide step, a wide tolerance
    sides = []
    for sign in (1, -1):
        minimum.parameters.assign(weights + sign * step * probe)
        sides.append(gradient(slice(None)))
    minimum.parameters.assign(weights)
    expected = float(probe @ (sides[0] - sides[1])) / (2 * step) / N
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
