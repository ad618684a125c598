"""PyTorch Lightning: a verdict before the training, a callback in it, a verdict and a page after it."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alignver as av
from alignver.report.html import page
from alignver.report.source import Source
from alignver.training.callbacks import LightningCallback


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 3))

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


torch.manual_seed(0)
X, Y = torch.randn(60, 4), torch.arange(60) % 3
module = Classifier()
# BatchNorm couples the samples of a batch in train mode: what is checked is the network in eval mode.
print(av.check_model(module.net.eval(), X, Y, loss="cross_entropy")["model"])
module.net.train()

callback = LightningCallback(X, Y, loss="cross_entropy", mode="eval", select=lambda module: module.net)
trainer = pl.Trainer(
    max_epochs=5,
    callbacks=[callback],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True))
print(callback.tracker.history[-1])
print("Q_T from and to, by rule:", callback.tracker.q())

print(av.check_alignment(module.net.eval(), X, Y, loss="cross_entropy"))
if len(sys.argv) > 1:  # a page with the verdicts along the training
    Path(sys.argv[1]).write_text(page(Source("Lightning", tracked=callback.tracker.history)), encoding="utf-8")
