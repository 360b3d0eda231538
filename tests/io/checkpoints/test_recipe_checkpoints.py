"""Checkpoints through the command line, with a recipe that changes more than weights of layers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint_cases import NAMES, arguments, samples, some_net, write_world
from verifix import Correction
from verifix.cli.main import main
from verifix.recipe.candidates import Grid
from verifix.recipe.decision import Choice
from verifix.recipe.stages import STAGES

RECIPE = "project,recentre,finetune"


@pytest.fixture
def here(tmp_path, monkeypatch, recentre):
    """A folder with a network and data, where every stage is kept at its strongest."""

    def strongest(stage, candidates, *_):
        strength = candidates.highest if isinstance(candidates, Grid) else candidates.strengths[-1]
        return Choice(strength, (), "kept for the test")

    monkeypatch.setattr("verifix.recipe.crossfit.choose_strength", strongest)
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    return tmp_path


def save(state, path) -> None:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_changed_statistics_and_biases_are_written_and_load_strictly(here, capsys, suffix, dtype):
    before = {k: v.to(dtype) if v.is_floating_point() else v for k, v in some_net().state_dict().items()}
    save(before, here / f"net.{suffix}")
    code = main([*arguments(f"net.{suffix}", f"fixed.{suffix}"), "--recipe", RECIPE, "--json"])
    result, after = json.loads(capsys.readouterr().out), load(here / f"fixed.{suffix}")
    assert code == 0
    assert list(result["strengths"]) == RECIPE.split(",")
    assert result["weights_dtypes"] == [str(dtype).removeprefix("torch.")]
    correction = Correction.load(here / "fixed.correction.safetensors")
    assert set(correction.corrected) == before.keys() - {"bn.num_batches_tracked"}
    assert list(after) == list(load(here / f"net.{suffix}"))
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value) == (name == "bn.num_batches_tracked"), name
        if name in correction.corrected:  # what was scored is what the file holds
            assert torch.equal(after[name].float(), correction.corrected[name]), name
    model = NAMES["Net"]()
    model.load_state_dict(after, strict=True)
    original = NAMES["Net"]()
    original.load_state_dict(before, strict=True)
    fixed = correction.apply_(original.eval())
    with torch.no_grad():
        assert torch.equal(fixed(samples()[0]), model.eval()(samples()[0]))


def test_a_corrected_checkpoint_is_refused_by_its_statistics_alone(here, capsys):
    save(some_net().state_dict(), here / "net.pt")
    argv = [*arguments("net.pt", "fixed.pt"), "--alpha", "auto", "--recipe"]
    assert main([*argv, "recentre"]) == 0
    changed = set(Correction.load(here / "fixed.correction.safetensors").corrected)
    assert changed == {"bn.running_mean", "bn.running_var"}
    assert main([*arguments("fixed.pt", "twice.pt"), "--alpha", "auto", "--recipe", "recentre"]) == 5
    assert "has been corrected already" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["magic", "project,magic", "project,project", ""])
def test_a_recipe_that_is_none_is_refused_in_one_line(here, capsys, recipe):
    save(some_net().state_dict(), here / "net.pt")
    assert main([*arguments("net.pt", "fixed.pt"), "--recipe", recipe]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"recipe is {recipe!r}; it must be" in err
    assert all(name in err for name in STAGES)
    assert len(err.strip().splitlines()) == 1
    assert not list(here.glob("fixed*"))


def test_the_budget_of_the_command_line_reaches_the_correction(here, capsys):
    save(some_net().state_dict(), here / "net.pt")
    argv = [*arguments("net.pt", "fixed.pt"), "--recipe", "project,finetune", "--json"]
    assert main([*argv, "--budget", "0.0001"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["strengths"]["finetune"] is None
    assert "of the budget remain" in result["choices"]["finetune"]["reason"]
    assert main([*argv, "--budget", "soon"]) == 2
    assert "budget is 'soon'" in capsys.readouterr().err
