"""Labels as people bring them: floats where numbers were blank, columns, objects, and two names for them in a batch."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError
from verifix.model.samples import read_samples

X, Y = small_data(60)

FORMS = {
    "float32": Y.float(),
    "float64 of numpy": Y.double().numpy(),
    "float16": Y.half(),
    "a list of floats": Y.double().tolist(),
    "a column": Y[:, None],
    "a column of floats": Y[:, None].float(),
    "a frame": pd.DataFrame({"label": Y.numpy()}),
    "a series of floats": pd.Series(Y.double().numpy()),
    "a series of nullable integers": pd.Series(Y.numpy()).astype("Int64"),
    "a series of nullable floats": pd.Series(Y.double().numpy()).astype("Float64"),
    "a series of objects": pd.Series(Y.tolist(), dtype=object),
    "an array of objects": np.array([float(y) for y in Y], dtype=object),
    "categories": pd.Series(Y.numpy()).astype("category"),
}


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_whole_numbers_are_class_indices_whatever_holds_them(labels):
    assert read_samples((X, labels)).labels.tolist() == Y.tolist()


def test_a_correction_from_float_labels_is_that_from_integers():
    net = memorised(small_net(), X, Y)
    wanted = verifix.correct(net, (X, Y), alpha=30.0, progress=False)
    items = [(x, float(y)) for x, y in zip(X, Y, strict=True)]
    for form in ((X, Y.float()), items, DataLoader(items, batch_size=16), {"x": X, "y": Y.double()}):
        found = verifix.correct(net, form, alpha=30.0, progress=False, forward=lambda model, x: model(_plain(x)))
        for name, value in wanted.corrected.items():  # batches of 16 round otherwise
            torch.testing.assert_close(found.corrected[name], value, rtol=1e-5, atol=1e-6)


def _plain(inputs):
    return inputs["x"] if isinstance(inputs, dict) else inputs


def with_value(value, dtype=None):
    labels = Y.double().tolist()
    labels[7] = value
    return pd.Series(labels, dtype=dtype)


BROKEN = {
    "half a class": (with_value(1.5), r"number 7 of them is 1\.5"),
    "nan": (with_value(float("nan")), "number 7 of them is nan"),
    "inf": (with_value(float("inf")), "number 7 of them is inf"),
    "beyond what floats can count": (with_value(2.0**60), "number 7 of them is 1152921504606846976"),
    "a blank among nullable integers": (with_value(None, "Int64"), "number 7 of them is nan"),
    "a blank among objects": (with_value(None, object), "number 7 of them is None"),
    "a name among objects": (with_value("cat", object), "number 7 of them is 'cat'"),
    "complex": (Y.to(torch.complex64), "labels are torch.complex64"),
}


@pytest.mark.parametrize(("labels", "told"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_number_is_refused_by_its_place(labels, told):
    with pytest.raises(DataError, match=rf"{told}.*class indices \(integers\)"):
        read_samples((X, labels))


def test_a_sample_with_half_a_class_is_named():
    items = [(x, 1.5 if i == 7 else float(y)) for i, (x, y) in enumerate(zip(X, Y, strict=True))]
    with pytest.raises(DataError, match=r"sample 7: labels are torch.float64, and number 0 of them is 1\.5"):
        read_samples(items)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_one_column_per_class_is_refused_with_the_remedy(dtype):
    with pytest.raises(DataError, match=r"shape \[60, 3\] for 60 inputs; .*argmax\(1\)"):
        read_samples((X, torch.nn.functional.one_hot(Y, 3).to(dtype)))


def test_a_comparison_takes_whole_floats():
    logits = torch.randn(60, 3, dtype=torch.float64)
    wanted = verifix.compare(logits, logits.roll(1, 1), Y).as_dict()
    assert verifix.compare(logits, logits.roll(1, 1), Y.double().tolist()).as_dict() == wanted


# Two names for the labels of a batch

TWICE = [("y", "label"), ("labels", "target"), ("targets", "y"), ("label", "labels")]


@pytest.mark.parametrize(("first", "second"), TWICE, ids=map("-".join, TWICE))
@pytest.mark.parametrize("form", ["items", "loader", "columns"])
def test_labels_under_two_names_are_read_if_they_are_equal_and_else_refused(first, second, form):
    def samples(other):
        items = [{"x": x, first: y, second: z} for x, y, z in zip(X, Y, other, strict=True)]
        forms = {
            "items": items,
            "loader": DataLoader(items, batch_size=8),
            "columns": {"x": X, first: Y, second: other},
        }
        return forms[form]

    equal = read_samples(samples(Y.double()))
    assert equal.labels.tolist() == Y.tolist()
    assert set(equal.alone(0).inputs) == {"x"}
    other = Y.clone()
    other[40] = (other[40] + 1) % 3
    with pytest.raises(DataError, match=r"labels under (\w+) and (\w+), which differ; .* leave one of them out"):
        read_samples(samples(other))


def test_a_label_and_its_name_are_two_labels():
    items = [{"x": x, "y": y, "label": f"class {y}"} for x, y in zip(X, Y, strict=True)]
    with pytest.raises(DataError, match=r"sample 0: .* labels under label and y, which differ"):
        read_samples(items)


def test_a_batch_without_labels_says_which_names_are_known():
    with pytest.raises(DataError, match="has the keys x, z; the labels must be under one of labels, label, targets"):
        read_samples([{"x": x, "z": y} for x, y in zip(X, Y, strict=True)])


def test_named_tuples_are_pairs():
    sample = namedtuple("Sample", "image label")
    assert read_samples([sample(x, y) for x, y in zip(X, Y, strict=True)]).labels.tolist() == Y.tolist()
