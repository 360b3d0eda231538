"""Samples as a call in Python may be given them: inputs and labels apart, of other libraries, with names."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import verifix
from tests import tiny
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError, UsageError
from verifix.report import result_of

NAMES = ["ant", "cow", "zebra"]
HOW = {"alpha": 30.0, "progress": False, "verified_from": "unseen"}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    x, y = small_data(60)
    model = memorised(small_net(), x, y)
    return model, x, y, verifix.correct(model, (x, y), **HOW)


def names_of(y) -> list[str]:
    return [NAMES[i] for i in y]


GIVEN = {
    "tensors": lambda x, y: (x, y),
    "numpy": lambda x, y: (x.numpy(), y.numpy()),
    "float64": lambda x, y: (x.double().numpy(), y.numpy()),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "a list of tensors": lambda x, y: (list(x), list(y)),
    "a list of arrays": lambda x, y: (list(x.numpy()), y.numpy().astype(float)),
    "pandas": lambda x, y: (pd.DataFrame(x.numpy()), pd.Series(y.numpy())),
    "polars": lambda x, y: (pl.DataFrame(x.numpy()), pl.Series(y.numpy())),
    "names in a list": lambda x, y: (x, names_of(y)),
    "names in numpy": lambda x, y: (x, np.array(names_of(y))),
    "names in pandas": lambda x, y: (pd.DataFrame(x.numpy()), pd.Series(names_of(y), dtype="category")),
    "names in polars": lambda x, y: (pl.DataFrame(x.numpy()), pl.Series(names_of(y))),
}


@pytest.mark.parametrize("form", GIVEN)
def test_every_form_gives_the_same_correction(case, form):
    model, x, y, wanted = case
    found = verifix.correct(model, *GIVEN[form](x, y), classes=NAMES, **HOW)
    assert all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())
    told = "Inputs are torch.float64 and are converted to torch.float32, as the weights are."
    assert (told in found.notes) == (form == "float64")
    pair = verifix.correct(model, GIVEN[form](x, y), classes=NAMES, **HOW)
    assert torch.equal(pair.corrected["0.weight"], wanted.corrected["0.weight"])


def test_labels_in_a_dictionary_may_be_names_and_a_model_may_know_them(vision, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny.text_model(tmp_path / "text"))
    texts, labels = tiny.sentences(40, 1)
    batch = dict(tiny.tokenizer()(texts, padding=True, return_tensors="pt"))
    numbers = torch.tensor([("neg", "pos").index(label) for label in labels])
    forms = ((batch, labels), (batch, numbers), ({**batch, "labels": labels},))
    found = [verifix.correct(model.eval(), *form, check_labels=False, **HOW) for form in forms]
    assert {tuple(each.class_names) for each in found} == {("neg", "pos")}
    assert len({each.provenance["samples_sha256"] for each in found}) == 1


def test_integer_inputs_of_embeddings_stay_integers(case):
    model = nn.Sequential(nn.Embedding(900, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    ids = np.random.default_rng(0).integers(0, 900, (40, 3))
    assert verifix.correct(model, ids, np.arange(40) % 2, **HOW).changed


def test_names_are_asked_for_with_what_to_paste(case):
    model, x, y, _ = case
    paste = r"give classes= with all class names .*, for example classes=\['ant', 'cow', 'zebra'\] if these are all"
    with pytest.raises(DataError, match=paste):
        verifix.correct(model, x, names_of(y), **HOW)
    with pytest.raises(DataError, match=r"sample 0 has the label 'ant', which is not among .*; did you mean 'ants'"):
        verifix.correct(model, x, names_of(y), classes=["ants", "cow", "zebra"], **HOW)
    with pytest.raises(DataError, match=r"there are 2 class names .* and the model has 3 outputs; give classes="):
        verifix.correct(model, x, y, classes=["ant", "cow"], **HOW)
    for wrong in ("ant,cow", [], ["ant", "ant", "cow"], [1, 2, 3]):
        with pytest.raises(UsageError, match=r"classes is .*; it must be a list of texts"):
            verifix.correct(model, x, y, classes=wrong, **HOW)


def test_labels_are_given_once(case):
    model, x, y, _ = case
    data = TensorDataset(x, y)
    for given in (data, DataLoader(data)):
        with pytest.raises(UsageError, match=r"labels are given, and the samples are a .*, which has labels"):
            verifix.correct(model, given, y, **HOW)


def test_who_does_not_say_where_the_samples_are_from_is_asked_where_the_scores_are_shown(case, capsys):
    model, x, y, _ = case
    asked = verifix.correct(model, *small_data(90), recipe="verifix", check_inputs=False)
    question = "It was not said whether the model was trained on these samples."
    assert question in capsys.readouterr().err
    first, second, *_ = asked.summary().splitlines()
    assert "verified samples (not said from where)" in first
    assert second.strip().startswith(question)
    assert f"<p>{question}" in asked._repr_html_()
    assert question in result_of(asked).warning
    assert asked.provenance["verified_from"] is None
    proof = asked.prove(verified_from="unseen")
    assert result_of(asked, proof).warning is None
    for told in (HOW, {"recipe": "verifix", "progress": False, "verified_from": "unseen"}, {"alpha": 30.0}):
        assert "It was not said" not in verifix.correct(model, x, y, **told).summary()
    with pytest.raises(UsageError, match=r"verified_from is 'unsen'; it must be .*; did you mean 'unseen'\?"):
        verifix.correct(model, x, y, verified_from="unsen")
    with pytest.raises(UsageError, match=r"recipe is 'projct'; .*; did you mean 'project'\?"):
        verifix.correct(model, x, y, recipe="projct", progress=False)


def test_models_are_scored_and_compared_as_their_answers_are(case):
    model, x, y, correction = case
    score = verifix.score(model, x.double().numpy(), names_of(y), classes=NAMES, progress=False)
    with torch.no_grad():
        logits = [network(x) for network in (model, correction.model)]
    assert score.accuracy == pytest.approx(100 * float((logits[0].argmax(1) == y).double().mean()))
    assert score.cross_entropy == pytest.approx(float(nn.functional.cross_entropy(logits[0], y)), rel=1e-5)
    assert [row.samples for row in score.per_class] == torch.bincount(y).tolist()
    assert score.notes == ("Inputs are torch.float64 and are converted to torch.float32, as the weights are.",)
    wanted = verifix.compare(*logits, y)
    for before, after in ((model, correction.model), (model, logits[1]), (logits[0], correction.model)):
        found = verifix.compare(before, after, x, y, progress=False)
        assert (found.fixed, found.broken, found.p_better) == (wanted.fixed, wanted.broken, wanted.p_better)
        assert found.before.cross_entropy == pytest.approx(wanted.before.cross_entropy, rel=1e-5)
    assert verifix.compare(model, correction.model, (x, y), progress=False).gain == wanted.gain
    assert verifix.compare(*logits, labels=y) == wanted
    named = verifix.compare(model, correction.model, x, names_of(y), classes=NAMES, progress=False)
    assert named.class_names == tuple(NAMES)
    assert set(named.to_frame()["class"]) == set(NAMES)
    changed = max(named.per_class, key=lambda row: row.fixed + row.broken)
    assert f"{NAMES[changed.label]}: " in named.summary()
    assert NAMES[changed.label] in named._repr_html_()
