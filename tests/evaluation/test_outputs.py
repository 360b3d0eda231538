"""What outputs mean: found out in one place for models, comparisons and files, and refused where it is not clear."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import verifix
from verifix.cli.main import main
from verifix.errors import DataError, UsageError
from verifix.evaluation.metrics import measure
from verifix.evaluation.predictions import as_answers
from verifix.model.outputs import last_operation, meaning_of, to_logits

REMEDY = r"say what they are with outputs= \(--outputs\): logits, log-probabilities, probabilities or percent"
X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
BINARY, THREE = (X[:, 0] + X[:, 1] > 0).long(), X[:, :3].argmax(1)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Both(nn.Module):
    """Probabilities of both classes from that of one."""

    def forward(self, p: Tensor) -> Tensor:
        return torch.cat([1 - p, p], dim=1)


class Ungraded(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def network(outputs: int, seed: int = 0) -> nn.Sequential:
    """Return a network that knows a part of what there is to know: right weights, and noise."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.15)
        model[0].weight[:6] += torch.eye(6)
        model[0].weight[6:] -= torch.eye(6)
        if outputs == 1:
            model[2].weight[0, [0, 1]] += 1.0
            model[2].weight[0, [6, 7]] -= 1.0
        else:
            model[2].weight[:3, :3] += torch.eye(3)
            model[2].weight[:3, 6:9] -= torch.eye(3)
    return model


def with_end(outputs: int, *ends: nn.Module) -> nn.Sequential:
    return nn.Sequential(*network(outputs), *ends).eval()


def correct(model: nn.Module, labels: Tensor, **settings: object) -> verifix.Correction:
    return verifix.correct(model, (X, labels), recipe="verifix", progress=False, **settings)  # type: ignore[arg-type]


# Models.

ENDS = {
    "sigmoid": (1, (nn.Sigmoid(),), "probabilities (sigmoid)"),
    "squeezed sigmoid": (1, (nn.Sigmoid(), nn.Flatten(0)), "probabilities (sigmoid)"),
    "log-sigmoid": (1, (nn.LogSigmoid(),), "log-probabilities (log-sigmoid)"),
    "both": (1, (nn.Sigmoid(), Both()), "probabilities"),
    "softmax": (3, (nn.Softmax(dim=1),), "probabilities (softmax)"),
    "log-softmax": (3, (nn.LogSoftmax(dim=1),), "log-probabilities (log-softmax)"),
    "percent": (3, (nn.Softmax(dim=1), Times(100)), "percent"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_network_that_normalises_is_corrected_as_the_same_network_that_does_not(name):
    outputs, ends, told = ENDS[name]
    labels = BINARY if outputs == 1 else THREE
    plain, ended = network(outputs), with_end(outputs, *ends)
    logits = plain(X)
    right = float(((logits[:, 0] > 0) if outputs == 1 else logits.argmax(1)).eq(labels).double().mean())
    assert 0.6 < right < 1
    wanted, found = correct(plain, labels), correct(ended, labels)
    assert found.choices["project"].points[0].score == pytest.approx(right, abs=1e-12)
    assert found.alpha == wanted.alpha
    assert [p.score for p in found.curve] == pytest.approx([p.score for p in wanted.curve], abs=1e-12)
    assert [p.loss for p in found.curve] == pytest.approx([p.loss for p in wanted.curve], abs=1e-4)
    assert f"Outputs are read as {told}." in found.summary()
    assert found.provenance["outputs"] == told.partition(" (")[0]
    assert not any("read as" in note for note in wanted.notes)
    assert wanted.provenance["outputs"] == "logits"


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "log-softmax", "percent"])
def test_the_head_of_a_network_that_normalises_is_found_and_refitted_alike(name):
    outputs, ends, _ = ENDS[name]
    labels = BINARY if outputs == 1 else THREE
    wanted, found = (
        verifix.correct(model, (X, labels), recipe="refit", progress=False)
        for model in (network(outputs), with_end(outputs, *ends))
    )
    assert wanted.changed
    assert found.strengths == wanted.strengths
    for key, value in wanted.corrected.items():
        assert torch.allclose(found.corrected[key], value, atol=2e-3)


@pytest.mark.parametrize(
    ("model", "labels", "said"),
    [
        (with_end(3, nn.Sigmoid()), THREE, "come from a sigmoid, but they sum to"),
        (with_end(3, nn.Softmax(dim=0)), THREE, "come from a softmax, but they sum to"),
        (with_end(1, nn.Softmax(dim=1)), BINARY, "one number per sample from a softmax, which is always 1 or 0"),
        (with_end(1, nn.Sigmoid(), Times(100)), BINARY, "which may be logits, probabilities or percent"),
        (Ungraded(with_end(1, nn.Sigmoid())).eval(), BINARY, "which may be logits, probabilities or percent"),
        (Ungraded(with_end(3, nn.Sigmoid())).eval(), THREE, "all lie between 0 and 1, but do not sum to 1"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_remedy(model, labels, said):
    with pytest.raises(DataError, match=f"{said}.*{REMEDY}"):
        correct(model, labels)


def test_the_setting_decides_what_is_not_clear():
    right = float((network(1)(X)[:, 0] > 0).eq(BINARY).double().mean())
    for model, outputs in (
        (with_end(1, nn.Sigmoid(), Times(100)), "percent"),
        (Ungraded(with_end(1, nn.Sigmoid())).eval(), "probabilities"),
        (Ungraded(with_end(1, nn.LogSigmoid())).eval(), "log-probabilities"),
    ):
        found = correct(model, BINARY, alpha=10, outputs=outputs)
        assert found.provenance["outputs"] == outputs
        proof = verifix.prove(
            model, (X, BINARY), alpha=10, recipe="verifix", progress=False, outputs=outputs, verified_from="unseen"
        )
        assert proof.comparison.before.accuracy == pytest.approx(100 * right)
    with pytest.raises(DataError, match=r"outputs= says probabilities, but an output is .*; they must be from 0 to 1"):
        correct(network(1), BINARY, outputs="probabilities")
    with pytest.raises(UsageError, match="outputs is 'sigmoid'; it must be one of 'auto', 'logits'"):
        correct(network(1), BINARY, outputs="sigmoid")


def test_a_saturated_sigmoid_gives_finite_logits():
    model = nn.Sequential(*network(1), Times(1000), nn.Sigmoid()).eval()
    assert (model(X) == 1).any()
    found = correct(model, BINARY, alpha=10)
    assert found.provenance["outputs"] == "probabilities"
    assert "outputs looked at are exactly 0 or 1, with no finite logit" in found.summary()


def test_samples_are_trusted_alike_with_and_without_a_sigmoid():
    plain, ended = (
        verifix.trust(model, (X, BINARY), count=40, progress=False) for model in (network(1), with_end(1, nn.Sigmoid()))
    )
    assert ended.indices == plain.indices


def test_no_network_without_normalisation_is_refused():
    for seed in range(40):
        for outputs in (1, 2, 3):
            torch.manual_seed(seed)
            untrained = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs))
            for model in (untrained, network(1 if outputs == 1 else 3, seed)):
                values = model(X[:64])
                for few in (values[:2], values):
                    assert meaning_of(few.detach().double(), last_operation(few)) == "logits"


# Numbers.


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("decimals", range(1, 7))
def test_rounding_changes_calibration_by_no_more_than_the_rounding(classes, decimals):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 300)
    p = generator.dirichlet(np.full(classes, 0.05), 300)
    p[np.arange(300), labels] += 0.4
    p /= p.sum(axis=1, keepdims=True)
    rounded = p.round(decimals)
    exact, found = (as_answers(x, "before", 300) for x in (p, rounded))
    assert found.meaning == exact.meaning == "probabilities"
    a, b = (measure(x, labels, None).calibration_error for x in (exact, found))
    # The confidence moves by half a unit, and by what rounding up has added to a row.
    added = float(np.clip(rounded.sum(axis=1) - 1, 0, None).max())
    flipped = float((exact.predicted != found.predicted).mean())
    assert abs(a - b) <= 0.5 * 10.0**-decimals + added + flipped + 0.02  # bins that samples leave


def test_rounded_percentages_are_read_as_the_probabilities_that_they_are():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 100)
    labels = np.arange(100) % 5
    wanted = verifix.compare(p, p, labels)
    for numbers in (100 * p, (100 * p).round(1), (100 * p).round().astype(int)):
        found = verifix.compare(numbers, numbers, labels)
        assert found.outputs == ("percent", "percent")
        assert found.before.calibration_error == pytest.approx(wanted.before.calibration_error, abs=0.05)
        assert "The numbers of before are read as percent." in found.summary()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_in_less_precision_are_probabilities(dtype):
    p = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).softmax(dim=1).to(dtype)
    assert as_answers(p, "before", 50).meaning == "probabilities"
    assert as_answers(p.log(), "before", 50).meaning == "log-probabilities"


def test_one_number_each_is_refused_unless_both_sides_of_0_show_logits():
    labels, z = np.arange(40) % 2, np.linspace(-3, 3, 40)[:, None]
    p = 1 / (1 + np.exp(-z))
    wanted = verifix.compare(z, z, labels)
    for numbers, outputs in ((p, "probabilities"), (100 * p, "percent"), (np.log(p), "log-probabilities")):
        with pytest.raises(DataError, match=f"the numbers of before are one number per sample.*{REMEDY}"):
            verifix.compare(numbers, numbers, labels)
        found = verifix.compare(numbers, numbers, labels, outputs=outputs)
        assert found.before.accuracy == wanted.before.accuracy
        assert found.before.cross_entropy == pytest.approx(wanted.before.cross_entropy)
    with pytest.raises(DataError, match=f"all lie between 0 and 1, but do not sum to 1.*{REMEDY}"):
        verifix.compare(np.c_[p, p], np.c_[p, p], labels)
    assert verifix.compare(np.c_[p, p], np.c_[p, p], labels, outputs="logits").outputs == ("logits", "logits")


def test_gradients_flow_through_the_reading():
    z = torch.linspace(-8, 8, 9, dtype=torch.float64, requires_grad=True)
    for values, meaning in (
        (z.sigmoid(), "probabilities"),
        (100 * z.sigmoid(), "percent"),
        (nn.functional.logsigmoid(z), "log-probabilities"),
    ):
        logits = to_logits(values, meaning, one=True)
        assert torch.allclose(logits, z)
        (slope,) = torch.autograd.grad(logits.sum(), z)
        assert torch.allclose(slope, torch.ones_like(z))


# Files.


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    return code, *capsys.readouterr()


def test_files_of_predictions_are_read_by_the_same_rules(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labels, z = np.arange(40) % 2, np.linspace(-3, 3, 40)
    p = 1 / (1 + np.exp(-z))
    np.save("y.npy", labels)
    np.save("p.npy", p[:, None])
    (tmp_path / "p.csv").write_text("a\n" + "\n".join(f"{x:.4f}" for x in p))
    (tmp_path / "percent.csv").write_text("0,1\n" + "\n".join(f"{100 - 100 * x:.1f},{100 * x:.1f}" for x in p))
    right = 100 * float(np.mean((z > 0) == labels))
    for name in ("p.npy", "p.csv"):
        assert command(capsys, "compare", name, name, "--data", "y.npy")[0] == 5
        rc, out, _ = command(capsys, "compare", name, name, "--data", "y.npy", "--outputs", "probabilities", "--json")
        assert rc == 0
        assert json.loads(out)["before"]["accuracy"] == pytest.approx(right)
    rc, out, _ = command(capsys, "compare", "percent.csv", "percent.csv", "--data", "y.npy")
    assert rc == 0
    assert "The numbers of after are read as percent." in out
    assert f"{right:.1f}% correct before" in out
