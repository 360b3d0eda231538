from __future__ import annotations

import copy
import gc
import resource

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import verifix
from tests.cases import captured, projected, small_data, small_net
from verifix import CheckpointError, DataError, NoLayersError, UsageError
from verifix.capture.layer import rounded_once
from verifix.cli.demo import digits
from verifix.losses import cross_entropy, tempered_cross_entropy
from verifix.model.folds import split_folds
from verifix.model.samples import read_samples
from verifix.model.threads import set_by_user
from verifix.projection import prepare
from verifix.storage.tensors import read_safetensors, write_safetensors


@pytest.fixture(scope="module")
def noisy():
    """A network that has memorised wrong labels, and verified samples that it has not seen."""
    data = digits.load(0)
    return digits.trained(data, 0), data


def verified(data):
    return data.inputs[data.verified], data.labels[data.verified]


def corrected_weights(correction) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in correction.model.named_parameters()}


def test_a_number_is_exactly_the_projection_of_every_layer():
    model, (x, y) = small_net().double().eval(), small_data()
    correction = verifix.correct(model, (x.double(), y), alpha=25.0, progress=False)
    expected = projected(model, captured(model, x.double())[0], 25.0)
    assert correction.alpha == 25.0
    assert correction.curve == ()
    assert set(expected) == {"0.weight", "3.weight", "5.weight"}
    for name, value in corrected_weights(correction).items():
        torch.testing.assert_close(value, expected.get(name, dict(model.named_parameters())[name]), rtol=0, atol=1e-12)


def test_a_number_is_applied_even_if_it_harms():
    model, (x, y) = small_net().eval(), small_data(2)
    assert verifix.correct(model, (x, y), alpha=1, progress=False).alpha == 1.0


def test_the_model_is_copied_with_its_flags_and_stays_as_it_was():
    model, (x, y) = small_net().train(), small_data()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    fixed = verifix.correct(model, (x, y), alpha=10, progress=False).model
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in fixed.modules()] == [m.training for m in model.modules()]
    assert not torch.equal(fixed[0].weight, model[0].weight)
    assert torch.equal(fixed[0].bias, model[0].bias)
    assert all(p.requires_grad for p in fixed.parameters())


@pytest.mark.parametrize("batch_size", [1, 7, 64, 80])
def test_batch_size_does_not_change_the_result(batch_size):
    model, (x, y) = small_net().eval(), small_data()
    whole = verifix.correct(model, (x, y), alpha=30, batch_size=80, progress=False)
    parts = verifix.correct(model, (x, y), alpha=30, batch_size=batch_size, progress=False)
    for name, value in whole.corrected.items():
        # Chunks of rows in float32 are those of batches, and α multiplies what they round away.
        assert float((parts.corrected[name] - value).norm() / value.norm()) <= 1e-7 * 30, name


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_trained_network_feels_batch_size_by_the_rounding_of_its_own_forward_pass(noisy, batch_size):
    model, data = noisy
    whole = verifix.correct(model, verified(data), alpha=562, batch_size=200, progress=False)
    parts = verifix.correct(model, verified(data), alpha=562, batch_size=batch_size, progress=False)
    for name, value in whole.corrected.items():
        assert float((parts.corrected[name] - value).norm() / value.norm()) <= 5e-7, name
    exact, other = (
        verifix.correct(
            copy.deepcopy(model).double(),
            (verified(data)[0].double(), verified(data)[1]),
            alpha=562,
            batch_size=size,
            progress=False,
        )
        for size in (200, batch_size)
    )
    for name, value in exact.corrected.items():
        assert float((other.corrected[name] - value).norm() / value.norm()) <= 1e-12, name


def test_one_thread_or_two_give_the_same_result():
    model, (x, y) = small_net().eval(), small_data()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(verifix.correct(model, (x, y), alpha=30, progress=False))
    finally:
        torch.set_num_threads(threads)
    for name, value in results[0].corrected.items():
        assert float((results[1].corrected[name] - value).norm() / value.norm()) <= 1e-7


class Items(Dataset):
    def __init__(self, x, y) -> None:
        self.x, self.y, self.reads = x, y, []

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i):
        self.reads.append(i)
        return self.x[i], int(self.y[i])


class Stream(IterableDataset):
    def __init__(self, x, y) -> None:
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


def test_every_form_of_verified_samples_gives_the_same_correction():
    model, (x, y) = small_net().eval(), small_data()
    plain = TensorDataset(x, y)
    forms = {
        "pair": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "dataset": plain,
        "own dataset": Items(x, y),
        "loader": DataLoader(plain, batch_size=16),
        "shuffling loader": DataLoader(plain, batch_size=16, shuffle=True),
        "dropping loader": DataLoader(plain, batch_size=33, shuffle=True, drop_last=True),
        "workers": DataLoader(plain, batch_size=16, num_workers=1),
        "stream": DataLoader(Stream(x, y), batch_size=16),
        "bare stream": Stream(x, y),
        "batch sampler": DataLoader(plain, batch_sampler=torch.utils.data.BatchSampler(range(80), 20, False)),
    }
    results = {
        name: verifix.correct(model, form, recipe="verifix", batch_size=16, progress=False)
        for name, form in forms.items()
    }
    expected = results["pair"]
    for name, result in results.items():
        assert result.alpha == expected.alpha, name
        for key, value in expected.corrected.items():
            torch.testing.assert_close(result.corrected[key], value, rtol=0, atol=1e-6, msg=name)


def test_a_dataset_too_large_for_memory_is_read_again_by_index(monkeypatch):
    monkeypatch.setattr("verifix.model.samples.MEMORY_BYTES", 100)
    model, (x, y) = small_net().eval(), small_data()
    items = Items(x, y)
    again = verifix.correct(model, items, alpha=30, progress=False)
    tried = [0, 1, 0, 1, 78, 79, 0, 1]  # by the original and by the copy, before and after others
    tried += [0, 40, 0, 40]  # for what outputs mean
    for_threads = [] if set_by_user(torch.get_num_threads()) else [0, 1]
    # Checked, tried, tried alone, captured, looked at for colours.
    assert items.reads == [*range(80), *tried, *for_threads, 0, *range(80), 0]
    held = verifix.correct(model, (x, y), alpha=30, progress=False)
    assert torch.equal(again.corrected["0.weight"], held.corrected["0.weight"])


def test_folds_hold_all_samples_once_balanced_with_duplicates_together():
    x, y = small_data(90)
    x[40:50] = x[3]
    folds = split_folds(read_samples((x, y)), 5, seed=0)
    assert sorted(np.concatenate(folds)) == list(range(90))
    (home,) = [k for k, fold in enumerate(folds) if 3 in fold]
    assert set(range(40, 50)) <= set(folds[home])
    for fold in folds:
        assert np.bincount(y[fold], minlength=3).min() >= 3


def test_cross_fitting_scores_each_fold_by_a_correction_that_never_saw_it():
    model, (x, y) = small_net().double().eval(), small_data()
    x = x.double()
    correction = verifix.correct(model, (x, y), recipe="verifix", progress=False, loss=cross_entropy)
    point = next(p for p in correction.curve if p.strength == 100.0)
    folds = split_folds(read_samples((x, y)), 5, seed=0)
    losses = torch.empty(80, dtype=torch.float64)
    for fold in folds:
        others = sorted(set(range(80)) - set(fold.tolist()))
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for name, value in projected(model, captured(model, x[others])[0], 100.0).items():
                twin.get_parameter(name).copy_(value)
            losses[fold] = cross_entropy(twin(x[fold]), y[fold])
            plain = cross_entropy(model(x), y)
    assert point.loss == pytest.approx(float(losses.mean()), rel=1e-9)
    gains = plain - losses
    assert point.loss_gain == pytest.approx(float(gains.mean()), rel=1e-7)
    assert point.standard_error == pytest.approx(float(gains.std() / 80**0.5), rel=1e-7)


def test_each_fold_is_tried_at_most_nine_times(noisy):
    model, data = noisy
    curve = verifix.correct(model, verified(data), recipe="verifix", progress=False).curve
    strengths = [p.strength for p in curve]
    assert strengths[0] is None
    assert len(strengths) <= 10
    assert strengths[1:] == sorted(strengths[1:])


def test_the_digits_gain_from_correction(noisy):
    model, data = noisy
    correction = verifix.correct(model, verified(data), recipe="verifix", progress=False)
    unseen, labels = data.inputs[data.unseen], data.labels[data.unseen]
    before, after = (float((m(unseen).argmax(1) == labels).double().mean()) for m in (model, correction.model))
    assert float((model(data.inputs[data.training]).argmax(1) == data.given).double().mean()) >= 0.95
    assert after - before >= 0.05


def test_permuted_labels_are_not_projected_on(often):
    kept, seeds = 0, often(10)
    for seed in range(seeds):
        data = digits.load(seed)
        x, y = verified(data)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        correction = verifix.correct(
            digits.trained(data, seed), (x, y[order]), recipe="verifix", seed=seed, progress=False
        )
        kept += correction.alpha is None
    assert kept >= 0.9 * seeds


def test_no_change_changes_nothing(noisy):
    model, data = noisy
    x, y = verified(data)
    correction = verifix.correct(model, (x, y.roll(1)), recipe="verifix", progress=False)
    assert correction.alpha is None
    assert not correction.changed
    assert correction.choices["project"].reason.startswith("no change")
    assert all(torch.equal(a, b) for a, b in zip(correction.model.parameters(), model.parameters(), strict=True))
    correction.apply_(model)
    assert "nothing" not in repr(correction)


def test_samples_of_the_training_set_are_called_what_they_are(noisy):
    model, data = noisy
    chosen = data.training[:200]
    correction = verifix.correct(
        model, (data.inputs[chosen], data.labels[chosen]), recipe="verifix", verified_from="training", progress=False
    )
    assert "do not estimate accuracy on new data" in correction.summary()
    assert "--test" in correction.summary()
    unseen = verifix.correct(model, verified(data), recipe="verifix", progress=False)
    assert "do not estimate" not in unseen.summary()


def test_own_score_and_loss_choose(noisy):
    model, data = noisy

    def refuse(logits, labels):
        return torch.tensor(-float(len(calls.append(1) or calls)))

    calls: list = []
    assert verifix.correct(model, verified(data), recipe="verifix", score=refuse, progress=False).alpha is None
    constant = verifix.correct(
        model, verified(data), recipe="verifix", loss=lambda z, y: torch.ones(len(y)), progress=False
    )
    assert constant.alpha is None
    with pytest.raises(verifix.VerifixError, match=r"loss= returned shape \[\]"):
        verifix.correct(model, verified(data), loss=lambda z, y: torch.tensor(1.0), progress=False)


def test_one_logit_is_a_binary_classifier():
    x, y = small_data(120, classes=2)
    model = small_net(classes=1).eval()
    correction = verifix.correct(model, (x, y), recipe="verifix", progress=False)
    assert 0 <= correction.curve[0].score <= 1
    flat = nn.Sequential(*model, nn.Flatten(0))
    assert verifix.correct(flat, (x, y), recipe="verifix", progress=False).curve[0].loss == correction.curve[0].loss
    with pytest.raises(DataError, match="labels go from 0 to 1"):
        verifix.correct(model, (x, y + 1), progress=False)


def test_tempered_loss_does_not_care_about_confidence_and_knows_when_there_is_none():
    logits, labels = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 4
    logits[range(60), labels] += 1
    a, b = tempered_cross_entropy(logits, labels), tempered_cross_entropy(0.01 * logits, labels)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    sharpness = torch.linspace(0, 20, 4001).double()
    grid = min(float(cross_entropy(logits * s, labels).mean()) for s in sharpness)
    assert float(a.mean()) == pytest.approx(grid, abs=1e-5)
    assert torch.equal(tempered_cross_entropy(-logits, labels), torch.full((60,), 4.0).double().log())
    assert torch.equal(tempered_cross_entropy(0 * logits, labels), torch.full((60,), 4.0).double().log())


def test_earlier_moments_are_added(tmp_path):
    model, (x, y) = small_net().double().eval(), small_data()
    x = x.double()
    file = verifix.collect_moments(model, (x[:30], y[:30]), progress=False).save(tmp_path / "m.safetensors")
    both = verifix.correct(model, (x[30:], y[30:]), alpha=40, moments=file, progress=False)
    whole = verifix.correct(model, (x, y), alpha=40, progress=False)
    for name, value in whole.corrected.items():
        torch.testing.assert_close(both.corrected[name], value, rtol=0, atol=1e-13)
    assert [r.rows for r in both.layers] == [r.rows for r in whole.layers]
    assert verifix.correct(model, (x[30:], y[30:]), recipe="verifix", moments=file, progress=False).curve
    with pytest.raises(DataError, match="30 of the verified samples are in"):
        verifix.correct(model, (x, y), alpha=40, moments=file, progress=False)
    with pytest.raises(CheckpointError, match="moments of other weights"):
        verifix.correct(small_net().double(), (x[30:], y[30:]), alpha=40, moments=file, progress=False)
    partial = verifix.collect_moments(model, (x[:30], y[:30]), include=["0.*"], progress=False)
    with pytest.raises(CheckpointError, match=r"no moments of 3\.weight"):
        verifix.correct(model, (x[30:], y[30:]), alpha=40, moments=partial, progress=False)


def test_moments_of_an_older_format_are_refused_in_one_line(tmp_path):
    model, (x, y) = small_net().double().eval(), small_data()
    x = x.double()
    file = verifix.collect_moments(model, (x[:30], y[:30]), progress=False).save(tmp_path / "m.safetensors")
    tensors, metadata = read_safetensors(file)
    assert {name.partition(".")[2] for name in tensors} == {"gram"}
    metadata["verifix"] = metadata["verifix"].replace("verifix-moments-4", "verifix-moments-3")
    write_safetensors(file, tensors, metadata, force=True)
    with pytest.raises(CheckpointError, match=r"not a verifix moments file .*verifix-moments-3") as caught:
        verifix.correct(model, (x[30:], y[30:]), alpha=40, moments=file, progress=False)
    assert "\n" not in str(caught.value)


def test_half_precision_weights_are_corrected_in_float64_and_rounded_once():
    model, (x, y) = small_net(bn=False).to(torch.bfloat16).eval(), small_data()
    x = x.to(torch.bfloat16)
    correction = verifix.correct(model, (x, y), alpha=30, progress=False)
    (first,) = [m for layer, m in captured(model, x)[0].items() if layer.parameter == "0.weight"]
    exact = prepare(model[0].weight.detach()[None].double(), first).project(30.0)[0]
    assert correction.corrected["0.weight"].dtype == torch.bfloat16
    assert torch.equal(correction.corrected["0.weight"], rounded_once(exact, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_takes_the_nearest_value(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[torch.isfinite(every)].double().unique()
    low, high = every[:-1], every[1:]
    middle, gap = (low + high) / 2, high - low
    for shift in (2.0**-40, 2.0**-30, 0.1, 0.4):
        assert torch.equal(rounded_once(middle - shift * gap, dtype).double(), low)
        assert torch.equal(rounded_once(middle + shift * gap, dtype).double(), high)
    assert torch.equal(rounded_once(middle, dtype), middle.float().to(dtype))  # ties, which float32 holds exactly
    twice = (middle + 2.0**-40 * gap).to(dtype).double()
    assert int((twice != high).sum()) > 1000  # what torch alone makes of it


def test_weights_that_are_stored_in_half_precision_are_rounded_once_and_scored_so():
    model, (x, y) = small_net(bn=False).eval(), small_data()
    plain = verifix.correct(model, (x, y), alpha=30, progress=False)
    stored = dict.fromkeys(dict(model.named_parameters()), torch.bfloat16)
    half = verifix.correct(model, (x, y), alpha=30, stored_as=stored, progress=False)
    (first,) = [m for layer, m in captured(model, x)[0].items() if layer.parameter == "0.weight"]
    exact = prepare(model[0].weight.detach()[None].double(), first).project(30.0)[0]
    found = half.corrected["0.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, rounded_once(exact, torch.bfloat16).float())
    assert not torch.equal(found, plain.corrected["0.weight"])
    assert torch.equal(half.model[0].weight, found)
    assert plain.unchanged_by_rounding < 0.01


def test_include_and_exclude_reach_the_weights():
    model, (x, y) = small_net().eval(), small_data()
    assert set(verifix.correct(model, (x, y), alpha=9, include=["3.*"], progress=False).corrected) == {"3.weight"}
    assert "0.weight" not in verifix.correct(model, (x, y), alpha=9, exclude=["0.*"], progress=False).corrected
    reports = {r.parameter: r for r in verifix.correct(model, (x, y), alpha=9, exclude=["0.*"], progress=False).layers}
    assert (reports["0.weight"].status, reports["0.weight"].reason) == ("skipped", "not selected")
    assert reports["0.weight"].effective_rank is None
    assert reports["3.weight"].effective_rank > 1
    assert 0 < reports["3.weight"].relative_change < 1


def bad_inputs() -> dict:
    (x, y), nan = small_data(), torch.full((1,), float("nan"))
    x_nan = x.clone()
    x_nan[7, 3] = float("nan")
    net = small_net

    def poisoned(value: float) -> nn.Module:
        model = net()
        with torch.no_grad():
            model[3].weight[2, 2] = value
        return model

    class Odd(nn.Linear):
        def forward(self, x):
            return {"scores": super().forward(x)}

    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b((self.a(x) * 1e38) * 1e38).nan_to_num()

    return {
        "too few to choose": (net(), (x[:49], y[:49]), {}, DataError, "49 verified samples, but choosing"),
        "too few for the folds": (net(), (x, y), {"folds": 50}, DataError, "needs at least 100"),
        "one sample": (net(), (x[:1], y[:1]), {"alpha": 5}, DataError, "needs at least 2"),
        "none": (net(), (x[:0], y[:0]), {}, DataError, "is empty"),
        "empty stream": (net(), Stream(x[:0], y[:0]), {}, DataError, "is empty"),
        "label too high": (net(), (x, y + 1), {}, DataError, "sample 2 has label 3, but the model has 3 outputs"),
        "label -100": (net(), (x, y - 100), {}, DataError, "label -100"),
        "float labels": (net(), (x, y.float() / 2), {}, DataError, "labels are torch.float32"),
        "labels (n, 2)": (net(), (x, torch.stack([y, y], 1)), {}, DataError, r"labels have shape \[80, 2\]"),
        "fewer labels": (net(), (x, y[:-1]), {}, DataError, "do not match; give one label"),
        "nan input": (net(), (x_nan, y), {}, DataError, "input of sample 7 contains NaN or Inf"),
        "nan weight": (poisoned(float("nan")), (x, y), {}, DataError, "'3.weight' of the model contains NaN"),
        "inf weight": (poisoned(float("inf")), (x, y), {}, DataError, "'3.weight' of the model contains NaN"),
        "nan activation": (
            Infinite(),
            (x, y),
            {"alpha": 2, "outputs": "logits"},
            DataError,
            "layer 'b.weight' contains NaN or Inf",
        ),
        "width": (net(d_in=9), (x, y), {}, DataError, "cannot run on inputs of shape"),
        "dict output": (Odd(8, 3), (x, y), {}, DataError, "returned a dict"),
        "3-d output": (
            nn.Sequential(nn.Linear(8, 3), nn.Unflatten(1, (3, 1))),
            (x, y),
            {},
            DataError,
            "it must return",
        ),
        "no layers": (
            nn.Sequential(nn.LayerNorm(8)),
            (x, y % 8),
            {"check_labels": False},
            NoLayersError,
            "no weight matrix at all",
        ),
        "no usable layers": (
            nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)),
            (x, y),
            {},
            NoLayersError,
            "the parametrization SpectralNorm computes the weight from it",
        ),
        "not a module": (lambda x: x, (x, y), {}, UsageError, "must be a torch.nn.Module"),
        "not samples": (net(), 5, {}, UsageError, "verified is a int"),
        "not pairs": (net(), [x, y, nan], {}, DataError, "a batch of the verified set has Tensor"),
        "alpha word": (net(), (x, y), {"alpha": "big"}, UsageError, "alpha is 'big'"),
        "alpha zero": (net(), (x, y), {"alpha": 0}, UsageError, "alpha is 0"),
        "alpha nan": (net(), (x, y), {"alpha": float("nan")}, UsageError, "alpha is nan"),
        "folds": (net(), (x, y), {"folds": 1}, UsageError, "folds is 1"),
        "seed": (net(), (x, y), {"seed": -1}, UsageError, "seed is -1"),
        "batch size": (net(), (x, y), {"batch_size": 0}, UsageError, "batch_size is 0"),
        "recipe": (net(), (x, y), {"recipe": "magic"}, UsageError, "recipe is 'magic'"),
        "verified from": (net(), (x, y), {"verified_from": "heaven"}, UsageError, "verified_from is 'heaven'"),
        "device": (net(), (x, y), {"device": "warp:9"}, UsageError, "device 'warp:9' is not available"),
        "text pattern": (net(), (x, y), {"include": "0.*"}, UsageError, "must be a list of patterns"),
        "pattern": (net(), (x, y), {"exclude": ["head.*"]}, UsageError, "matches no layer"),
        "moments file": (net(), (x, y), {"moments": "missing.safetensors"}, UsageError, "does not exist"),
        "all duplicates": (
            net(),
            (x[:1].repeat(60, 1), y[:60]),
            {"check_labels": False},
            DataError,
            "only 1 different inputs",
        ),
        "meta": (nn.Linear(8, 3, device="meta"), (x, y), {}, UsageError, "meta device"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_gets_one_clear_line(name):
    model, samples, options, error, text = bad_inputs()[name]
    with pytest.raises(error, match=text) as caught:
        verifix.correct(model, samples, progress=False, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 40


def test_a_second_correction_of_the_same_weights_is_refused(noisy):
    model, data = noisy
    correction = verifix.correct(model, verified(data), alpha=500, progress=False)
    with pytest.raises(CheckpointError, match="corrected already"):
        verifix.correct(correction.model, verified(data), progress=False)
    reloaded = copy.deepcopy(model)
    reloaded.load_state_dict(correction.model.state_dict())
    with pytest.raises(CheckpointError, match="corrected already"):
        verifix.correct(reloaded, verified(data), progress=False)
    correction.undo_(reloaded)
    assert verifix.correct(reloaded, verified(data), alpha=500, progress=False).alpha == 500


def test_memory_that_runs_out_is_met_with_smaller_batches_unless_the_user_set_the_size():
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            if len(x) > 20:
                raise torch.OutOfMemoryError("no more")
            return self.net(x)

    model, (x, y) = Hungry().eval(), small_data()
    assert verifix.correct(model, (x, y), alpha=5, progress=False).alpha == 5
    choosing = verifix.correct(model, (x, y), recipe="project,refit", progress=False)
    assert choosing.curve  # no fold holds as many samples as a batch may
    assert len(verifix.collect_moments(model, (x, y), progress=False).digests) == 80
    with pytest.raises(verifix.VerifixError, match="memory ran out with batches of 40"):
        verifix.correct(model, (x, y), alpha=5, batch_size=40, progress=False)


def test_a_hundred_corrections_do_not_grow_memory(often):
    model, (x, y) = small_net().eval(), small_data()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    for _ in range(often(20)):
        verifix.correct(model, (x, y), recipe="verifix", progress=False)
    count, peak = tensors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(often(100)):
        verifix.correct(model, (x, y), recipe="verifix", progress=False)
    assert tensors() <= count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000  # kilobytes


def test_progress_goes_to_stderr_and_can_be_turned_off(capsys):
    model, (x, y) = small_net().eval(), small_data()
    verifix.correct(model, (x, y), recipe="verifix", progress=False)
    assert capsys.readouterr() == ("", "")
    verifix.correct(model, (x, y), recipe="verifix")
    out, err = capsys.readouterr()
    assert out == ""
    assert "moments" in err
    assert "strength of project" in err


@pytest.mark.parametrize("check_labels", [True, False])
@pytest.mark.parametrize("call", ["correct", "prove"])
def test_a_given_strength_takes_one_run_per_sample_beside_a_few_samples(call, check_labels):
    class Counting(nn.Module):
        seen = 0

        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            Counting.seen += len(x)
            return self.net(x)

    x, y = small_data(400)
    settings = {"alpha": 30.0, "progress": False, "check_labels": check_labels, "check_inputs": False}
    settings["verified_from"] = "unseen"
    getattr(verifix, call)(Counting().eval(), (x, y), **settings)
    predicted = {"correct": 0, "prove": 2 * 400}[call]  # before and after, of every fold
    assert 400 + predicted <= Counting.seen <= 400 + predicted + 30


@pytest.mark.parametrize("saved", [False, True])
def test_strengths_beyond_what_float32_can_tell_are_computed_from_products_in_float64(saved):
    torch.manual_seed(0)
    x, y = torch.randn(400, 6), torch.arange(400) % 3
    x = x @ torch.linalg.qr(torch.randn(6, 6))[0] * torch.tensor([1.0, 1.0, 1.0, 1e-4, 1e-4, 1e-4])
    x = x @ torch.linalg.qr(torch.randn(6, 6))[0]  # small in directions that are no axes
    model, alpha = nn.Linear(6, 3), 1e9
    settings = {"alpha": alpha, "include": ["weight"], "progress": False, "check_labels": False}
    if saved:
        moments = verifix.collect_moments(model, (x[:200], y[:200]), progress=False)
        fixed = verifix.correct(model, (x[200:], y[200:]), moments=moments, **settings)
    else:
        fixed = verifix.correct(model, (x, y), **settings)
    rows = x.double()
    c = rows.T @ rows / rows.square().sum()
    w = model.weight.detach().double()
    want = alpha * w @ c @ torch.linalg.inv(torch.eye(6, dtype=torch.float64) + (alpha - 1) * c)
    assert float((fixed.corrected["weight"] - want).norm() / want.norm()) < 1e-5
    assert float((want - w).norm() / w.norm()) > 1e-2  # or nothing would be seen
