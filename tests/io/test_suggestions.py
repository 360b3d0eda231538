"""What errors about names suggest, how separators are told, and how many outputs a checkpoint's head has."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from verifix import UsageError
from verifix.io.checkpoints.head_size import outputs_in
from verifix.io.data.tables import read_table
from verifix.io.model_names import check_name
from verifix.io.models import build_model


def folder(root, name: str, **config) -> str:
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps(config))
    return name


def test_names_without_a_form_say_what_may_have_been_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("class Net: ...\ndef build(): ...\ndef _hidden(): ...\n")
    (tmp_path / "empty").mkdir()
    meant = {
        folder(tmp_path, "bert", architectures=["BertForSequenceClassification"]): "; did you mean hf:./bert?",
        folder(tmp_path, "timmed", architecture="resnet18", pretrained_cfg={}): "; did you mean local-dir:./timmed?",
        str(tmp_path / "bert"): f"; did you mean hf:{tmp_path}/bert?",
        "empty": "",
        "net.py": "; give py:net.py:FACTORY (it has Net, build)",
        "Net.PTH": "; that is the name of weights: give these with --checkpoint, and the model that they are for here",
        "resnet18": "; did you mean timm:resnet18 or torchvision:resnet18?",
        "tim:resnet18": "; did you mean 'timm'?",
        "py:": "",
        "some where": "",
    }
    for name, hint in meant.items():
        with pytest.raises(UsageError) as caught:
            check_name(name)
        assert str(caught.value) == (
            f"model is {name!r}; it must be py:FILE_OR_MODULE:FACTORY, torchvision:NAME, timm:NAME, hf:DIR, "
            f"hf-hub:ORG/NAME or local-dir:DIR{hint}"
        )
    with pytest.raises(UsageError, match=r"net.py has no function 'bild'; .*; did you mean 'build'\?"):
        build_model("py:net.py:bild")


@pytest.mark.parametrize("name", ["timm:resnet81", "torchvision:resnet81"])
def test_a_model_that_is_nearly_known_is_named(vision, name):
    with pytest.raises(UsageError, match=r"no model 'resnet81'; .*list_models\(\) names them; did you mean 'resnet"):
        build_model(name)


SEPARATED = {
    "text;label\na, b;1\n": (("text", "label"), "semicolons"),
    "text\tlabel\na, b\t1\n": (("text", "label"), "tabs"),
    "text|label\na, b|1\n": (("text", "label"), "vertical bars"),
    "text,label\na;b;c,1\n": (("text", "label"), None),
    'text,"la;bel"\na,1\n': (("text", "la;bel"), None),
    "text\na\n": (("text",), None),
}


@pytest.mark.parametrize("content", SEPARATED)
def test_other_separators_than_commas_are_told_by_the_first_line(content, tmp_path, capsys):
    (tmp_path / "T.CSV").write_text(content)
    names, told = SEPARATED[content]
    table = read_table(tmp_path / "T.CSV")
    assert table.names == names
    assert table.column(names[0]) == [content.split("\n")[1].rpartition("1")[0].rstrip(",;|\t") or "a"]
    notes = capsys.readouterr().err
    assert notes == (f"verifix: note: {tmp_path}/T.CSV: columns are separated by {told}\n" if told else "")


def test_a_tsv_with_commas_is_read_as_well(tmp_path):
    (tmp_path / "t.tsv").write_text("a,b\n1,2\n")
    assert read_table(tmp_path / "t.tsv").column("b") == ["2"]


def net(outputs: int, hidden: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, hidden), nn.Linear(hidden, outputs))


def test_the_outputs_of_a_head_are_counted_where_nothing_else_differs():
    state = net(7).state_dict()
    assert outputs_in(state, net(3)) == 7
    assert outputs_in({f"model.{key}": value for key, value in state.items()}, net(3)) == 7
    assert outputs_in(state, net(7)) is None
    assert outputs_in(state, net(3, hidden=5)) is None
    assert outputs_in({key: value for key, value in state.items() if "1." not in key}, net(3)) is None
    assert outputs_in(state | {"1.bias": torch.zeros(8)}, net(3)) is None


def test_the_head_of_a_timm_and_a_torchvision_checkpoint_is_counted(vision):
    for name in ("timm:test_vit", "timm:test_resnet", "torchvision:resnet18"):
        assert outputs_in(build_model(name, 5).state_dict(), build_model(name)) == 5
