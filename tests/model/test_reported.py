"""Situations that people reported of other tools; docs/reliability.md lists them with their threads."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError, NoLayersError, UsageError
from verifix.model.samples import read_samples

X, Y = small_data(80)
QUICK = {"alpha": 30.0, "progress": False, "check_labels": False}
CONVERTED = "Inputs are {} and are converted to {}, as the weights are."


def net(dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return memorised(small_net(), X, Y).to(dtype)


def same(found, wanted) -> bool:
    return all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())


# Inputs in another dtype than the weights

NUMBERS = {
    "an array of numpy": X.double().numpy(),
    "a frame": pd.DataFrame(X.double().numpy()),
    "a tensor": X.double(),
    "a dictionary": {"input": X.double()},
    "half precision": X.half(),
}


@pytest.mark.parametrize("inputs", NUMBERS.values(), ids=NUMBERS)
def test_inputs_with_fractions_are_converted_to_the_dtype_of_the_weights(inputs):
    found = verifix.correct(net(), (inputs, Y), **QUICK)
    given = torch.float16 if isinstance(inputs, torch.Tensor) and inputs.dtype == torch.float16 else torch.float64
    wanted = verifix.correct(net(), (X.to(given).float(), Y), **QUICK)
    assert same(found, wanted)
    assert found.notes[0] == CONVERTED.format(given, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_dtypes_get_inputs_of_theirs(dtype):
    found, wanted = (verifix.correct(net(dtype), (x, Y), **QUICK) for x in (X, X.to(dtype)))
    assert same(found, wanted)
    assert found.notes[0] == CONVERTED.format(torch.float32, dtype)


def test_proofs_and_trusted_samples_convert_too():
    proof = verifix.prove(
        net(), (X.double(), Y), **QUICK | {"recipe": "verifix", "check_inputs": False}, verified_from="unseen"
    )
    assert torch.equal(
        proof.after,
        verifix.prove(
            net(), (X, Y), **QUICK | {"recipe": "verifix", "check_inputs": False}, verified_from="unseen"
        ).after,
    )
    picked = [verifix.trust(net(), (x, Y), count=30, progress=False).indices for x in (X, X.double())]
    assert picked[0] == picked[1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_refused_with_the_remedy_as_their_scale_is_not_known(dtype):
    with pytest.raises(DataError, match=r"dtype.*; convert the inputs to torch.float32, the dtype of the weights"):
        verifix.correct(net(), ((10 * X).to(dtype), Y), **QUICK)


def test_the_dtype_of_images_is_named_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    images = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(DataError, match=r"\(unsigned char\) .*; convert the inputs to torch.float32"):
        verifix.correct(model.eval(), (images, Y), **QUICK)


@pytest.mark.parametrize(
    ("wanted", "shape", "remedy"),
    [
        (3, (8, 8, 3), r"channels are last: give inputs.permute\(0, 3, 1, 2\)"),
        (1, (3, 8, 8), "one number for --mean and"),
    ],
    ids=["channels last", "grey"],
)
def test_images_with_other_channels_are_refused_with_the_remedy(wanted, shape, remedy):
    model = nn.Sequential(nn.Conv2d(wanted, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(DataError, match=rf"to have {wanted} channels, but got \d channels instead; .*{remedy}"):
        verifix.correct(model.eval(), (torch.rand(80, *shape), Y), **QUICK)


# Tables and data sets as a whole

WHOLE = {
    "a frame": pd.DataFrame(X.numpy()).assign(label=Y.numpy()),
    "a frame of arrow": pyarrow.table({"a": X[:, 0].numpy(), "label": Y.numpy()}),
}


@pytest.mark.parametrize("table", WHOLE.values(), ids=WHOLE)
def test_a_table_as_a_whole_is_refused_with_the_remedy(table):
    with pytest.raises(UsageError, match=r"whose columns of inputs and labels are not told apart; give a pair such as"):
        verifix.correct(net(), table, **QUICK)


def rows():
    import datasets

    return datasets.Dataset.from_dict({"input": X.tolist(), "label": Y.tolist()})


LISTS = {
    "rows of the datasets library": rows,
    "a stream of it": lambda: rows().to_iterable_dataset(),
    "a loader of it": lambda: DataLoader(rows(), batch_size=16),
    "with its format": lambda: rows().with_format("torch"),
    "pairs with lists": lambda: [(x.tolist(), int(y)) for x, y in zip(X, Y, strict=True)],
    "nested lists": lambda: [(x.reshape(2, 4).tolist(), int(y)) for x, y in zip(X, Y, strict=True)],
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_numbers_are_vectors_and_are_not_taken_apart(form):
    samples = read_samples(LISTS[form]())
    batch = next(samples.batches([3, 5, 7], 3)).inputs
    batch = batch["input"] if isinstance(batch, dict) else batch
    assert torch.equal(batch.reshape(3, 8), X[[3, 5, 7]])


def test_tuples_of_numbers_stay_arguments_of_their_own():
    samples = read_samples([((1.0, 2.0), 0), ((3.0, 4.0), 1), ((5.0, 6.0), 2)])
    first, second = next(samples.batches(range(3), 3)).inputs
    assert (first.tolist(), second.tolist()) == ([1.0, 3.0, 5.0], [2.0, 4.0, 6.0])


def test_several_splits_are_refused_with_the_remedy():
    import datasets

    splits = datasets.DatasetDict(train=rows(), test=rows())
    with pytest.raises(UsageError, match=r"a DatasetDict with the splits train, test; give one of them"):
        verifix.correct(net(), splits, **QUICK)


# Labels

OUT_OF_RANGE = {
    "counted from 1": (Y + 1, r"labels go from 0 to 2; \d+ of 80 labels do not fit; they seem to count from 1"),
    "ignored by -100": (
        torch.where(torch.arange(80) == 7, -100, Y),
        "label -100.*marks samples without a label: leave",
    ),
    "ignored by -1": (torch.where(torch.arange(80) == 7, -1, Y), "label -1.*marks samples without a label: leave them"),
    "too large": (
        torch.where(torch.arange(80) == 7, 9, Y),
        "sample 7 has label 9.*; correct them, or leave the samples",
    ),
    "names": (
        [f"class {y}" for y in Y.tolist()],
        r"names \(class 0, class 1, class 2\).*classes= with all class names in the order of the outputs",
    ),
}


@pytest.mark.parametrize(("labels", "told"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_labels_that_do_not_fit_are_refused_with_the_remedy(labels, told):
    with pytest.raises(DataError, match=told):
        verifix.correct(net(), (X, labels), **QUICK)


# Pruned weights


def pruned() -> nn.Sequential:
    model = net()
    for layer in (model[0], model[3], model[5]):
        prune.l1_unstructured(layer, "weight", 0.5)
    return model


def test_weights_under_a_mask_of_pruning_are_skipped_with_the_remedy():
    model = pruned()
    with pytest.raises(NoLayersError, match=r"0.weight_orig skipped \(a mask .*prune.remove\(module, 'weight'\) makes"):
        verifix.correct(model, (X, Y), **QUICK)
    for layer in (model[0], model[3], model[5]):
        prune.remove(layer, "weight")
    assert verifix.correct(model, (X, Y), **QUICK).changed


def test_a_correction_that_fills_zeros_of_pruning_says_so():
    model = pruned()
    for layer in (model[0], model[3], model[5]):
        prune.remove(layer, "weight")
    found = verifix.correct(model, (X, Y), **QUICK)
    zeros = {name: (x == 0).double().mean() for name, x in found.original.items()}
    assert all(share == 0.5 for share in zeros.values())
    assert any((found.corrected[name] == 0).double().mean() < share for name, share in zeros.items())
    told = [
        note for note in found.notes if "exactly 0, as after pruning, are so no longer: '0.weight' (50% bef" in note
    ]
    assert len(told) == 1
    assert not any("pruning" in note for note in verifix.correct(net(), (X, Y), **QUICK).notes)


# What was right already


def test_layers_that_write_in_place_see_the_same_rows():
    wanted = net()
    found = copy.deepcopy(wanted)
    wanted[2], wanted[4] = nn.ReLU(), nn.ReLU()
    assert same(verifix.correct(found, (X, Y), **QUICK), verifix.correct(wanted, (X, Y), **QUICK))


def test_heads_for_training_alone_are_not_used():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.aux = net(), nn.Linear(8, 3)

        def forward(self, x):
            return (self.net(x), self.aux(x)) if self.training else self.net(x)

    model = Auxiliary().train()
    found = verifix.correct(model, (X, Y), **QUICK)
    wanted = verifix.correct(net(), (X, Y), **QUICK)
    assert all(torch.equal(found.corrected[f"net.{name}"], value) for name, value in wanted.corrected.items())
    assert {layer.parameter: layer.status for layer in found.layers}["aux.weight"] == "unused"
    assert model.training


def test_adapters_with_a_head_of_their_own_are_corrected_in_it(vision):
    import peft

    config = peft.LoraConfig(target_modules=["0"], modules_to_save=["5"])
    model = peft.get_peft_model(net(), config).eval()
    found = {layer.parameter: layer.status for layer in verifix.correct(model, (X, Y), **QUICK).layers}
    assert found["base_model.model.5.modules_to_save.default.weight"] == "corrected"
    assert found["base_model.model.5.original_module.weight"] == "unused"


def test_inputs_that_ask_for_gradients_and_other_memory_formats_are_taken_as_they_are():
    wanted = verifix.correct(net(), (X, Y), **QUICK)
    assert same(verifix.correct(net(), (X.clone().requires_grad_(), Y), **QUICK), wanted)
    assert same(verifix.correct(net(), (np.asfortranarray(X.numpy()), Y), **QUICK), wanted)
