"""Checkpoints that are damaged or do not fit: one line with the file and the remedy, and nothing is written."""

from __future__ import annotations

import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.checkpoint_cases import NAMES, arguments, some_net, write_world
from verifix.cli.main import main

State = dict[str, torch.Tensor]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


class Config(dict[str, Any]):
    pass


def state() -> State:
    return dict(some_net().state_dict())


def saved(content: object, name: str = "c.pt") -> list[str]:
    torch.save(content, name)
    return arguments(name, f"f{''.join(Path(name).suffixes)}")


def stored(tensors: State, name: str = "c.safetensors", factory: str = "build") -> list[str]:
    save_file(tensors, name)
    return arguments(name, "f.safetensors", factory=factory)


def renamed(words: list[str], out: str) -> list[str]:
    """Name another output."""
    at = words.index("--out") + 1
    return [*words[:at], out, *words[at + 1 :]]


def raw(content: bytes, name: str) -> list[str]:
    Path(name).write_bytes(content)
    return arguments(name, f"f{Path(name).suffix}")


def cut(name: str, share: float) -> list[str]:
    (saved if name.endswith("pt") else stored)(state(), name)
    content = Path(name).read_bytes()
    return raw(content[: int(share * len(content))], name)


def folder(
    files: dict[str, State] | None = None,
    index: Callable[[dict[str, str]], Any] | None = None,
    **others: str,
) -> list[str]:
    """A folder of safetensors files and, after a change, the index that would fit them."""
    root = Path("folder")
    root.mkdir()
    for name, tensors in (files or {}).items():
        save_file(tensors, root / name)
    if index is not None:
        fitting = {key: name for name, tensors in (files or {}).items() for key in tensors}
        (root / "model.safetensors.index.json").write_text(json.dumps(index(fitting)))
    for name, text in others.items():
        (root / name.replace("__", ".")).write_text(text)
    return arguments(root, "fixed")


def halves() -> dict[str, State]:
    items = sorted(state().items())
    return {"model-1.safetensors": dict(items[:4]), "model-2.safetensors": dict(items[4:])}


def without(names: dict[str, State], key: str) -> dict[str, State]:
    return {name: {k: v for k, v in tensors.items() if k != key} for name, tensors in names.items()}


def beside(tensors: State, **more: torch.Tensor) -> State:
    return {**tensors, **{key.replace("__", "."): value for key, value in more.items()}}


def prefixed(*prefixes: str) -> State:
    return {f"{prefix}{key}": value.clone() for prefix in prefixes for key, value in state().items()}


def with_flags(command: list[str], *flags: str) -> list[str]:
    return [*command, *flags]


def with_head(index: dict[str, str]) -> dict[str, str]:
    return {**index, "head.bias": "model-2.safetensors"}


def truncated_shard() -> list[str]:
    command = folder(halves(), lambda index: {"weight_map": index})
    shard = Path("folder") / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    return command


def tied_state() -> State:
    return {key: value.clone() for key, value in NAMES["Tied"]().state_dict().items()}


def inside_itself() -> OrderedDict[str, Any]:
    content: OrderedDict[str, Any] = OrderedDict()
    content["model"] = content
    return content


def scripted() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates scripts
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "c.pt")
    return arguments("c.pt", "f.pt")


HEAD = torch.zeros(16, 3)
MALFORMED: dict[str, tuple[Callable[[], list[str]], int, str, str]] = {
    # what it is: how it is made and given, the exit code, what is said of it, and the remedy
    "no such file": (lambda: arguments("c.ckpt", "f.ckpt"), 2, "c.ckpt does not exist", "check the path"),
    "no such folder": (lambda: arguments("folder/", "fixed"), 2, "folder does not exist", "check the path"),
    "empty safetensors": (lambda: raw(b"", "c.safetensors"), 5, "c.safetensors is not a readable", "complete"),
    "empty pt": (lambda: raw(b"", "c.pt"), 5, "c.pt cannot be read: it is empty", "give the whole file"),
    "truncated safetensors": (lambda: cut("c.safetensors", 0.7), 5, "c.safetensors is not a readable", "complete"),
    "truncated header": (lambda: cut("c.safetensors", 0.05), 5, "c.safetensors is not a readable", "complete"),
    "truncated pt": (lambda: cut("c.pt", 0.6), 5, "c.pt cannot be read", "check that it is complete"),
    "html as pt": (lambda: raw(b"<!DOCTYPE html><p>404", "c.pt"), 5, "c.pt cannot be read", "complete"),
    "html as bin": (lambda: raw(b"<!DOCTYPE html><p>404", "c.bin"), 5, "c.bin cannot be read", "complete"),
    "html as safetensors": (lambda: raw(b"<!DOCTYPE html><p>4", "c.safetensors"), 5, "c.safetensors is", "complete"),
    "pickle with code": (lambda: saved({"state_dict": state(), "hook": Evil()}), 5, "c.pt cannot", "weights_only=True"),
    "whole module": (lambda: saved(nn.Linear(2, 2)), 5, "a torch.nn.modules.linear.Linear", "save only its state dict"),
    "config object in ckpt": (
        lambda: saved({"state_dict": state(), "hyper_parameters": Config(lr=1)}, "c.ckpt"),
        5,
        f"c.ckpt cannot be read with weights_only=True: it holds a {__name__}.Config",
        "save only its state dict",
    ),
    "scripted": (scripted, 5, "c.pt cannot be read", "save its state dict"),
    "empty state dict": (lambda: saved({"state_dict": {}}), 5, "c.pt holds no state dict", "save model.state_dict()"),
    "empty content": (lambda: saved({}), 5, "holds no state dict (it holds nothing)", "save model.state_dict()"),
    "list": (lambda: saved([1, 2]), 5, "c.pt holds no state dict (it holds list)", "save model.state_dict()"),
    "empty tensors": (lambda: stored({}), 5, "c.safetensors holds no state dict", "save model.state_dict()"),
    "two unknown nests": (
        lambda: saved({"generator": state(), "critic": state()}),
        5,
        "holds no state dict (it holds generator, critic)",
        "save model.state_dict()",
    ),
    "optimizer only": (
        lambda: saved({"optimizer": torch.optim.SGD([torch.ones(1)]).state_dict(), "epoch": 1}),
        5,
        "holds no state dict (it holds optimizer, epoch)",
        "save model.state_dict()",
    ),
    "wrong class count": (
        lambda: stored(state(), factory="seven"),
        5,
        "c.safetensors does not fit the model: 2 shapes (head.bias [3] instead of [7], head.weight [3, 16] instead",
        "check the number of classes",
    ),
    "another model": (
        lambda: stored(dict(nn.Linear(3, 2).state_dict())),
        5,
        "9 missing (conv.weight, conv.bias, bn.weight, …); 2 unexpected (bias, weight)",
        "give the checkpoint of this model",
    ),
    "another model behind a prefix": (
        lambda: stored({key: value for key, value in prefixed("net.").items() if key != "net.head.bias"}),
        5,
        "1 missing (head.bias); 0 unexpected behind the prefix 'net.'",
        "give the checkpoint of this model",
    ),
    "half a prefix": (
        lambda: stored(beside(prefixed("net."), net__more=torch.ones(1))),
        5,
        "0 missing; 1 unexpected (net.more) behind the prefix 'net.'",
        "give the checkpoint of this model",
    ),
    "wrong prefix": (
        lambda: stored({f"net{key}": value for key, value in state().items()}),
        5,
        "9 missing (conv.weight, conv.bias, bn.weight, …); 9 unexpected (netbn.bias, ",
        "give the checkpoint of this model",
    ),
    "mixed prefixes": (
        lambda: stored({("net." if "head" in key else "") + key: value for key, value in state().items()}),
        5,
        "2 missing (head.weight, head.bias); 2 unexpected (net.head.bias, net.head.weight)",
        "give the checkpoint of this model",
    ),
    "missing key": (
        lambda: stored({key: value for key, value in state().items() if key != "bn.running_var"}),
        5,
        "1 missing (bn.running_var); 0 unexpected",
        "give the checkpoint of this model",
    ),
    "unexpected key": (
        lambda: stored(beside(state(), criterion__weight=torch.ones(3))),
        5,
        "0 missing; 1 unexpected (criterion.weight)",
        "give the checkpoint of this model",
    ),
    "the model twice": (
        lambda: stored(prefixed("student.", "teacher.")),
        5,
        "holds the model more than once, under 'student.', 'teacher.'",
        "in a file of its own",
    ),
    "transposed": (
        lambda: stored(beside(state(), head__weight=HEAD)),
        5,
        "head.weight [16, 3] instead of [3, 16]",
        "check the number",
    ),
    "whole numbers": (
        lambda: stored({key: (10 * value).to(torch.int8) for key, value in state().items()}),
        5,
        "8 weights that are not plain floating-point numbers (bn.bias torch.int8",
        "from before it was quantised",
    ),
    "sparse": (
        lambda: saved(beside(state(), head__weight=torch.ones(3, 16).to_sparse())),
        5,
        "1 weights that are not plain floating-point numbers (head.weight torch.float32 torch.sparse_coo)",
        "from before it was quantised",
    ),
    "not a number": (
        lambda: stored(beside(state(), head__weight=torch.full((3, 16), torch.nan))),
        5,
        "'head.weight' of the model contains NaN",
        "load an intact checkpoint",
    ),
    "no averaged weights": (
        lambda: with_flags(stored(state()), "--weights", "ema"),
        5,
        "c.safetensors has no averaged weights",
        "omit --weights ema",
    ),
    "no raw weights": (
        lambda: with_flags(saved({"model_ema": state()}), "--weights", "raw"),
        5,
        "c.pt holds averaged weights only",
        "omit --weights raw",
    ),
    "no raw weights behind a prefix": (
        lambda: with_flags(stored(prefixed("ema_model.")), "--weights", "raw"),
        5,
        "c.safetensors has no raw weights",
        "omit --weights raw",
    ),
    "averaged how": (lambda: with_flags(stored(state()), "--weights", "swa"), 2, "--weights", "see verifix correct"),
    "adapter folder": (
        lambda: folder({"adapter_model.safetensors": {"a": torch.ones(1)}}, adapter_config__json="{}"),
        5,
        "folder is a PEFT adapter, not a whole model",
        "merge_and_unload()",
    ),
    "adapter file": (
        lambda: stored({"a": torch.ones(1)}, "adapter_model.safetensors"),
        5,
        "adapter_model.safetensors is a PEFT adapter, not a whole model",
        "merge_and_unload()",
    ),
    "adapter inside": (
        lambda: stored(beside(state(), head__lora_A__weight=torch.ones(1))),
        5,
        "1 unexpected (head.lora_A.weight)",
        "merge the adapter first",
    ),
    "folder without weights": (
        lambda: folder(config__json="{}"),
        5,
        "folder is a folder without weights",
        "it must hold one of model.safetensors",
    ),
    "folder of shards without an index": (lambda: folder(halves()), 5, "folder without weights", ".index.json"),
    "index of nothing": (lambda: folder(index=lambda _: {}), 5, "is not an index: it has no weight_map", "restore it"),
    "index of a list": (lambda: folder(index=lambda _: [1]), 5, "is not an index", "restore it"),
    "index with numbers": (lambda: folder(index=lambda _: {"weight_map": {"a": 1}}), 5, "is not an index", "restore"),
    "index that is no json": (
        lambda: folder(halves(), model__safetensors__index__json="{"),
        5,
        "model.safetensors.index.json is not a readable index",
        "restore it from a copy",
    ),
    "index names a missing shard": (
        lambda: folder(halves(), lambda index: {"weight_map": {**index, "head.bias": "model-3.safetensors"}}),
        5,
        "index.json names model-3.safetensors, which is missing",
        "provide all files",
    ),
    "index points outside": (
        lambda: (
            save_file(state(), "outside.safetensors")
            or folder(halves(), lambda index: {"weight_map": {**index, "head.bias": "../outside.safetensors"}})
        ),
        5,
        "names '../outside.safetensors', which is not in its folder",
        "an index names files beside it",
    ),
    "index points anywhere": (
        lambda: folder(halves(), lambda index: {"weight_map": dict.fromkeys(index, str(Path("net.py").resolve()))}),
        5,
        "which is not in its folder",
        "an index names files beside it",
    ),
    "index of two formats": (
        lambda: folder(halves(), lambda index: {"weight_map": {**index, "a": "x.bin"}}, x__bin="x"),
        5,
        "names files of different formats",
        "save the model again",
    ),
    "shard without a tensor": (
        lambda: folder(without(halves(), "head.bias"), lambda index: {"weight_map": with_head(index)}),
        5,
        "model-2.safetensors has no 'head.bias', contrary to the index",
        "the same checkpoint",
    ),
    "shard with one more": (
        lambda: folder(halves(), lambda i: {"weight_map": {k: v for k, v in i.items() if k != "head.bias"}}),
        5,
        "model-2.safetensors also has 'head.bias', contrary to the index",
        "the same checkpoint",
    ),
    "truncated shard": (truncated_shard, 5, "model-2.safetensors is not a readable", "complete"),
    "shards of another model": (
        lambda: folder(without(halves(), "head.bias"), lambda index: {"weight_map": index}),
        5,
        "folder does not fit the model: 1 missing (head.bias)",
        "give the checkpoint of this model",
    ),
    "tied copies that differ": (
        lambda: stored({k: torch.randn_like(v) for k, v in tied_state().items()}, factory="tied"),
        5,
        "different values for 'a.weight' and 'b.weight'",
        "give the checkpoint of this model",
    ),
    "itself inside": (lambda: saved(inside_itself()), 5, "c.pt holds no state dict (it holds model)", "save model"),
    "file for a folder": (
        lambda: renamed(folder({"model.safetensors": state()}), "f.safetensors"),
        2,
        "f.safetensors and folder differ in format",
        "name a folder",
    ),
    "folder for a file": (
        lambda: renamed(stored(state()), "fixed"),
        2,
        "fixed and c.safetensors differ in format",
        "end --out in .safetensors",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_checkpoint_that_cannot_be_used_gets_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    make, code, text, remedy = MALFORMED[name]
    command = make()
    before = {str(path): path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))}
    capsys.readouterr()
    assert main(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("verifix: error: ")
    assert err.count("\n") == 1
    assert len(err) < 500
    assert text in err
    assert remedy in err
    after = {str(path): path.is_file() and path.read_bytes() for path in sorted(tmp_path.rglob("*"))}
    assert {path: content for path, content in after.items() if "__pycache__" not in path} == before
