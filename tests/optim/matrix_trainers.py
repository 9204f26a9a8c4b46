"""The cells of Lightning (automatic and manual) and of transformers' Trainer."""

from __future__ import annotations

import logging

import torch
from matrix_loops import Plain, Run, wrap
from matrix_reference import (
    BATCH,
    BROKEN,
    CLIP,
    FISHER,
    PER_EPOCH,
    PERTOPT,
    RHO,
    SKIPPED,
    STEPS,
    SWITCH,
    base,
    flat,
    net_for,
    rows,
    switch,
)  # fmt: skip
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset


class Broken(RuntimeError):
    """What the training step raises."""


def lightning_module(method, situation, manual):
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = not manual
            self.net, self.calls, self.metric_calls = net_for(situation), {}, 0

        @property
        def t(self):
            per_epoch = PER_EPOCH * (2 if situation in ("accumulation", "callback before ours") and not manual else 1)
            return (self.trainer.current_epoch * per_epoch + self.now) // (per_epoch // PER_EPOCH)

        def on_train_epoch_start(self):
            if self.trainer.current_epoch * PER_EPOCH == SWITCH:
                switch(self.net, situation)

        def training_step(self, pair, index):
            self.now = index
            if manual:
                return self.by_hand()
            x, y = pair
            t = self.t
            self.calls[t] = self.calls.get(t, 0) + 1
            if situation == "skipped step" and t == SKIPPED:
                return None
            if situation == "exception" and t == BROKEN and self.calls[t] == (2 if method == "SAM" else 1):
                raise Broken
            if situation == "evaluation inside" and t > 0:
                self.net.eval()
                self.net(x)
                self.net.train()
            if method == "FisherTrace":
                from flatminima.optim import FisherTrace

                return FisherTrace(self.net, **FISHER).backward(cross_entropy, x, y)
            return cross_entropy(self.net(x), y)

        def by_hand(self):
            place = Plain()
            place.backward = self.manual_backward
            place.prepare = lambda model, opt: (model, self.optimizers())
            run = Run(method, situation, place, self.net)
            if situation in ("dtype switch", "memory-format switch"):
                run.situation = "nothing special"  # on_train_epoch_start has seen to it
            if situation == "exception" and self.t == BROKEN:
                run.passes([(rows()[0][:8], rows()[1][:8])], broken=True)
            run.iteration(self.t)

        def configure_optimizers(self):
            return wrap(method, base(self.net))

    return Module()


def fit(module, situation, folder, callbacks, manual, epochs=2, **more):
    import lightning.pytorch as lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    half = situation in ("accumulation", "callback before ours") and not manual
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs,
        enable_checkpointing=False, default_root_dir=folder, callbacks=callbacks,
        accumulate_grad_batches=2 if half else 1,
        gradient_clip_val=CLIP if situation == "clipping" and not manual else None,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*rows()), batch_size=BATCH // 2 if half else BATCH), **more)
    return trainer


def witness():
    """A callback ahead of ours, which meets the true weights whenever Lightning calls it between two steps."""
    import lightning.pytorch as lightning

    class Witness(lightning.Callback):
        last = None

        def on_train_batch_start(self, trainer, module, *_):
            module.state_dict()
            assert self.last is None or torch.equal(flat(module.net), self.last), "noise at a batch's start"

        def on_train_batch_end(self, trainer, module, *_):
            module.state_dict()
            self.last = flat(module.net)

    return Witness()


def train_lightning(method, situation, folder, manual):
    from flatminima.integrations.lightning import FlatMinima

    module = lightning_module(method, situation, manual)
    callbacks = [witness(), FlatMinima()] if situation == "callback before ours" else [FlatMinima()]
    if situation == "resume":
        fit(module, situation, folder, callbacks, manual, epochs=1).save_checkpoint(folder / "one.ckpt")
        module = lightning_module(method, situation, manual)
        fit(module, situation, folder, callbacks, manual, ckpt_path=folder / "one.ckpt", weights_only=True)
    else:
        try:
            fit(module, situation, folder, callbacks, manual)
        except (Broken, KeyboardInterrupt, SystemExit):
            assert situation == "exception"
        if situation == "trained twice":
            fit(module, situation, folder, callbacks, manual)
    return flat(module.net)


def trainer(method, situation, folder, model, optimizer, **more):
    import transformers

    from flatminima.integrations.huggingface import FlatMinimaTrainer

    class InOrder(FlatMinimaTrainer):
        calls = 0

        def _get_train_sampler(self, *_, **__):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, *args, **kwargs):
            t, self.calls = self.state.global_step, self.calls + 1
            if situation == "exception" and t == BROKEN:
                self.broken = getattr(self, "broken", 0) + 1
                if self.broken == {"PertOPT": 1, "SAM": 2, "FisherTrace": 4}[method]:
                    raise Broken
            if situation == "evaluation inside" and t > 0:
                model.eval()
                model(**inputs)
                model.train()
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss * torch.inf if situation == "skipped step" and t == SKIPPED else loss

    class Switch(transformers.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            if round(state.epoch or 0) == 1:
                switch(model, situation)

    class Witness(transformers.TrainerCallback):
        last = None

        def on_step_begin(self, *_, **__):
            assert self.last is None or torch.equal(flat(model), self.last), "noise at a step's start"

        def on_pre_optimizer_step(self, *_, **__):
            model.state_dict()

        def on_step_end(self, *_, **__):
            self.last = flat(model)

    half = situation == "accumulation"
    settings = {
        "num_train_epochs": 2, "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "logging_strategy": "no", "per_device_train_batch_size": BATCH // 2 if half else BATCH,
        "gradient_accumulation_steps": 2 if half else 1, "max_grad_norm": CLIP if situation == "clipping" else 0.0,
    } | more  # fmt: skip
    options = {"PertOPT": PERTOPT, "SAM": {"rho": RHO}, "FisherTrace": FISHER}[method]
    arguments = transformers.TrainingArguments(output_dir=str(folder), **settings)
    if situation == "skipped step":
        arguments.fp16 = method == "FisherTrace"
    found = InOrder(
        model, arguments,
        train_dataset=[{"x": x, "labels": y} for x, y in zip(*rows(), strict=True)],
        method={"PertOPT": "pertopt", "SAM": "sam", "FisherTrace": "fisher_trace"}[method], options=options,
        optimizers=(optimizer, None), callbacks=[Switch(), Witness()],
    )  # fmt: skip
    if situation == "skipped step":
        scale(found.accelerator)
    return found


def scale(accelerator):
    """A gradient scaler, as accelerate has one under float16 where there is an accelerator."""
    from accelerate.state import AcceleratorState

    accelerator.scaler = torch.amp.GradScaler("cpu")
    AcceleratorState._shared_state["_mixed_precision"] = "fp16"


def train_huggingface(method, situation, folder):
    from accelerate.state import AcceleratorState

    try:
        return _train_huggingface(method, situation, folder)
    finally:
        AcceleratorState._reset_state()


def _train_huggingface(method, situation, folder):
    model = net_for(situation)
    if situation == "resume":
        trainer(method, situation, folder, model, base(model), save_strategy="steps", save_steps=PER_EPOCH).train()
        model = net_for(situation)
        again = trainer(method, situation, folder / "again", model, base(model))
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{PER_EPOCH}"))
        return flat(model)
    found = trainer(method, situation, folder, model, base(model))
    for _ in range(2 if situation == "trained twice" else 1):
        try:
            found.train()
        except Broken:
            assert situation == "exception"
    assert situation == "exception" or found.state.global_step == STEPS
    return flat(model)
