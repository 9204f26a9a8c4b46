"""PertOPT in transformers' Trainer: one more choice, `method=`.

python examples/frameworks/with_huggingface.py         pip install 'flatminima[hf]'
"""

from __future__ import annotations

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from flatminima.integrations.huggingface import FlatMinimaTrainer


def main(epochs: float = 3) -> float:
    """The mean training loss."""
    tokens = torch.randint(0, 20, (128, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": t, "labels": t[0] % 2} for t in tokens]
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **size))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, learning_rate=1e-3, use_cpu=True, report_to=[], save_strategy="no",
            gradient_accumulation_steps=2, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = FlatMinimaTrainer(model, arguments, train_dataset=data, method="pertopt", options={"gamma": 0.1})
        return float(trainer.train().training_loss)


if __name__ == "__main__":
    print(f"loss {main():.3f}")
