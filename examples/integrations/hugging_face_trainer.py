"""Hugging Face transformers: a callback for Trainer, for a model that maps input_ids to logits."""

import tempfile

import torch
import transformers

from alignver.training.callbacks import TrainerCallback

torch.manual_seed(0)
ids, labels = torch.randint(0, 50, (24, 6)), torch.arange(24) % 2
config = transformers.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
)
model = transformers.BertForSequenceClassification(config)
callback = TrainerCallback(ids, labels, loss="cross_entropy", every="epoch", mode="eval")
trainer = transformers.Trainer(
    model=model,
    args=transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    ),
    train_dataset=[{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)],
    callbacks=[callback],
)
trainer.train()
print(callback.tracker.history[-1])
print("Q_T from and to, by rule:", callback.tracker.q())
