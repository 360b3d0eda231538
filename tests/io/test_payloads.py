"""Hostile files that would run code, if anything in this library let them: none of them may.

Each would make something named ``executed`` in the working directory. First a reader without protection is shown to be
caught by it, so that the tests can fail. Then the command line reads it, also under torch's switch for unsafe loading.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import json
import marshal
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
import tarfile
import webbrowser
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.fx.graph_module
from safetensors.torch import save

from tests import hostile, tiny
from tests.children import Case, Outcome, run_cases
from tests.hostile import Call, Stored, archive, legacy, npy, npz, pickled, tensor
from verifix.correction import FORMAT

MARK = "executed"
SOURCE = f"import os; os.path.exists({MARK!r}) or os.mkdir({MARK!r})"
EXTENSION = 240
"""Number under which the readers without protection know ``os.mkdir`` as a pickle extension."""

FORCED = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
STATE = hostile.net().state_dict()


def mkdir() -> Call:
    return Call(os.mkdir, MARK)


def later(function: Any, argument: Any = MARK) -> Call:
    """A call of something that the pickle itself makes."""
    return Call(tuple, Call(map, function, [argument]))


def makes(name: str) -> None:
    import os  # noqa: F401 - its code runs where nothing else is imported

    __import__("os").mkdir(name)


PARTIAL = Call(functools.partial, len, state=(os.mkdir, (), {}, None))
CODE = marshal.dumps(makes.__code__)
ARRAY = np.array([None], dtype=object)
ARRAY[0] = mkdir()
ONE = tensor(Stored("0", 2), (2,), (1,))
INNER = hostile.saved(lambda buffer: torch.save(mkdir(), buffer))

PICKLES: dict[str, Any] = {
    # what Python's own modules can be made to do
    "os.mkdir": mkdir(),
    "os.system": Call(os.system, f"mkdir {MARK}"),
    "builtins.exec": Call(exec, SOURCE),
    "builtins.eval": Call(eval, f"__import__('os').mkdir({MARK!r})"),
    "builtins.open": Call(open, MARK, "w"),
    "builtins.getattr": later(Call(getattr, Call(importlib.import_module, "os"), "mkdir")),
    "subprocess.call": Call(subprocess.call, ["mkdir", MARK]),
    "subprocess.Popen": Call(subprocess.Popen, ["mkdir", MARK]),
    "runpy.run_path": Call(runpy.run_path, "payload.py"),
    "importlib.import_module": Call(importlib.import_module, "payload"),
    "webbrowser.open": Call(webbrowser.open, "http://127.0.0.1:9"),
    "shutil.copyfile": Call(shutil.copyfile, "payload.py", MARK),
    "functools.partial": later(Call(functools.partial, os.mkdir)),
    "a partial's state": later(PARTIAL),
    "pickle.loads": Call(pickle.loads, pickle.dumps(mkdir())),
    "an array of objects": ARRAY,
    "numpy.load": Call(np.load, "payload.npy", None, True),
    # what torch's helpers can be made to do
    "torch.load": Call(torch.load, "payload.pt", "cpu", Call(importlib.import_module, "pickle")),
    "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, INNER),
    "_rebuild_from_type_v2": Call(torch._tensor._rebuild_from_type_v2, os.mkdir, torch.Tensor, (MARK,), {}),
    "_rebuild_parameter": Call(torch._utils._rebuild_parameter, ONE, False, mkdir()),
    "_rebuild_parameter_with_state": Call(
        torch._utils._rebuild_parameter_with_state, ONE, False, OrderedDict(), {"more": mkdir()}
    ),
    "_rebuild_wrapper_subclass": Call(
        torch._utils._rebuild_wrapper_subclass,
        later(os.mkdir),
        torch.float32,
        (1,),
        (1,),
        0,
        torch.strided,
        "cpu",
        False,
    ),
    "a tensor's hooks": tensor(Stored("0", 2), (2,), (1,), hooks=OrderedDict(hook=mkdir())),
    "a tensor's sizes": Call(torch._utils._rebuild_tensor_v2, Stored("0", 2), 0, later(os.mkdir), (1,), False, {}),
    "a storage's key": tensor(Stored(mkdir(), 2), (2,), (1,)),  # type: ignore[arg-type]
    "torch.fx source": Call(torch.fx.graph_module._exec_with_source, SOURCE, {}),
    # where in a checkpoint it may hide
    "in an optimizer": {"state_dict": dict(STATE), "optimizer": {"state": {0: {"step": mkdir()}}}},
    "in a namespace": {"state_dict": dict(STATE), "args": Call(argparse.Namespace, state={"seed": mkdir()})},
    "in the hyper-parameters": {"state_dict": dict(STATE), "hyper_parameters": {"loss": later(PARTIAL)}},
    "as a key": {later(os.mkdir): 1},
}

WORD = b"X\x08\0\0\0executed"
OPCODES: dict[str, bytes] = {
    "GLOBAL": b"\x80\x02cos\nmkdir\n" + WORD + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x08executed\x85R.",
    "a dotted name": b"\x80\x04\x8c\x06shutil\x8c\x08os.mkdir\x93\x8c\x08executed\x85R.",
    "INST": b"(S'executed'\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nS'executed'\no.",
    "NEWOBJ": b"\x80\x02c__builtin__\ntuple\nc__builtin__\nmap\ncos\nmkdir\n](" + WORD + b"e\x86R\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cbuiltins\ntuple\ncbuiltins\nmap\ncos\nmkdir\n](" + WORD + b"e\x86R\x85}\x92.",
    "EXT1": b"\x80\x02\x82\xf0" + WORD + b"\x85R.",
    "EXT2": b"\x80\x02\x83\xf0\0" + WORD + b"\x85R.",
    "EXT4": b"\x80\x02\x84\xf0\0\0\0" + WORD + b"\x85R.",
    "BUILD": b"\x80\x02cfunctools\npartial\nc__builtin__\nlen\n\x85R(cos\nmkdir\n" + WORD + b"\x85}Ntb)R.",
    "types.FunctionType": b"\x80\x03cbuiltins\ntuple\ncbuiltins\nmap\nctypes\nFunctionType\ncmarshal\nloads\n"
    + b"B"
    + struct.pack("<I", len(CODE))
    + CODE
    + b"\x85R}\x86R]("
    + WORD
    + b"e\x86R\x85R.",
}


@dataclass(frozen=True)
class Payload:
    """Files, how a reader without protection is called on them, and how the command line is."""

    files: dict[str, bytes]
    unsafe: tuple[str, str]
    words: list[str]
    more: Callable[[Path], object] = field(default=lambda folder: None)


def words(
    checkpoint: str = "good.safetensors", verified: str = "good.npz", *more: str, model: str = "py:net.py:build"
) -> list[str]:
    out = "fixed.pt" if checkpoint.endswith((".pt", ".ckpt", ".bin", ".pth")) else "fixed.safetensors"
    out = "fixed" if checkpoint in ("", "set") else out
    fixed = ["--verified-from", "unseen", "--alpha", "10", "--proof", "none", "--no-progress", "--out", out]
    fixed.append("--no-check-inputs")  # the networks are not trained
    given = ["--checkpoint", checkpoint] if checkpoint else []
    return ["correct", "--model", model, *given, "--verified", verified, *fixed, *more]


def checkpoint(content: bytes, name: str = "c.pt", reader: str = "torch") -> Payload:
    return Payload({name: content}, (reader, name), words(name))


def wrapped(content: Any) -> bytes:
    return archive(pickled(content), {"0": bytes(8)})


def inside(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {"state_dict": dict.fromkeys("ab", 1), "more": content}


def tarred(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def extension_type() -> bytes:
    """A Parquet file whose column claims a type that older readers unpickle."""
    own = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(mkdir())}
    fields = [pa.field("text", pa.string(), metadata=own), pa.field("label", pa.int64())]
    table = pa.table([["good film", "bad film"], [0, 1]], pa.schema(fields))
    return hostile.saved(lambda buffer: pq.write_table(table, buffer))


def own_metadata(**about: Any) -> bytes:
    return save(dict(STATE), {"verifix": json.dumps(about), "model": "py:payload.py:build", "config": SOURCE})


EVIL_CODE = f"""
{SOURCE}
from transformers import PretrainedConfig
class Evil(PretrainedConfig):
    model_type = "evil"
"""
EVIL_CONFIG = json.dumps(
    {"model_type": "evil", "architectures": ["EvilForImageClassification"], "auto_map": {"AutoConfig": "evil.Evil"}}
)
RAW = pickle.dumps(mkdir())
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n"
PNG = tiny.png("red")
YAML = f"alpha: !!python/object/apply:os.mkdir [{MARK}]\n"
LAYERS = [
    {"parameter": "py:payload.py:build", "kind": "os.system", "groups": 1, "offset": 0, "shape": [], "stride": []}
]

PAYLOADS: dict[str, Payload] = {
    **{f"pt: {name}": checkpoint(wrapped(inside(content))) for name, content in PICKLES.items()},
    **{f"pt: {name}": checkpoint(archive(content)) for name, content in OPCODES.items()},
    "old pt": checkpoint(legacy(pickled(mkdir()))),
    "old pt: its magic": checkpoint(RAW, reader="torch"),
    "old pt: its keys": checkpoint(legacy(pickled({}), pickle.dumps(mkdir(), 2))),
    "old pt: protocol 0": checkpoint(OPCODES["INST"]),
    "tar pt": checkpoint(tarred(sys_info=RAW, pickle=RAW, storages=RAW, tensors=RAW), reader="torch_tar"),
    "pth": checkpoint(wrapped(mkdir()), "c.pth"),
    "ckpt": checkpoint(wrapped({"state_dict": {}, "callbacks": mkdir()}), "c.ckpt"),
    "bin": checkpoint(wrapped(mkdir()), "c.bin"),
    "pickle named safetensors": checkpoint(RAW, "c.safetensors", "pickle"),
    "archive named safetensors": checkpoint(wrapped(mkdir()), "c.safetensors", "torch_bytes"),
    "metadata of safetensors": checkpoint(own_metadata(config=YAML), "c.safetensors", "metadata"),
    "bin of an index": Payload(
        {
            "set/pytorch_model.bin.index.json": b'{"weight_map": {"0.weight": "a.bin"}}',
            "set/a.bin": wrapped(mkdir()),
        },
        ("torch", "set/a.bin"),
        words("set"),
    ),
    "bin of a folder": Payload(
        {"set/pytorch_model.bin": wrapped(mkdir())}, ("torch", "set/pytorch_model.bin"), words("set")
    ),
    "beside the weights": Payload(
        {
            "set/model.safetensors": save(dict(STATE)),
            "set/training_args.bin": wrapped(mkdir()),
            "set/scheduler.pt": RAW,
        },
        ("torch", "set/training_args.bin"),
        words("set"),
    ),
    "correction beside": Payload(
        {"good.correction.safetensors": RAW}, ("pickle", "good.correction.safetensors"), words()
    ),
    "correction": Payload(
        {"good.correction.safetensors": own_metadata(format=FORMAT, provenance=SOURCE)},
        ("metadata", "good.correction.safetensors"),
        words(),
    ),
    "moments": Payload(
        {"m.safetensors": RAW},
        ("pickle", "m.safetensors"),
        words("good.safetensors", "good.npz", "--moments", "m.safetensors"),
    ),
    "moments of a layer": Payload(
        {"m.safetensors": own_metadata(format="verifix-moments-4", layers=LAYERS, samples=[], model="")},
        ("metadata", "m.safetensors"),
        words("good.safetensors", "good.npz", "--moments", "m.safetensors"),
    ),
    "npz of objects": Payload(
        {"d.npz": npz(x=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", RAW), y=b"")},
        ("numpy", "d.npz"),
        words("good.safetensors", "d.npz"),
    ),
    "npz is a pickle": Payload({"d.npz": RAW}, ("pickle", "d.npz"), words("good.safetensors", "d.npz")),
    "npz header": Payload(
        {"d.npz": npz(x=npy(f"__import__('os').mkdir({MARK!r})"), y=b"")},
        ("npz_header", "d.npz"),
        words("good.safetensors", "d.npz"),
    ),
    "parquet of an extension type": Payload(
        {"d.parquet": extension_type()}, ("extension", "d.parquet"), words("good.safetensors", "d.parquet")
    ),
    "tar member": Payload(
        {"d.tar": tarred(a_pyd=RAW, a_pickle=RAW, a_png=PNG, a_cls=b"1", b_png=PNG, b_cls=RAW)},
        ("tar_member", "d.tar"),
        words("good.safetensors", "d.tar"),
    ),
    "csv label": Payload(
        {"d.csv": f"file_name,label\na.png,\"__import__('os').mkdir('{MARK}')\"\n".encode(), "a.png": PNG},
        ("label", "d.csv"),
        words("good.safetensors", "d.csv", "--classes", "red,green,blue"),
    ),
    "class names": Payload(
        {"classes.txt": f"red\ngreen\n__import__('os').mkdir('{MARK}')\n".encode(), "set/red/a.png": PNG},
        ("last_line", "classes.txt"),
        words("good.safetensors", "set", "--classes", "classes.txt"),
    ),
    "image for another program": Payload(
        {"set/red/a.png": EPS, "bin/gs": f"#!/bin/sh\nmkdir -p {MARK}\necho 10\n".encode()},
        ("image", "set/red/a.png"),
        words("good.safetensors", "set", "--classes", "red,green,blue"),
    ),
    "yaml of settings": Payload(
        {"c.yaml": YAML.encode()}, ("yaml", "c.yaml"), ["correct", "--config", "c.yaml", *words()[1:]]
    ),
    "yaml of a new object": Payload(
        {
            "c.yaml": b"recipe: !!python/object/new:tuple\n"
            b"- !!python/object/apply:map [!!python/name:os.mkdir , [executed]]\n"
        },
        ("yaml", "c.yaml"),
        ["correct", "--config", "c.yaml", *words()[1:]],
    ),
    "config with code of its own": Payload(
        {
            "set/config.json": EVIL_CONFIG.encode(),
            "set/evil.py": EVIL_CODE.encode(),
            "set/model.safetensors": save(dict(STATE)),
        },
        ("auto_config", "set"),
        words("", "good.npz", model="hf:set"),
    ),
    "config that trusts itself": Payload(
        {
            "set/config.json": EVIL_CONFIG.replace("{", '{"trust_remote_code": true, ', 1).encode(),
            "set/evil.py": EVIL_CODE.encode(),
        },
        ("auto_config", "set"),
        words("good.safetensors", "good.npz", model="hf:set"),
    ),
    "image processor with code": Payload(
        {
            "set/preprocessor_config.json": json.dumps(
                {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Evil"}}
            ).encode(),
            "set/evil.py": EVIL_CODE.encode(),
        },
        ("auto_processor", "set"),
        words("", "data", model="hf:set"),
        lambda folder: tiny.image_model(folder / "set", processor=False),
    ),
    "tokenizer with code": Payload(
        {
            "set/tokenizer_config.json": json.dumps(
                {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
            ).encode(),
            "set/evil.py": EVIL_CODE.encode(),
        },
        ("auto_tokenizer", "set"),
        words("", "d.csv", model="hf:set"),
        lambda folder: ((folder / "d.csv").write_text("text,label\ngood film,pos\n"), tiny.text_model(folder / "set")),
    ),
    "labels of CIFAR": Payload(
        {},
        ("torch", "set/CIFAR-10_human.pt"),
        words("good.safetensors", "cifar10n:set:worse_label"),
        lambda folder: (
            tiny.write_cifar(folder / "set"),
            torch.save({"clean_label": ARRAY}, folder / "set" / "CIFAR-10_human.pt"),
        ),
    ),
    "batch of CIFAR": Payload(
        {},
        ("pickle", "set/cifar-10-batches-py/data_batch_2"),
        words("good.safetensors", "cifar10n:set:worse_label"),
        lambda folder: (
            tiny.write_cifar(folder / "set"),
            (folder / "set/cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps({"data": ARRAY})),
        ),
    ),
}


def write(folder: Path, payload: Payload) -> None:
    """Write a payload, and what it needs beside it."""
    folder.mkdir(parents=True)
    payload.more(folder)
    others = {
        "net.py": hostile.NET.encode(),
        "good.safetensors": save(dict(STATE)),
        "payload.py": SOURCE.encode() + b"\nbuild = None\n",
        "payload.pt": RAW,
    }
    for name, content in {**others, **payload.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    np.savez(folder / "good.npz", **hostile.samples())
    np.save(folder / "payload.npy", ARRAY, allow_pickle=True)
    for program in folder.glob("bin/*"):
        program.chmod(0o755)
    tiny.image_folder(folder / "data", 6)


def unprotected(argv: list[str]) -> int:
    """Read a file as one should not; whatever it raises afterwards is of no interest."""
    import contextlib
    import copyreg

    sys.path.insert(0, str(Path.cwd()))
    with contextlib.suppress(Exception):
        copyreg.add_extension("os", "mkdir", EXTENSION)  # type: ignore[arg-type]
    with contextlib.suppress(Exception):
        READERS[argv[0]](argv[1])
    return 0


def _torch_tar(path: str) -> object:
    with tarfile.open(path) as file:
        return pickle.loads(file.extractfile("pickle").read())  # type: ignore[union-attr]


def _metadata(path: str) -> object:
    from safetensors import safe_open

    from verifix.io.models import build_model

    with safe_open(path, "pt") as file:
        return build_model(file.metadata()["model"])


def _image(path: str) -> object:
    from PIL import Image

    return Image.open(path).load()


def _npz_header(path: str) -> object:
    return eval(zipfile.ZipFile(path).read("x.npy")[10:].decode().strip())


def _tar_member(path: str) -> object:
    with tarfile.open(path) as file:
        return pickle.loads(file.extractfile("a.pyd").read())  # type: ignore[union-attr]


def _yaml(path: str) -> object:
    import yaml

    return yaml.unsafe_load(Path(path).read_text())


def _auto(kind: str) -> Callable[[str], object]:
    def read(path: str) -> object:
        import transformers

        return getattr(transformers, kind).from_pretrained(path, trust_remote_code=True)

    return read


READERS: dict[str, Callable[[str], object]] = {
    "torch": lambda path: torch.load(path, weights_only=False),
    "torch_bytes": lambda path: torch.load(io.BytesIO(Path(path).read_bytes()), weights_only=False),
    "torch_tar": _torch_tar,
    "pickle": lambda path: pickle.loads(Path(path).read_bytes()),
    "numpy": lambda path: np.load(path, allow_pickle=True)["x"],
    "npz_header": _npz_header,
    "metadata": _metadata,
    "image": _image,
    "tar_member": _tar_member,
    "extension": lambda path: pickle.loads(pq.read_schema(path).field("text").metadata[b"ARROW:extension:metadata"]),
    "yaml": _yaml,
    "label": lambda path: eval(Path(path).read_text().splitlines()[1].split(",", 1)[1].strip('"')),
    "last_line": lambda path: eval(Path(path).read_text().splitlines()[-1]),
    "auto_config": _auto("AutoConfig"),
    "auto_processor": _auto("AutoImageProcessor"),
    "auto_tokenizer": _auto("AutoTokenizer"),
}
"""Readers without protection."""

RUNS = ("unprotected", "protected", "forced")


@pytest.fixture(scope="module")
def outcomes(vision, asked_for, tmp_path_factory) -> dict[tuple[str, str], tuple[Outcome, bool]]:
    """What became of payloads in every way of reading them, and whether they were executed."""
    payloads = {name: payload for name, payload in PAYLOADS.items() if name in asked_for}
    root = tmp_path_factory.mktemp("payloads")
    environment = {
        "PATH": f"bin{os.pathsep}{os.environ['PATH']}",
        "BROWSER": f"mkdir {MARK} %s",
        "HF_MODULES_CACHE": str(root / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    found: dict[tuple[str, str], tuple[Outcome, bool]] = {}
    folders = {(run, name): root / run / f"{i:03d}" for run in RUNS for i, name in enumerate(payloads)}
    for name, payload in payloads.items():
        write(folders["unprotected", name], payload)
        for run in RUNS[1:]:
            shutil.copytree(folders["unprotected", name], folders[run, name])
    for run in RUNS:
        cases = [
            Case(name, str(folders[run, name]), payload.words)
            if run != "unprotected"
            else Case(name, str(folders[run, name]), list(payload.unsafe), "tests.io.test_payloads:unprotected")
            for name, payload in payloads.items()
        ]
        for name, outcome in run_cases(cases, **environment, **(FORCED if run == "forced" else {})).items():
            found[run, name] = outcome, any(folders[run, name].rglob(MARK))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_executed_by_a_reader_without_protection(name, outcomes):
    outcome, executed = outcomes["unprotected", name]
    assert executed, outcome


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS[1:])
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_payload_is_executed(name, run, outcomes):
    outcome, executed = outcomes[run, name]
    assert not executed
    assert outcome.code in (0, 2, 5), outcome
    if outcome.code:
        *notes, error = outcome.err.splitlines()
        assert error.startswith("verifix: error: ")
        assert all(line.startswith("verifix: note: ") for line in notes)
        assert outcome.out == ""


def test_nothing_but_what_stands_beside_harmless_weights_is_read(outcomes):
    """All others end with an error, because the hostile thing itself was asked for."""
    harmless = {name for (run, name), (outcome, _) in outcomes.items() if run == "protected" and outcome.code == 0}
    assert harmless <= {"beside the weights", "correction beside", "correction", "metadata of safetensors"}


def test_the_command_itself_runs_none_under_the_switch_for_unsafe_loading(tmp_path):
    payload = PAYLOADS["pt: os.system"]
    write(tmp_path / "here", payload)
    command = [str(Path(sys.executable).with_name("verifix")), *payload.words]
    result = subprocess.run(
        command, cwd=tmp_path / "here", env={**os.environ, **FORCED}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 5, result.stderr
    assert "c.pt cannot be read with weights_only=True: it holds a " in result.stderr
    assert not (tmp_path / "here" / MARK).exists()


def test_there_are_payloads_enough():
    assert len(PAYLOADS) >= 60
