"""Every block of code of docs/integrations.md runs, in order, with the real libraries and without a network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.noisy_digits import digits, network, trained, verified

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def blocks() -> dict[str, str]:
    """Return the code of each section, by its title."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    return {part.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", part, re.S)) for part in parts}


@pytest.fixture(scope="module")
def names():
    """Return what the page takes as given, and keep what its blocks define for those behind them."""
    return {}


def given_for_lightning() -> dict:
    from lightning.pytorch import LightningModule

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    x, _, given = digits()
    loader = DataLoader(TensorDataset(x[:1000], given[:1000]), batch_size=250)
    return {"classifier": Classifier(), "train_loader": loader, "verified": verified()}


def given_for_transformers() -> dict:
    from datasets import Dataset
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    tokens = torch.randint(5, 40, (380, 6))
    labels = (tokens[:, 0] > 22).long()
    given = torch.where(torch.arange(380) % 4 == 0, 1 - labels, labels)
    texts, trusted = (
        Dataset.from_dict({"input_ids": tokens[part].tolist(), "labels": marks[part].tolist()})
        for part, marks in ((slice(0, 300), given), (slice(300, 380), labels))
    )
    arguments = TrainingArguments(
        "trainer",
        num_train_epochs=12,
        learning_rate=3e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    model = BertForSequenceClassification(config)
    return {"text_model": model, "arguments": arguments, "texts": texts, "verified_texts": trusted}


def given_for_sklearn() -> dict:
    (x, y), (every, _, _) = verified(), digits()
    return {"model": trained(), "X_verified": x.numpy(), "y_verified": y.numpy(), "X_new": every[1200:1210].numpy()}


GIVEN = {
    "Lightning": given_for_lightning,
    "The Trainer of transformers": given_for_transformers,
    "scikit-learn and skorch": given_for_sklearn,
    "TensorBoard": lambda: {"model": trained(), "verified": verified()},
    "ONNX and torch.export": lambda: {"X_example": verified()[0][:20]},
}

WRITTEN = {
    "Lightning": "fixed.ckpt",
    "The Trainer of transformers": "fixed/model.safetensors",
    "TensorBoard": "runs/correction/events.*",
    "MLflow": "mlruns/**/report.html",
    "Weights & Biases": "wandb/offline-run-*/*.wandb",
    "ONNX and torch.export": "fixed.pt2",
}
"""What each block leaves behind."""


def test_the_page_has_the_sections_that_are_run():
    assert set(blocks()) == set(GIVEN) | set(WRITTEN)


@pytest.mark.filterwarnings("ignore")  # those of the other libraries are not ours
@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("title", blocks())
def test_a_block_runs(title, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if title in ("MLflow", "Weights & Biases", "ONNX and torch.export") and "correction" not in names:
        names.update(GIVEN["TensorBoard"]())
        exec(blocks()["TensorBoard"], names)
    names.update(GIVEN.get(title, dict)())
    exec(blocks()[title], names)
    assert title not in WRITTEN or list(tmp_path.glob(WRITTEN[title]))
    if title == "ONNX and torch.export":
        exported_is_the_same(names["correction"].model, tmp_path)


def exported_is_the_same(model: nn.Module, folder: Path) -> None:
    """Compare what the files compute with the model, on batches of another size."""
    import onnxruntime

    x = digits()[0][1200:1207]
    expected = model(x).detach()
    loaded = torch.export.load(folder / "fixed.pt2").module()
    assert torch.allclose(loaded(x), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(folder / "fixed.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.allclose(found, expected.numpy(), atol=1e-4)
    assert np.ptp(expected.numpy()) > 1
