"""Models that return several tensors: the logits are found where that is certain, and else forward= is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError
from verifix.cli.main import main

QUICK = {"alpha": 30.0, "progress": False, "check_labels": False}
X, Y = small_data(80)


class Returning(nn.Module):
    """A network that returns what a function makes of its features, its logits and the input."""

    def __init__(self, form, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        net = memorised(small_net(classes=classes), X, Y % classes)
        self.body, self.head, self.aux, self.form = net[:-1], net[-1], nn.Linear(16, 5), form

    def forward(self, x):
        features = self.body(x)
        return self.form(self, features, self.head(features), x)


CERTAIN = {
    "logits, features": (lambda m, f, z, x: (z, f), None),
    "logits, features of images": (lambda m, f, z, x: (z, f[:, :, None, None], None), None),
    "logits, all features": (lambda m, f, z, x: (z, (f, f)), None),
    "logits, weights of another number": (lambda m, f, z, x: (z, m.head.bias), None),
    "logits, a pair of weights": (lambda m, f, z, x: (z, m.head.bias[:2]), None),
    "logits, probabilities": (lambda m, f, z, x: (z, z.softmax(1)), None),
    "logits, predicted classes": (lambda m, f, z, x: (z, z.argmax(1)), None),
    "features, logits": (lambda m, f, z, x: (f, z), 2),
    "features twice, logits, in a list": (lambda m, f, z, x: [f, f, z], 3),
    "loss, logits": (lambda m, f, z, x: (z.square().mean(), z), None),
    "logits, and five numbers of another head": (lambda m, f, z, x: (z, m.aux(f)), 1),
}


@pytest.mark.parametrize("form", CERTAIN)
def test_the_logits_are_found_and_give_the_same_correction(form):
    build, place = CERTAIN[form]
    plain, model = Returning(lambda m, f, z, x: z).eval(), Returning(build).eval()
    wanted, found = verifix.correct(plain, (X, Y), **QUICK), verifix.correct(model, (X, Y), **QUICK)
    assert all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())
    said = [note for note in found.notes if "is read as its outputs [n, 3]. forward= picks another" in note]
    assert said == [] if place is None else f"number {place} of them" in said[0]
    assert len(found.notes) == len(said) + len(wanted.notes)


def test_probabilities_before_logits_are_read_as_such():
    model = Returning(lambda m, f, z, x: (z.softmax(1), z)).eval()
    found = verifix.correct(model, (X, Y), **QUICK)
    assert [note for note in found.notes if "utputs" in note] == ["Outputs are read as probabilities (softmax)."]


UNCERTAIN = {
    "two heads of one size": lambda m, f, z, x: (z, m.aux(f)[:, :3]),
    "another head of five before it": lambda m, f, z, x: (m.aux(f), z),
    "the input before it": lambda m, f, z, x: (x, z),
    "features of images before it": lambda m, f, z, x: (f[:, :, None], z),
    "what is made of features before it": lambda m, f, z, x: (f.square(), z),
    "features, two heads": lambda m, f, z, x: (f, z, m.aux(f)),
}


@pytest.mark.parametrize("form", UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_is_not_certain_is_refused_and_forward_is_the_remedy(form):
    model = Returning(form).eval()
    with pytest.raises(DataError, match=r"tensors of the shapes \[3, .* is not clear; pick it with forward=, such as"):
        verifix.correct(model, (X, Y), **QUICK)
    place = next(k for k, x in enumerate(model(X[:4])) if x.shape == (4, 3))
    found = verifix.correct(model, (X, Y), forward=lambda m, x: m(x)[place], **QUICK)
    wanted = verifix.correct(Returning(lambda m, f, z, x: z).eval(), (X, Y), **QUICK)
    assert all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())


def test_features_are_no_logits_where_a_class_has_no_sample_and_both_would_do():
    model = Returning(lambda m, f, z, x: (f, z)).eval()
    with pytest.raises(DataError, match="is not clear; pick it with forward="):
        verifix.correct(model, (X, Y % 2), **QUICK)


def test_without_gradients_the_first_of_several_is_taken_only_if_it_alone_fits():
    model = Returning(lambda m, f, z, x: (z, f)).eval()
    model.forward = torch.no_grad()(model.forward)

    class NoGradient(Returning):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    found = verifix.correct(NoGradient(CERTAIN["logits, features"][0]).eval(), (X, Y), **QUICK)
    assert any("number 1 of them is read as its outputs" in note for note in found.notes)
    with pytest.raises(DataError, match="is not clear; pick it with forward="):
        verifix.correct(NoGradient(CERTAIN["features, logits"][0]).eval(), (X, Y), **QUICK)


def test_trust_and_prove_read_the_same_tensor():
    plain, model = Returning(lambda m, f, z, x: z).eval(), Returning(CERTAIN["features, logits"][0]).eval()
    picked = [verifix.trust(net, (X, Y), count=30, progress=False) for net in (plain, model)]
    assert picked[0].indices == picked[1].indices
    proofs = [
        verifix.prove(
            net,
            (X, Y),
            recipe="verifix",
            progress=False,
            check_labels=False,
            check_inputs=False,
            verified_from="unseen",
        )
        for net in (plain, model)
    ]
    assert torch.equal(proofs[0].after, proofs[1].after)


def test_the_command_line_reads_the_same_tensor(tmp_path, capsys):
    source = "from tests.model.test_several_outputs import *\n"
    source += "def build(): return Returning(CERTAIN['features, logits'][0]).eval()\n"
    source += "def plain(): return Returning(lambda m, f, z, x: z).eval()\n"
    source += "def heads(): return Returning(UNCERTAIN['two heads of one size']).eval()\n"
    (tmp_path / "net.py").write_text(source)
    torch.save(Returning(None).state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "d.npz", x=X.numpy(), y=Y.numpy())

    def scored(factory, *flags):
        given = [f"{tmp_path}/net.pt", "--model", f"py:{tmp_path}/net.py:{factory}", "--data", f"{tmp_path}/d.npz"]
        code = main(["score", *given, "--classes", "a,b,c", "--json", *flags])
        written = capsys.readouterr()
        return json.loads(written.out)["accuracy"] if code == 0 else written.err

    for flags in ((), ("--outputs", "logits")):
        assert scored("build", *flags) == scored("plain", *flags)
        assert "is not clear; pick it with forward=" in scored("heads", *flags)
        assert "let the factory of py: return a module that does" in scored("heads", *flags)
