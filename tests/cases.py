"""One table of networks, ragged on purpose: seven samples, odd sizes, float64, weights and statistics all random.

`TRUTHS` of `truth.py` says what their per-sample gradients, Hessians and Gauss-Newton matrices are.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from case_networks import (
    Attention,
    Case,
    N,
    Net,
    Raw,
    Shifted,
    causal_tokens,
    checkpointed,
    conv_net,
    frozen,
    in_two_places,
    log_cosh,
    masked_tokens,
    mlp,
    numbers,
    regression,
    saturating,
    shared_weight,
    smoothed,
    tied_language_model,
    tokens,
    write_after_use,
    write_input,
)

L = nn.Linear
LAYERS = [
    Case("mlp", mlp, numbers(3), seed=10),
    Case("linear without bias", lambda: nn.Sequential(L(3, 4, bias=False), nn.Tanh(), L(4, 3, bias=False)), numbers(3)),
    Case("frozen weight", lambda: frozen(mlp(), "0.weight", "2.bias"), numbers(3), seed=10),
    Case("only a bias", lambda: frozen(mlp(), *(f"{i}.weight" for i in (0, 2, 4))), numbers(3), seed=10),
    Case(
        "sequences, products of steps",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)).mean(1)), a=L(9, 8), b=L(8, 3)),
        numbers(2, 9),
    ),
    Case(
        "sequences, gradients formed",
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)).mean(1)), a=L(3, 2), b=L(2, 3)),
        numbers(11, 3),
    ),
    Case(
        "sequences from a transposed tensor, bias frozen",
        lambda: frozen(Net(lambda s, x: s.b(s.a(x.transpose(1, 2)).tanh().sum(1)), a=L(9, 8), b=L(8, 3)), "a.bias"),
        numbers(9, 2),
    ),
    Case(
        "grids",
        lambda: Net(lambda s, x: s.b(s.a(x).tanh().flatten(1)), a=L(3, 2), b=L(12, 3)),
        numbers(2, 3, 3),
    ),
    Case(
        "conv1d",
        lambda: conv_net(nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), nn.AdaptiveAvgPool1d(2), 8),
        numbers(2, 10),
    ),
    Case(
        "conv2d with leftover columns",
        lambda: conv_net(
            nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(1, 2), groups=2),
            nn.AdaptiveAvgPool2d(1),
            6,
        ),
        numbers(4, 6, 7),
    ),
    Case(
        "conv2d same",
        lambda: conv_net(nn.Conv2d(2, 3, (3, 1), padding="same", dilation=(2, 1)), nn.MaxPool2d(2), 12),
        numbers(2, 4, 5),
    ),
    Case(
        "conv2d circular",
        lambda: conv_net(
            nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular", bias=False), nn.AvgPool2d(2), 12
        ),
        numbers(2, 4, 3),
    ),
    Case(
        "conv2d reflect same",
        lambda: conv_net(nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), nn.AvgPool2d(2), 12),
        numbers(2, 4, 4),
    ),
    Case(
        "conv2d depthwise",
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten(), L(8, 3)
        ),
        numbers(3, 4, 4),
    ),
    Case(
        "conv3d",
        lambda: conv_net(nn.Conv3d(2, 2, (2, 3, 2), stride=(1, 2, 1), padding=1), nn.AdaptiveAvgPool3d(1), 2),
        numbers(2, 3, 4, 3),
    ),
    Case(
        "channels last",
        lambda: Net(
            lambda s, x: s.fc(s.conv(x.to(memory_format=torch.channels_last)).relu().mean((2, 3))),
            conv=nn.Conv2d(3, 4, 3),
            fc=L(4, 3),
        ),
        numbers(3, 5, 5),
    ),
    Case(
        "batch_norm1d",
        lambda: nn.Sequential(nn.BatchNorm1d(3), L(3, 4), nn.BatchNorm1d(4), nn.ReLU(), L(4, 3)),
        numbers(3),
        seed=4,
    ),
    Case(
        "batch_norm1d of sequences",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), L(9, 3)),
        numbers(2, 4),
    ),
    Case(
        "batch_norm2d",
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), L(12, 3)
        ),
        numbers(2, 3, 3),
    ),
    Case(
        "batch_norm3d",
        lambda: nn.Sequential(nn.Conv3d(2, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), L(16, 3)),
        numbers(2, 3, 3, 3),
        seed=19,
    ),
    Case(
        "layer_norm",
        lambda: nn.Sequential(L(3, 4), nn.LayerNorm((2, 4)), nn.Tanh(), nn.LayerNorm(4), nn.Flatten(), L(8, 3)),
        numbers(2, 3),
    ),
    Case(
        "group_norm",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), L(16, 3)),
        numbers(2, 3, 3),
    ),
    Case("rms_norm", lambda: nn.Sequential(L(3, 4), nn.RMSNorm(4), nn.Tanh(), nn.Flatten(), L(8, 3)), numbers(2, 3)),
    Case(
        "embedding",
        lambda: Net(lambda s, t: s.b(s.a(t).tanh().flatten(1)), a=nn.Embedding(6, 2, padding_idx=2), b=L(10, 3)),
        tokens(5),
    ),
    Case("embedding of one token", lambda: nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), L(4, 3)),
         lambda: (torch.tensor([0, 5, 5, 2, 2, 2, 1]), torch.arange(N) % 3)),
]  # fmt: skip
NETWORKS = [
    Case("tied embedding and head", tied_language_model, masked_tokens, "token_cross_entropy"),
    Case("a module called twice", lambda: Net(lambda s, x: s.b(s.a(s.a(x).tanh())), a=L(3, 3), b=L(3, 3)), numbers(3)),
    Case(
        "a convolution called twice",
        lambda: Net(lambda s, x: s.b(s.a(s.a(x).tanh()).flatten(1)), a=nn.Conv1d(2, 2, 2), b=L(6, 3)),
        numbers(2, 5),
    ),
    Case("a shared weight", shared_weight, numbers(3)),
    Case("a module in two places", in_two_places, numbers(3)),
    Case(
        "a call without effect",
        lambda: Net(lambda s, x: (s.a(x), s.b(s.a(x).tanh()))[1], a=L(3, 4), b=L(4, 3)),
        numbers(3),
    ),
    Case(
        "transposed convolution",
        lambda: conv_net(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.AvgPool2d(2), 12),
        numbers(2, 2, 2),
        path="vmapped",
    ),
    Case(
        "bilinear of a tuple",
        lambda: Net(lambda s, x, y: s.b(s.a(x, y).tanh()), a=nn.Bilinear(2, 3, 4), b=L(4, 3)),
        lambda: ((torch.randn(N, 2), torch.randn(N, 3)), torch.arange(N) % 3),
        path="vmapped",
    ),
    Case("prelu", lambda: nn.Sequential(L(3, 4), nn.PReLU(4), L(4, 3)), numbers(3), path="vmapped"),
    Case("raw parameters", lambda: nn.Sequential(L(3, 4), Raw(4), L(4, 3)), numbers(3), path="vmapped"),
    Case(
        "instance norm",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Tanh(), L(9, 3)),
        numbers(2, 4),
        path="vmapped",
    ),
    Case(
        "weight_norm",
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(L(3, 4)), nn.Tanh(), L(4, 3)),
        numbers(3),
        path="vmapped",
        twice=False,
    ),
    Case(
        "spectral_norm",
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv1d(2, 3, 2)), nn.Flatten(), L(9, 3)),
        numbers(2, 4),
        path="vmapped",
    ),
    Case(
        "lstm",
        lambda: Net(lambda s, x: s.b(s.a(x)[0][:, -1]), a=nn.LSTM(2, 3, batch_first=True), b=L(3, 3)),
        numbers(4, 2),
        path="samples",
    ),
    Case(
        "multi-head attention",
        lambda: Net(
            lambda s, x: s.b(s.a(x, x, x, need_weights=False)[0].mean(1)),
            a=nn.MultiheadAttention(4, 2, batch_first=True),
            b=L(4, 3),
        ),
        numbers(3, 4),
        path="samples",
    ),
    Case(
        "transformer encoder",
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu"), nn.Flatten(), L(12, 3)
        ),
        numbers(3, 4),
        path="samples",
    ),
    Case(
        "attention",
        lambda: Net(
            lambda s, x: s.head(s.norm(x + s.attention(x)).mean(1)), attention=Attention(4), norm=nn.LayerNorm(4),
            head=L(4, 3),
        ),
        numbers(3, 4),
    ),
    Case(
        "positions without a batch",
        lambda: Net(
            lambda s, t: s.head((s.words(t) + s.places(torch.arange(t.shape[1]))).tanh().mean(1)),
            words=nn.Embedding(6, 4), places=nn.Embedding(4, 4), head=L(4, 3),
        ),
        tokens(4),
        path="samples",
    ),
    Case(
        "time before batch",
        lambda: Net(lambda s, x: s.b(s.a(x.transpose(0, 1)).tanh().mean(0)), a=L(3, 4), b=L(4, 3)),
        numbers(4, 3),  # as many steps as the comparison with autograd has samples
        path="samples",
    ),
    Case(
        "relu in place",
        lambda: nn.Sequential(L(3, 4), nn.ReLU(inplace=True), L(4, 4), nn.ReLU(inplace=True), L(4, 3)),
        numbers(3),
        seed=7,
    ),
    Case(
        "residual in place",
        lambda: Net(
            lambda s, x: s.c(F.relu_(s.b(F.relu(s.a(x))).add_(x))), a=L(3, 4), b=L(4, 3), c=L(3, 3)
        ),
        numbers(3),
    ),
    Case(
        "a layer's input written in place",
        lambda: Net(write_after_use, a=L(3, 4), b=Shifted(4), c=L(8, 3)),
        numbers(3),
        path="vmapped",
    ),
    Case("the data written in place", lambda: Net(write_input, a=L(3, 3)), numbers(3)),
    Case(
        "a weight used behind its layer's back",
        lambda: Net(lambda s, x: F.linear(s.a(x).tanh(), s.b.weight), a=L(3, 4), b=L(4, 3)),
        numbers(3),
        path="samples",
    ),
    Case(
        "a weight used in the open and behind",
        lambda: Net(lambda s, x: F.linear(s.a(x).tanh(), s.a.weight), a=L(3, 3)),
        numbers(3),
        path="samples",
    ),
    Case("checkpointed", lambda: Net(checkpointed, a=L(3, 4), b=L(4, 3)), numbers(3), path="samples"),
    Case("an unused layer", lambda: Net(lambda s, x: s.a(x), a=L(3, 3), spare=L(2, 2)), numbers(3)),
    Case(
        "a branch without trainable layers",
        lambda: frozen(Net(lambda s, x: s.a(x).tanh() + s.b(x), a=L(3, 3), b=L(3, 3)), "a.weight", "a.bias"),
        numbers(3),
    ),
    Case(
        "dict inputs, output with logits",
        lambda: Net(
            lambda s, ids, mask: SimpleNamespace(logits=s.b((s.a(ids) * mask.unsqueeze(2)).sum(1))),
            a=nn.Embedding(6, 4), b=L(4, 3),
        ),
        lambda: (
            {"ids": torch.randint(0, 6, (N, 4)), "mask": (torch.rand(N, 4) > 0.3).double()},
            torch.arange(N) % 3,
        ),
    ),
    Case(
        "tuple inputs, output in a dict",
        lambda: Net(lambda s, x, y: {"logits": s.a(x) * s.b(y), "extra": x}, a=L(2, 3), b=L(3, 3)),
        lambda: ((torch.randn(N, 2), torch.randn(N, 3)), torch.arange(N) % 3),
    ),
    Case(
        "concatenation",
        lambda: Net(lambda s, x: s.b(torch.cat([x, F.relu(s.a(x))], 1)), a=L(3, 4), b=L(7, 3)),
        numbers(3),
    ),
]  # fmt: skip
LOSSES = [
    Case("mse", lambda: nn.Sequential(L(3, 4), nn.Tanh(), L(4, 2)), regression(3), "mse"),
    Case(
        "mse of one number",
        lambda: Net(lambda s, x: s.b(s.a(x).tanh()).squeeze(1), a=L(3, 4), b=L(4, 1)),
        regression(3, size=()),
        "mse",
    ),
    Case(
        "binary_cross_entropy",
        lambda: nn.Sequential(L(3, 4), nn.Tanh(), L(4, 2)),
        lambda: (torch.randn(N, 3), (torch.rand(N, 2) > 0.5).double()),
        "binary_cross_entropy",
    ),
    Case(
        "token_cross_entropy",
        lambda: nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), L(3, 6)),
        masked_tokens,
        "token_cross_entropy",
    ),
    Case("causal_lm", tied_language_model, causal_tokens, "causal_lm"),
    Case("log cosh", lambda: nn.Sequential(L(3, 4), nn.Tanh(), L(4, 2)), regression(3), log_cosh),
    Case("label smoothing", mlp, numbers(3), smoothed, seed=10),
    Case("not convex", lambda: nn.Sequential(L(3, 4), nn.Tanh(), L(4, 2)), regression(3), saturating, convex=False),
]
CASES = [*LAYERS, *NETWORKS, *LOSSES]
BY_NAME = {case.name: case for case in CASES}
