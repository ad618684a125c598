"""Hugging Face transformers: a verdict before the training, a callback for Trainer, a verdict and a page after it."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

import alignver as av
from alignver.report.html import page
from alignver.report.source import Source
from alignver.training.callbacks import TrainerCallback

torch.manual_seed(0)
ids, labels = torch.randint(0, 50, (24, 6)), torch.arange(24) % 2
config = transformers.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
)
model = transformers.BertForSequenceClassification(config)
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}  # as a tokenizer returns them
print(av.check_alignment(model.eval(), inputs, labels, loss="cross_entropy", select="logits"))

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

print(av.check_alignment(model.eval(), inputs, labels, loss="cross_entropy", select="logits"))
if len(sys.argv) > 1:  # a page with the verdicts along the training
    Path(sys.argv[1]).write_text(page(Source("Trainer", tracked=callback.tracker.history)), encoding="utf-8")
