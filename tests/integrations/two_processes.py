"""Trainings of Lightning and transformers in several processes, with a correction at their end; started by torchrun."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from benchmarks.coverage_models import declare_missing_operators
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.noisy_digits import VERIFIED, digits, network, verified


def with_lightning(folder: Path):
    from lightning.pytorch import LightningModule, Trainer

    from verifix.integrations import LightningCorrection

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    x, _, given = digits()
    classifier, callback = Classifier(), LightningCorrection(verified(), module="net", **VERIFIED)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(max_epochs=80, callbacks=[callback], accelerator="cpu", strategy="ddp", devices=2, **quiet)
    trainer.fit(classifier, DataLoader(TensorDataset(x[:1000], given[:1000]), batch_size=500))
    trainer.save_checkpoint(folder / "fixed.ckpt")
    return classifier.net, callback


def with_transformers(folder: Path):
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    from verifix.integrations import TrainerCorrection

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    tokens = torch.randint(5, 40, (120, 6))
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "labels": (tokens[:, 0] % 3).tolist()})
    model = BertForSequenceClassification(config)
    settings = VERIFIED | {"alpha": 100.0, "check_inputs": False, "check_labels": False}
    callback = TrainerCorrection(data.select(range(60, 120)), apply="always", **settings)
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), max_steps=3, ddp_backend="gloo", **quiet)
    trainer = Trainer(model, arguments, train_dataset=data.select(range(60)), callbacks=[callback])
    trainer.train()
    trainer.save_model(str(folder / "fixed"))
    return model, callback


def main(folder: str) -> None:
    """Train and correct with both, and leave what came out in a file of this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    operators = declare_missing_operators()  # for as long as this name holds them
    found = {}
    for name, train in (("transformers", with_transformers), ("lightning", with_lightning)):
        model, callback = train(Path(folder))
        found[name] = {
            "applied": callback.applied,
            "verdict": callback.proof.verdict,
            "samples": callback.correction.provenance["samples"],
            "corrected": dict(callback.correction.corrected),
            "weights": {key: value.cpu() for key, value in model.state_dict().items()},
        }
    torch.save(found, Path(folder) / f"{torch.distributed.get_rank()}.pt")
    del operators


if __name__ == "__main__":
    main(sys.argv[1])
