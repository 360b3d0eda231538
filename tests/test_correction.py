from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import verifix
from tests.cases import small_data, small_net
from verifix import CheckpointError, Correction, SavedMoments, UsageError, preflight
from verifix.capture.collect import collect
from verifix.model.tensors import tensor_digest


@pytest.fixture
def case():
    model, samples = small_net().eval(), small_data()
    return model, samples, verifix.correct(model, samples, alpha=20, progress=False)


def state(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_apply_and_undo_are_exact_and_demand_the_right_weights(case):
    model, _, correction = case
    before = state(model)
    assert correction.apply_(model) is model
    assert same(state(model), state(correction.model))
    with pytest.raises(CheckpointError, match="already"):
        correction.apply_(model)
    assert same(state(model), state(correction.model))
    correction.undo_(model)
    assert same(state(model), before)
    with pytest.raises(CheckpointError, match="already"):
        correction.undo_(model)


@pytest.mark.parametrize("verb", ["apply_", "undo_"])
def test_other_weights_are_left_alone(case, verb):
    model, _, correction = case
    if verb == "undo_":
        correction.apply_(model)
    with torch.no_grad():
        model[5].weight[0, 0] += 1e-7
    before = state(model)
    with pytest.raises(CheckpointError, match=r"'5.weight' has other weights"):
        getattr(correction, verb)(model)
    assert same(state(model), before)
    with pytest.raises(CheckpointError, match=r"the model has no '0.weight'"):
        getattr(correction, verb)(nn.LayerNorm(3))


def test_blend_goes_from_no_change_to_the_correction(case):
    model, _, correction = case
    before, after = state(model), state(correction.model)
    for blend in (0.0, 0.25, 1.0):
        correction.apply_(model, blend=blend)
        expected = before["0.weight"].double() * (1 - blend) + after["0.weight"].double() * blend
        torch.testing.assert_close(model[0].weight.detach(), expected.float(), rtol=0, atol=0)
        correction.undo_(model, blend=blend)
        assert same(state(model), before)
    correction.apply_(model, blend=0.5)
    with pytest.raises(CheckpointError):
        correction.undo_(model)
    for blend in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="blend is"):
            correction.apply_(model, blend=blend)


def test_tied_weights_change_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    model, samples = Tied().eval(), small_data()
    correction = verifix.correct(model, samples, alpha=20, progress=False)
    assert set(correction.corrected) == {"a.weight", "head.weight"}
    assert correction.model.a.weight is correction.model.b.weight
    correction.apply_(model)
    assert model.a.weight is model.b.weight
    assert torch.equal(model.b.weight, correction.corrected["a.weight"])


def test_save_and_load_keep_everything(case, tmp_path):
    model, samples, _ = case
    correction = verifix.correct(model, samples, recipe="project,refit", progress=False)
    correction.save(tmp_path / "c.safetensors")
    loaded = Correction.load(tmp_path / "c.safetensors")
    for choice in loaded.choices.values():
        assert choice.seconds is None
        assert choice.estimated is None
    untimed = {stage: replace(choice, seconds=None, estimated=None) for stage, choice in correction.choices.items()}
    paths = tuple(replace(path, seconds=None) for path in correction.paths)
    expected = replace(correction, choices=untimed, paths=paths)
    assert loaded.as_dict() == expected.as_dict()
    assert (loaded.paths, loaded.reason) == (paths, correction.reason)
    assert [path.stages for path in loaded.paths] == [(), ("project",), ("project", "refit")]
    assert loaded.curve == correction.curve
    assert loaded.layers == correction.layers
    assert loaded.summary() == expected.summary()
    assert same(dict(loaded.original), dict(correction.original))
    assert same(dict(loaded.corrected), dict(correction.corrected))
    with pytest.raises(UsageError, match="call apply_"):
        _ = loaded.model
    twin = copy.deepcopy(model)
    loaded.apply_(twin)
    assert same(state(twin), state(correction.model))
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        (text,) = [file.metadata()[k] for k in file.metadata()]
        about = json.loads(text)
        for name in file.keys():  # noqa: SIM118
            assert about["sha256"][name] == tensor_digest(file.get_tensor(name))
    assert about["provenance"]["samples"] == 80


def test_the_same_correction_gives_the_same_bytes(case, tmp_path):
    model, samples, correction = case
    again = verifix.correct(model, samples, alpha=20, progress=False)
    for i, c in enumerate((correction, again)):
        c.save(tmp_path / f"{i}.safetensors")
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_a_file_that_exists_is_kept_unless_forced(case, tmp_path):
    *_, correction = case
    path = tmp_path / "c.safetensors"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        correction.save(path)
    assert path.read_text() == "precious"
    correction.save(path, force=True)
    assert Correction.load(path).alpha == 20
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    with pytest.raises(UsageError, match="does not exist"):
        correction.save(tmp_path / "nowhere" / "c.safetensors")
    with pytest.raises(UsageError, match="is a folder"):
        correction.save(tmp_path)


def test_damaged_and_foreign_files_are_refused(case, tmp_path):
    model, samples, correction = case
    path = correction.save(tmp_path / "c.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        Correction.load(tmp_path / "flipped.safetensors")
    (tmp_path / "short.safetensors").write_bytes(content[:100])
    (tmp_path / "text.safetensors").write_text("hello")
    moments = verifix.collect_moments(model, samples, progress=False).save(tmp_path / "m.safetensors")
    for reader, names in (
        (Correction, ("short.safetensors", "text.safetensors", "m.safetensors")),
        (SavedMoments, ("short.safetensors", "text.safetensors", "c.safetensors")),
    ):
        for name in names:
            with pytest.raises(CheckpointError, match=name) as caught:
                reader.load(tmp_path / name)
            assert "\n" not in str(caught.value)
    assert SavedMoments.load(moments).digests


def test_summary_and_repr_tell_what_was_done(case):
    model, samples, fixed = case
    meaningless = samples[0], samples[1][torch.randperm(80)]
    kept = verifix.correct(model, meaningless, recipe="verifix", progress=False, exclude=["5.*"])
    assert kept.alpha is None
    assert {r.status for r in kept.layers} == {"kept", "skipped"}
    assert "5.weight: skipped: not selected" in kept.summary(verbose=True)
    assert "0.weight: kept: no change won" in kept.summary(verbose=True)
    text = kept.summary(verbose=True) + fixed.summary(verbose=True)
    assert "80 verified samples (not said from where)" in text
    assert "no change  loss" in text
    assert "overstate the gain" in text
    assert "0.weight: linear, 80 rows, effective rank" in text
    assert repr(fixed) == "Correction(project=20; layers: 3 corrected)"
    assert "set by the user" in fixed.summary()


def test_spectra_are_those_of_the_rows_and_take_no_further_run(monkeypatch):
    model, (x, y) = small_net(), small_data(80)
    runs = []
    monkeypatch.setattr(preflight, "collect", lambda *a, **k: runs.append(a) or collect(*a, **k))
    how = {"alpha": 100.0, "progress": False}
    with_spectra = verifix.correct(model, (x, y), spectra=True, **how)
    assert len(runs) == 1
    plain = verifix.correct(model, (x, y), **how)
    assert plain.spectra == {}
    assert all(torch.equal(plain.corrected[name], w) for name, w in with_spectra.corrected.items())
    assert with_spectra.spectra.keys() == with_spectra.corrected.keys()
    first = x.double().T @ x.double()
    expected = torch.linalg.eigvalsh(first / first.trace()).flip(0)
    torch.testing.assert_close(torch.tensor(with_spectra.spectra["0.weight"]).double(), expected, rtol=1e-5, atol=1e-9)
