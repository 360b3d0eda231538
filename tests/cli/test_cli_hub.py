"""`verifix correct --push-to-hub` and the commands of the report, on files that the command itself has written."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from tests.hub_cases import TOKEN, hub_here
from verifix.cli.main import main

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the arguments of a correction that takes no time, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    model = namespace["build"]()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    torch.manual_seed(1)
    x = torch.rand(30, 1, 8, 8)
    np.savez(tmp_path / "verified.npz", x=x.numpy(), y=model(x).argmax(1).numpy())
    return shlex.split(
        "correct --model py:net.py:build --checkpoint net.safetensors --verified verified.npz --verified-from unseen "
        "--recipe verifix --alpha 100 --proof none --no-check-inputs --no-check-labels --out 'my fixed.safetensors'"
    )


@pytest.fixture
def hub(monkeypatch):
    """Let the client of this process speak to a Hub on this machine, as HF_ENDPOINT does for a new one."""
    with hub_here() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "nowhere")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # large files go by LFS
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its own client
def test_the_upload_holds_weights_correction_and_card(here, hub, tmp_path, capsys):
    assert main([*here, "--push-to-hub", "org/fixed-net"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "Uploaded to org/fixed-net on the Hugging Face Hub."
    assert hub.repositories == {"org/fixed-net": True}  # a new one is private
    assert hub.messages == ["Correct with verifix: no proof"]
    names = ("my fixed.safetensors", "my fixed.correction.safetensors")
    assert {name: hub.files[name] for name in names} == {name: (tmp_path / name).read_bytes() for name in names}
    card = ModelCard(hub.files.pop("README.md").decode())
    assert set(hub.files) == set(names)
    assert (card.data.library_name, card.data.pipeline_tag) == ("pytorch", "image-classification")
    for name in names:
        assert name in card.text
    assert "verifix undo 'my fixed.safetensors' --out 'my fixed-original.safetensors'" in card.text
    assert TOKEN not in out + err + card.content


def test_large_files_go_to_the_store_of_the_hub_that_most_repositories_have(here, hub, tmp_path, monkeypatch, capsys):
    hub.xet = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    assert main([*here, "--push-to-hub", "org/fixed-net"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Uploaded to org/fixed-net on the Hugging Face Hub."
    names = ("my fixed.safetensors", "my fixed.correction.safetensors")
    assert hub.named == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    assert sum(hub.blocks.values()) > 1000
    assert set(hub.files) == {"README.md"}


def test_what_the_hub_refuses_is_one_line(here, hub, tmp_path, monkeypatch, capsys):
    for token, repo in (("hf_other", "org/fixed-net"), ("", "org/fixed-net"), (TOKEN, "a/b/c")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert main([*here, "--push-to-hub", repo]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"verifix: error: --push-to-hub {repo} cannot work (")
        assert line.endswith("check the name, and log in with: hf auth login")
    assert not list(tmp_path.glob("my fixed*"))
    assert hub.repositories == {}
    hub.refuses = True
    assert main([*here, "--push-to-hub", "org/fixed-net"]) == 1
    err = capsys.readouterr().err
    assert "verifix: error: the upload to org/fixed-net failed (" in err
    assert "upload them with: hf upload org/fixed-net" in err
    assert len(list(tmp_path.glob("my fixed*"))) == 2  # what was written before stays


def test_the_commands_of_the_report_do_what_it_says(here, tmp_path, capsys):
    assert main([*here, "--report", "report.html", "--result", "result.json"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["model"], result["task"], result["architecture"]) == (
        "py:net.py:build",
        "image-classification",
        "Sequential",
    )
    page = (tmp_path / "report.html").read_text()
    found = re.search('<section id="next".*?</section>', page, re.S)
    commands = [html.unescape(c) for c in re.findall("<pre[^>]*><code><bdi>(.*?)</bdi>", found[0])]
    undo = next(c for c in commands if c.startswith("verifix undo"))
    assert main(shlex.split(undo)[1:]) == 0
    assert (tmp_path / "my fixed-original.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()
