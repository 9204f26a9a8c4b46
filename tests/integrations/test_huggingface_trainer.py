"""The Trainer of transformers around each method, against a loop by hand; resuming, accumulation, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import SequentialSampler

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")

from flatminima.errors import UnknownName, UsageError  # noqa: E402
from flatminima.integrations.huggingface import FlatMinimaTrainer  # noqa: E402
from flatminima.optim import SAM, FisherTrace, PertOPT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory.*")
OPTIONS = {
    "pertopt": {"gamma": 0.3, "eta": 1e4}, "sam": {"rho": 0.2},
    "fisher_trace": {"beta": 5.0, "alpha": 0.1, "sub_batches": 2},
}  # fmt: skip
LENGTH, SIZE, BATCH = 6, 24, 6


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LENGTH, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def data():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (SIZE, LENGTH), generator=g)
    return [{"input_ids": t, "labels": t.sum() % 3} for t in tokens]


class InOrder(FlatMinimaTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def trainer(folder, method, *, kind=InOrder, model=None, **more):
    settings = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "learning_rate": 0.3, "optim": "sgd",
        "max_grad_norm": 0.5, "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": [], "use_cpu": True,
        "seed": 1, "disable_tqdm": True, "logging_strategy": "no",
    } | more  # fmt: skip
    arguments = transformers.TrainingArguments(output_dir=str(folder), **settings)
    options = OPTIONS[method]
    return kind(model or bert(), arguments, train_dataset=data(), method=method, options=options)


def by_hand(method, accumulate=1, epochs=2):
    model = bert().train()
    kinds = {name: ("bias" in name or "LayerNorm" in name) for name, _ in model.named_parameters()}
    groups = [[p for name, p in model.named_parameters() if kinds[name] == kind] for kind in (False, True)]
    base = torch.optim.SGD([{"params": group} for group in groups], 0.3)  # the Trainer's groups: noise runs over them
    opt = {"pertopt": lambda: PertOPT(base, **OPTIONS["pertopt"]), "sam": lambda: SAM(base, **OPTIONS["sam"])}
    opt = opt.get(method, lambda: base)()
    rows = data()
    step = BATCH * accumulate
    for epoch in range(epochs):
        if method == "pertopt":
            opt.epoch = epoch + 1
        for start in range(0, SIZE, step):
            batch = rows[start : start + step]
            x, y = (torch.stack([row[key] for row in batch]) for key in ("input_ids", "labels"))

            def loss(x=x, y=y):
                return model(input_ids=x, labels=y).loss

            opt.zero_grad()
            if method == "fisher_trace":
                FisherTrace(model, **OPTIONS[method]).backward(
                    lambda out, y: nn.CrossEntropyLoss()(out.logits, y), x, y
                )
            elif method == "sam":
                loss().backward()
                with opt.perturbed():
                    loss().backward()
            else:
                with opt.perturbed():
                    loss().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
    return model


def close(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", OPTIONS)
def test_it_trains_as_a_loop_by_hand(tmp_path, method):
    found = trainer(tmp_path, method)
    found.train()
    close(found.model, by_hand(method))
    assert found.state.global_step == 8


@pytest.mark.parametrize("method", ["pertopt", "sam"])
def test_accumulated_micro_batches_are_one_batch(tmp_path, method):
    """One perturbation a step; SAM displaces along the whole batch and repeats all of it."""
    found = trainer(tmp_path, method, gradient_accumulation_steps=2)
    found.model_accepts_loss_kwargs = False  # BERT takes and ignores the count of items: its mean would not be divided
    found.train()
    close(found.model, by_hand(method, accumulate=2))


def test_accumulated_fisher_trace_is_the_mean_over_micro_batches(tmp_path):
    found = trainer(tmp_path, "fisher_trace", gradient_accumulation_steps=2, num_train_epochs=1, max_steps=1)
    found.model_accepts_loss_kwargs = False
    found.train()
    model = bert().train()
    opt = torch.optim.SGD(model.parameters(), 0.3)
    reg = FisherTrace(model, **OPTIONS["fisher_trace"])
    for start in (0, BATCH):
        x, y = (torch.stack([row[key] for row in data()[start : start + BATCH]]) for key in ("input_ids", "labels"))
        reg.backward(lambda out, y: nn.CrossEntropyLoss()(out.logits, y), x, y, scale=0.5)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    opt.step()
    close(found.model, model)


@pytest.mark.parametrize("method", OPTIONS)
def test_resuming_from_a_checkpoint_ends_with_the_same_bits(tmp_path, method):
    settings = {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = trainer(tmp_path / "whole", method, kind=FlatMinimaTrainer, **settings)
    whole.train()
    again = trainer(tmp_path / "again", method, kind=FlatMinimaTrainer, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_optimizer_that_is_wrapped_already_is_kept_and_evaluation_meets_true_weights(tmp_path):
    model = bert()
    opt = PertOPT(torch.optim.SGD(model.parameters(), 0.1), gamma=0.5)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=BATCH, num_train_epochs=1, eval_strategy="steps",
        eval_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    found = FlatMinimaTrainer(
        model, arguments, train_dataset=data(), eval_dataset=data(), method="pertopt", optimizers=(opt, None)
    )
    found.train()
    assert opt.clock.step == 4 and len([row for row in found.state.log_history if "eval_loss" in row]) == 4


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="unknown method 'pertop'"):
        FlatMinimaTrainer(bert(), method="pertop")
    with pytest.raises(UsageError, match="16 bits would drown"):
        trainer(tmp_path, "fisher_trace", bf16=True)
    with pytest.raises(UsageError, match="got sub_batches=0"):
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
        FlatMinimaTrainer(bert(), arguments, method="fisher_trace", options={"sub_batches": 0})


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("own", ["pertopt", "sam"])
@pytest.mark.parametrize("options", [{}, {"eta": 1.0}])
def test_an_optimizer_that_the_words_do_not_fit_is_refused(tmp_path, method, own, options):
    """It would train with the optimizer, whatever method and options say."""
    model = bert()
    base = torch.optim.SGD(model.parameters(), 0.1)
    opt = {"pertopt": PertOPT, "sam": SAM}[own](base)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    if method == own and not options:
        FlatMinimaTrainer(model, arguments, method=method, optimizers=(opt, None))
        return
    message = "got options eta beside a" if method == own else f"got method='{method}' and an optimizer that is"
    with pytest.raises(UsageError, match=message):
        FlatMinimaTrainer(model, arguments, method=method, options=options, optimizers=(opt, None))


@pytest.mark.parametrize("method", ["pertopt", "sam"])
def test_an_optimizer_made_here_is_no_ones_own(tmp_path, method):
    found = trainer(tmp_path, method, num_train_epochs=1)
    found.train()
    found.train()
    assert found._own is not None
    assert found._own.base is not None


def language_model():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=1, n_head=2, n_embd=16, vocab_size=20, n_positions=LENGTH, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    )


def padded():
    """Texts whose unmasked labels are few or many; two of them have none at all."""
    rows = []
    for i, row in enumerate(data()):
        labels = row["input_ids"].clone()
        labels[1 if i in (2, 3) else 2 + (5 * i) % 5 :] = -100
        rows.append({"input_ids": row["input_ids"], "labels": labels})
    return rows


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 1e-13])
@pytest.mark.filterwarnings("error::UserWarning:flatminima")
def test_fisher_trace_counts_the_items_that_the_trainer_counts(tmp_path, accumulate, beta):
    """With no penalty to speak of it is the plain Trainer; with a mean of micro-batches' means it was 28 % off."""
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=accumulate, max_steps=2,
        learning_rate=0.1, optim="sgd", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=1,
        logging_strategy="no",
    )  # fmt: skip
    plain = transformers.Trainer(language_model(), arguments, train_dataset=padded())
    before = torch.cat([p.detach().reshape(-1).clone() for p in plain.model.parameters()])
    options = {"beta": beta, "sub_batches": 4}
    ours = FlatMinimaTrainer(
        language_model(), arguments, train_dataset=padded(), method="fisher_trace", options=options
    )
    plain_loss, our_loss = plain.train().training_loss, ours.train().training_loss
    a, b = (torch.cat([p.detach().reshape(-1) for p in t.model.parameters()]) for t in (ours, plain))
    assert float((a - b).norm() / (b - before).norm()) < 1e-4
    assert our_loss == pytest.approx(plain_loss, rel=1e-5)


def test_a_model_that_averages_over_its_own_labels(tmp_path):
    """Token classification takes no count of items: its mean over unmasked labels is weighted all the same."""
    config = bert().config
    torch.manual_seed(0)
    start = transformers.BertForTokenClassification(config).state_dict()
    rows = [row | {"labels": row["labels"].clamp(max=2)} for row in padded()]
    found = []
    for method in (None, "fisher_trace"):
        model = transformers.BertForTokenClassification(config)
        model.load_state_dict(start)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=2, learning_rate=0.1, optim="sgd",
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=1, logging_strategy="no",
        )  # fmt: skip
        options = {"beta": 1e-13, "sub_batches": 4}
        trained = (
            transformers.Trainer(model, arguments, train_dataset=rows)
            if method is None
            else FlatMinimaTrainer(model, arguments, train_dataset=rows, method=method, options=options)
        )
        trained.train()
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    before = torch.cat([start[name].reshape(-1) for name, _ in model.named_parameters()])
    assert float((found[0] - found[1]).norm() / (found[0] - before).norm()) < 1e-4


class Moving(torch.optim.SGD):
    """As Schedule-Free's: train() and eval() move the weights, and the Trainer calls train() before every pass."""

    training = False

    def train(self):
        self._move(not self.training, 1.0)
        self.training = True

    def eval(self):
        self._move(self.training, -1.0)
        self.training = False

    @torch.no_grad()
    def _move(self, wanted, by):
        for p in (p for group in self.param_groups for p in group["params"] if wanted):
            p.add_(by * 0.01)


VANISHING = {
    "pertopt": {"gamma": 1e-12, "eps": 1e-12}, "sam": {"rho": 1e-7}, "fisher_trace": {"beta": 1e-13, "sub_batches": 2},
}  # fmt: skip


@pytest.mark.parametrize("method", VANISHING)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_a_vanishing_strength_it_is_the_plain_trainer(tmp_path, method, smoothing):
    """Whatever the Trainer makes of accumulated batches: BERT's loss takes the count of items and ignores it, so that
    the Trainer adds means up; a mean of them would be half. Label smoothing divides by the count."""

    def trained(kind, **more):
        model = bert()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=1, logging_strategy="no",
            label_smoothing_factor=smoothing, max_grad_norm=0.0, lr_scheduler_type="constant", eval_strategy="steps",
            eval_steps=1,
        )  # fmt: skip
        base = Moving(model.parameters(), 0.05)
        found = kind(model, arguments, train_dataset=data()[:20], eval_dataset=data(), optimizers=(base, None), **more)
        return found.train().training_loss, torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])

    before = torch.cat([p.detach().double().reshape(-1) for p in bert().parameters()])
    loss, plain = trained(transformers.Trainer)
    our_loss, ours = trained(FlatMinimaTrainer, method=method, options=VANISHING[method])
    assert float((ours - plain).norm() / (plain - before).norm()) < 1e-4
    assert our_loss == pytest.approx(loss, rel=1e-5)
