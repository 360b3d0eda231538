"""Models of real libraries, by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import verifix
from verifix.cli.main import main
from verifix.io.models import build_model


def accounts(model, *shape) -> dict[str, tuple[str, str]]:
    survey = verifix.inspect(model.eval(), torch.randn(2, *shape))
    return {a.parameter: (a.status, a.reason) for a in survey.accounts}


def test_every_weight_of_a_resnet_is_corrected(vision):
    for name in ("torchvision:resnet18", "timm:resnet18"):
        found = accounts(build_model(name, 7), 3, 32, 32)
        assert len(found) == 21
        assert set(found.values()) == {("corrected", "")}


def test_a_timm_vit_is_corrected_but_for_what_is_added_to_its_tokens(vision):
    found = accounts(build_model("timm:vit_tiny_patch16_224", 5), 3, 224, 224)
    skipped = {name: reason for name, (status, reason) in found.items() if status != "corrected"}
    assert set(skipped) == {"cls_token", "pos_embed"}
    assert all(reason.startswith("used by ") for reason in skipped.values())
    assert len(found) == 2 + 2 + 4 * 12


def test_the_attention_of_a_torchvision_vit_is_corrected(vision):
    found = accounts(build_model("torchvision:vit_b_32", 5), 3, 224, 224)
    attention = {name: value for name, value in found.items() if "self_attention" in name}
    assert len(attention) == 24
    assert set(attention.values()) == {("corrected", "")}


def test_a_torchvision_model_is_corrected_from_the_command_line(vision, tmp_path, capsys):
    model = build_model("torchvision:resnet18", 3)
    save_file(model.state_dict(), tmp_path / "c.safetensors")
    generator = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "v" / str(i % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
    arguments = (
        f"correct --model torchvision:resnet18 --num-classes 3 --checkpoint {tmp_path}/c.safetensors --size 32 "
        f"--verified {tmp_path}/v --verified-from unseen --alpha 1e4 --proof none --out {tmp_path}/f.safetensors "
        "--json --no-progress --no-check-inputs"
    )
    assert main(arguments.split()) == 0
    result = json.loads(capsys.readouterr().out)
    before, after = load_file(tmp_path / "c.safetensors"), load_file(tmp_path / "f.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {layer["parameter"] for layer in result["layers"]}
    assert len(changed) == 21


@pytest.mark.parametrize("name", ["torchvision:resnet19", "timm:no_such_model"])
def test_an_unknown_name_is_one_line(vision, name):
    with pytest.raises(verifix.UsageError, match=r"has no model .*list_models\(\) names them"):
        build_model(name)
