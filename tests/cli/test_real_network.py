"""The real network and images beside the checkout."""

from __future__ import annotations

import json

import pytest

from verifix.cli.main import main

NORMALISE = "--mean 0.491,0.482,0.447 --std 0.247,0.243,0.262"


@pytest.mark.shared
def test_the_real_network_scores_and_projects_as_its_description_says(shared, tmp_path, capsys):
    model = f"--model py:{shared}/networks/vgg11_bn_cifar.py:build"
    checkpoint = shared / "networks" / "vgg11_bn_cifar10_sym25.safetensors"
    data = shared / "data" / "cifar10_verified.parquet"
    assert main(f"score {checkpoint} {model} --data {data} {NORMALISE} --json --no-progress".split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 1000
    assert result["accuracy"] == pytest.approx(75.7, abs=0.15)
    arguments = f"correct {model} --checkpoint {checkpoint} --verified {data} --verified-from unseen {NORMALISE}"
    included = "--include features.0.weight,classifier.* --alpha 2e4 --proof none --json --no-progress"
    assert main(f"{arguments} {included} --out {tmp_path}/fixed.safetensors".split()) == 0
    layers = {layer["parameter"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert len(layers) == 11
    assert layers["features.0.weight"]["rows"] == 1000 * 32 * 32
    assert layers["features.4.weight"]["reason"] == "not selected"
    assert 1 < layers["classifier.3.weight"]["effective_rank"] < 20
