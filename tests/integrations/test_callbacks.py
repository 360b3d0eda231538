"""Corrections at the end of a training of Lightning and of transformers, with the real libraries."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.noisy_digits import VERIFIED, accuracy, digits, network, trained, verified
from tests.rank_cases import launched
from verifix import UsageError
from verifix.integrations.at_end import AtEnd


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_what_is_proven_is_applied_and_the_figures_are_those_of_the_proof():
    model, original = trained(), trained()
    end = AtEnd(verified(), **VERIFIED)
    assert (end.correction, end.proof, end.applied) == (None, None, False)
    figures = end.correct(model, end.verified)
    assert end.proof.verdict == "improved"
    assert end.applied
    assert same(model, end.correction.model)
    assert accuracy(model) > accuracy(original) + 4
    assert figures["verifix/gain"] == end.proof.comparison.gain.estimate
    assert figures["verifix/accuracy_after"] == end.proof.comparison.after.accuracy
    assert figures["verifix/applied"] == 1


@pytest.mark.parametrize(("apply", "applied"), [("proven", False), ("never", False), ("always", True)])
def test_what_is_not_proven_is_applied_only_on_request(apply, applied):
    model, original = trained(), trained()
    x, y = verified()
    permuted = x[:60], y[:60].roll(1)
    end = AtEnd(permuted, apply=apply, alpha=1000.0, check_labels=False, check_inputs=False, **VERIFIED)
    figures = end.correct(model, end.verified)
    assert end.proof.verdict != "improved"
    assert end.correction.changed
    assert end.applied is applied
    assert same(model, original) is not applied
    assert figures["verifix/applied"] == applied


def test_wrong_words_are_refused():
    with pytest.raises(UsageError, match="apply is 'maybe'; it must be one of proven, always, never"):
        AtEnd(verified(), apply="maybe", **VERIFIED)
    with pytest.raises(UsageError, match="module is 'nett', but the model has the parts net; name one"):
        AtEnd(verified(), module="nett", **VERIFIED).check(nn.ModuleDict({"net": network()}))


def test_a_training_survives_what_is_refused_at_its_end():
    x, y = verified()
    few = AtEnd((x[:1], y[:1]), **VERIFIED)
    with pytest.warns(UserWarning, match="the trained model was not corrected: 1 verified sample, but"):
        figures = few.correct(trained(), few.verified)
    assert figures == {"verifix/applied": 0.0}
    forced = VERIFIED | {"alpha": 100.0, "check_labels": False, "check_inputs": False}
    few = AtEnd((x[:4], y[:4]), apply="always", **forced)
    with pytest.warns(UserWarning, match="not proven to be better: 4 samples have only 4 different inputs"):
        few.correct(trained(), few.verified)
    assert few.applied


@pytest.mark.filterwarnings("ignore")  # remarks of Lightning on small machines and data sets
@pytest.mark.usefixtures("vision")  # which torchmetrics imports
@pytest.mark.parametrize("module", ["net", None])
def test_lightning_corrects_at_the_end_of_fit(tmp_path, module):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger

    from verifix.integrations import LightningCorrection

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            x, y = batch
            return nn.functional.cross_entropy(self(x), y)

        def on_train_end(self):
            self.uncorrected = copy.deepcopy(self.net)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    x, _, given = digits()
    classifier, callback = Classifier(), LightningCorrection(verified(), module=module, **VERIFIED)
    trainer = Trainer(
        max_epochs=80,
        callbacks=[callback],
        logger=CSVLogger(tmp_path, name="", version=""),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(classifier, DataLoader(TensorDataset(x[:1000], given[:1000]), batch_size=1000))
    assert callback.applied
    corrected = callback.correction.model if module else callback.correction.model.net
    assert same(classifier.net, corrected)
    assert accuracy(classifier.net) > accuracy(classifier.uncorrected) + 4
    assert classifier.trainer is trainer
    assert trainer.callback_metrics["verifix/gain"] == pytest.approx(callback.proof.comparison.gain.estimate)
    assert "verifix/gain" in (tmp_path / "metrics.csv").read_text()
    trainer.save_checkpoint(tmp_path / "fixed.ckpt")
    stored = torch.load(tmp_path / "fixed.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(stored["net.0.weight"], corrected[0].weight)


@pytest.mark.filterwarnings("ignore")  # remarks of torch and accelerate on machines without an accelerator
def test_transformers_corrects_at_the_end_of_train(tmp_path):
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    from verifix.integrations import TrainerCorrection

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    tokens = torch.randint(5, 40, (120, 6))
    rows = {"input_ids": tokens.tolist(), "labels": (tokens[:, 0] % 3).tolist()}
    data = Dataset.from_dict(rows)
    model = BertForSequenceClassification(config)
    settings = VERIFIED | {"alpha": 100.0, "check_inputs": False, "check_labels": False}
    callback = TrainerCorrection(data.select(range(60, 120)), apply="always", **settings)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=data.select(range(60)), callbacks=[callback])
    trainer.train()
    assert callback.correction.provenance["samples"] == 60
    assert callback.applied
    assert same(model, callback.correction.model)
    logged = trainer.state.log_history[-1]
    assert logged["verifix/gain"] == callback.proof.comparison.gain.estimate
    assert logged["step"] == 3
    trainer.save_model(str(tmp_path / "fixed"))
    stored = load_file(tmp_path / "fixed" / "model.safetensors")
    changed = next(iter(callback.correction.corrected))
    assert torch.equal(stored[changed], callback.correction.corrected[changed])
    assert not torch.equal(stored[changed], callback.correction.original[changed])


def test_two_processes_correct_together_at_the_end_of_a_training(tmp_path):
    words = ["tests.integrations.two_processes", str(tmp_path)]
    done = launched(2, *words)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("lightning", "transformers"):
        one, other = first[name], second[name]
        assert one["applied"]
        assert other["applied"]
        assert one["verdict"] == other["verdict"]
        assert one["corrected"].keys() == other["corrected"].keys() != set()
        assert one["weights"].keys() == other["weights"].keys()
        assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])
        assert all(torch.equal(one["weights"][key], value) for key, value in one["corrected"].items())
    assert first["lightning"]["verdict"] == "improved"
    assert (first["lightning"]["samples"], first["transformers"]["samples"]) == (200, 60)
    stored = torch.load(tmp_path / "fixed.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[f"net.{key}"], value) for key, value in first["lightning"]["weights"].items())


def test_the_package_imports_nothing_until_it_is_used():
    code = (
        "import sys; import verifix.integrations; from verifix import integrations\n"
        "print({'lightning', 'transformers', 'sklearn', 'torch'} & {m.split('.')[0] for m in sys.modules})\n"
        "print(dir(integrations)); sys.modules['lightning'] = sys.modules['lightning.pytorch'] = None\n"
        "try:\n    integrations.LightningCorrection\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    heavy, names, error = done.stdout.splitlines()
    assert heavy == "set()"
    assert names == "['CorrectedClassifier', 'LightningCorrection', 'TrainerCorrection']"
    assert error.endswith("install it with: pip install 'verifix[lightning]'")


def test_a_proof_at_the_end_asks_where_the_samples_come_from_before_the_training():
    with pytest.raises(UsageError, match="needs verified_from"):
        AtEnd(verified())
