"""Every measure on the networks that people have: a finite number, or undefined with its reason. Tiny sizes, all pairs.

Which pairs are undefined is written down too: a network that a measure loses in silence shows up here.
"""

import math
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from measure_networks import SMALL, generator
from torch import nn

from flatminima import Minimum, catalog, measure, models

N, CLASSES = 12, 3
MEASURES = sorted(catalog.MEASURES)
# of ReLU networks, over margins
NORMS = {"frobenius_norm", "group_norm", "lipschitz", "path_norm", "spectral_complexity", "spectral_norm"}
RELU = NORMS | {"vc_dimension"}
NO_CLASSES = NORMS | {"margin", "output_entropy", "robustness"}
TRANSFORMER = {"group_norm", "lipschitz", "path_norm", "vc_dimension"}  # the others are products over matrices there
# no initial weights are given; the conditions are of networks of layers and ReLU alone, without biases
ALWAYS = {"distance_from_init", "conditions", "perturbation_score"}
LARGE = {"fisher_logdet_full"}  # more parameters than a full matrix has room for


class Post(nn.Module):
    """A post-activation residual block (He et al. 2015) between a stem and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.norm_a = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.short, self.norm_short = nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        out = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return self.head(F.relu(out + self.norm_short(self.short(x))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(3, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def _separable():
    """Depthwise, grouped and pointwise convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def _images(size=8):
    return torch.randn(N, 3, size, size, generator=generator(0)), torch.arange(N) % CLASSES


def _rows(width=4):
    return torch.randn(N, width, generator=generator(0)), torch.arange(N) % CLASSES


def _sequences():
    return torch.randn(N, 4, 3, generator=generator(0)), torch.arange(N) % CLASSES


def _transformer(kind):
    """Model, data, loss of `transformers`, random weights."""
    t = pytest.importorskip("transformers", reason="needs transformers: pip install 'flatminima[hf]'")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    ids = torch.randint(0, 7, (N, 3), generator=generator(1))
    mask = torch.ones_like(ids)
    mask[::3, -1] = 0
    if kind == "vit":
        config = t.ViTConfig(image_size=8, patch_size=4, num_labels=CLASSES, **small)
        return t.ViTForImageClassification(config), _images(), "cross_entropy"
    if kind == "bert":
        config = t.BertConfig(vocab_size=7, max_position_embeddings=3, num_labels=CLASSES, **small)
        rows = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(N) % CLASSES}
        return t.BertForSequenceClassification(config), _Rows(rows), "cross_entropy"
    labels = ids.masked_fill(mask == 0, -100)
    rows = _Rows({"input_ids": ids, "attention_mask": mask, "labels": labels})
    if kind == "gpt2":
        config = t.GPT2Config(
            vocab_size=7, n_positions=3, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        return t.GPT2LMHeadModel(config), rows, "causal_lm"
    config = t.LlamaConfig(
        vocab_size=7, num_key_value_heads=2, max_position_embeddings=3, tie_word_embeddings=True, **small
    )
    return t.LlamaForCausalLM(config), rows, "causal_lm"


class _Rows(torch.utils.data.Dataset):
    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


def _network(make, data, loss="cross_entropy"):
    return lambda: (make(), data(), loss)


def _regression():
    x, _ = _rows()
    return x, torch.randn(N, 2, generator=generator(3))


def _several_labels():
    x, _ = _rows()
    return x, (torch.rand(N, 5, generator=generator(3)) > 0.5).float()


def _mlp(out=CLASSES):
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, out))


def _stack(before, after):
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]


def _vgg():
    pooled = [*_stack(3, 4), *_stack(4, 8)]
    return nn.Sequential(*pooled, nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, CLASSES))


# how to make it, and what is undefined there
NETWORKS = {
    "mlp": (_network(_mlp, _rows), set()),
    "vgg": (_network(_vgg, _images), set()),
    "pre-activation resnet": (_network(partial(models.resnet20, depth=8, classes=CLASSES), _images), LARGE),
    "post-activation resnet": (_network(Post, _images), set()),
    "wide resnet": (_network(partial(models.wide_resnet, 10, 1, classes=CLASSES), _images), LARGE),
    "densenet": (_network(partial(models.densenet, depth=10, growth=8, classes=CLASSES), _images), LARGE),
    "depthwise and grouped": (_network(_separable, _images), set()),
    "lstm": (_network(partial(Recurrent, nn.LSTM), _sequences), RELU),
    "gru": (_network(partial(Recurrent, nn.GRU), _sequences), RELU),
    "regression": (_network(partial(_mlp, 2), _regression, "mse"), NO_CLASSES),
    "several labels": (_network(partial(_mlp, 5), _several_labels, "binary_cross_entropy"), NO_CLASSES),
    "vit": (partial(_transformer, "vit"), TRANSFORMER),
    "bert": (partial(_transformer, "bert"), TRANSFORMER),
    "gpt2": (partial(_transformer, "gpt2"), TRANSFORMER),
    "llama, tied": (partial(_transformer, "llama"), TRANSFORMER),
}


def small(name):
    return partial(catalog.MEASURES[name].load(), **SMALL.get(name, {}))


@cache
def table(key):
    """Every measure of one network, in one table."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data, loss = NETWORKS[key][0]()
    model = model.eval()
    if loss == "cross_entropy" and isinstance(data, tuple):  # labels it agrees with, so that margins are positive
        with torch.no_grad():
            out = model(data[0])
        data = (data[0], getattr(out, "logits", out).argmax(1))
    return measure(Minimum(model, data, loss, batch_size=8), [small(name) for name in MEASURES])


def _row(key, name):
    return next(estimate for row, estimate in table(key).items() if row.partition("(")[0] == name)


each_network = pytest.mark.parametrize(
    "key", [pytest.param(k, marks=pytest.mark.xdist_group(f"every measure of {k}")) for k in NETWORKS]
)


@pytest.mark.filterwarnings("ignore")  # what transformers warns about is not ours
@each_network
def test_every_measure_is_a_number_or_says_why_not(key):
    for name in MEASURES:
        found = _row(key, name)
        if found.undefined is None:
            assert math.isfinite(found.value), name
            assert found.stderr is None or math.isfinite(found.stderr), name
        else:
            assert len(found.undefined) > 10, name


@pytest.mark.filterwarnings("ignore")
@each_network
def test_what_is_undefined_is_what_is_expected(key):
    """Neither a measure that a network has lost, nor one that makes up a number for it."""
    undefined = {name for name in MEASURES if _row(key, name).undefined}
    assert undefined == NETWORKS[key][1] | ALWAYS


@pytest.mark.parametrize("key", ["pre-activation resnet", "wide resnet", "densenet"])
def test_batchnorm_before_a_convolution_is_a_layer_of_its_own(key):
    found = _row(key, "spectral_norm").details
    assert found["diagonal"]
    assert found["branches"]
    assert _row(key, "lipschitz").details["log_constant"] != pytest.approx(
        _row(key, "lipschitz").details["log_product"]
    )


@pytest.mark.parametrize("key", ["vgg", "post-activation resnet", "depthwise and grouped"])
def test_batchnorm_behind_a_convolution_is_folded(key):
    found = _row(key, "spectral_norm").details
    assert found["diagonal"] == []
    assert found["folded"] > 0
