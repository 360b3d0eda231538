"""Checkpoints of every framework in, the same out: each is written, and strictly loaded, by its own framework."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import verifix
from tests.checkpoint_cases import ALPHA, NAMES, arguments, flat, same, samples, some_net, ties, write_with, write_world
from verifix.cli.main import main
from verifix.io.checkpoints.read import read_checkpoint


@dataclass
class Case:
    """A checkpoint, the network whose weights are to be corrected, and how its framework reads it back.

    `place` turns a parameter's name into the place of its tensor, without the file; None if the framework renames it.
    """

    path: Path
    model: nn.Module
    load: Callable[[Path], nn.Module]
    place: Callable[[str], tuple[Any, ...]] | None
    out: str
    factory: str = "build"
    weights: str = "raw"
    flags: list[str] = field(default_factory=list)
    others: str = ""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    return tmp_path


@contextmanager
def quiet() -> Iterator[None]:
    """Third-party training loops warn about small data and missing loggers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def strictly(model: nn.Module, state: Any) -> nn.Module:
    model.load_state_dict(state, strict=True)
    return model


def safetensors_file() -> Case:
    model = some_net()
    save_file(model.state_dict(), "c.safetensors", {"format": "pt", "made": "by hand"})
    load = lambda path: strictly(NAMES["Net"](), load_file(path))  # noqa: E731
    return Case(Path("c.safetensors"), model, load, lambda name: (name,), "f.safetensors")


def bf16_safetensors() -> Case:
    model = some_net().bfloat16()
    save_file(model.state_dict(), "c.safetensors")
    load = lambda path: strictly(NAMES["Net"]().bfloat16(), load_file(path))  # noqa: E731
    return Case(Path("c.safetensors"), model.float(), load, lambda name: (name,), "f.safetensors")


def fp16_state_dict() -> Case:
    model = some_net().half()
    torch.save(model.state_dict(), "c.pth")
    load = lambda path: strictly(NAMES["Net"]().half(), torch.load(path))  # noqa: E731
    return Case(Path("c.pth"), model.float(), load, lambda name: (name,), "f.pth")


def training_loop() -> Case:
    model, optimizer = some_net(), None
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()(samples()[0]).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "model_state_dict": model.eval().state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save({"checkpoint": content, "best": (0.5, float("nan")), "when": pathlib.Path("a") / "b"}, "c.pt")

    def load(path: Path) -> nn.Module:
        content = torch.load(path, weights_only=False)["checkpoint"]
        fresh = strictly(NAMES["Net"](), content["model_state_dict"])
        torch.optim.AdamW(fresh.parameters()).load_state_dict(content["optimizer_state_dict"])
        return fresh

    return Case(Path("c.pt"), model, load, lambda name: ("checkpoint", "model_state_dict", name), "f.pt")


def key_of_ones_own() -> Case:
    model = some_net()
    torch.save({"best of all": model.state_dict(), "epoch": 3, "loss": torch.tensor(0.5)}, "c.pt")
    load = lambda path: strictly(NAMES["Net"](), torch.load(path)["best of all"])  # noqa: E731
    return Case(Path("c.pt"), model, load, lambda name: ("best of all", name), "f.pt")


def data_parallel() -> Case:
    model = some_net()
    torch.save({"net": nn.DataParallel(model).state_dict(), "acc": 0.9}, "c.bin")
    load = lambda path: strictly(nn.DataParallel(NAMES["Net"]()), torch.load(path)["net"]).module  # noqa: E731
    return Case(Path("c.bin"), model, load, lambda name: ("net", f"module.{name}"), "f.bin")


def distributed() -> Case:
    model = some_net()
    with process_group():
        torch.save(nn.parallel.DistributedDataParallel(model).state_dict(), "c.pt")

    def load(path: Path) -> nn.Module:
        with process_group():
            return strictly(nn.parallel.DistributedDataParallel(NAMES["Net"]()), torch.load(path)).module

    return Case(Path("c.pt"), model, load, lambda name: (f"module.{name}",), "f.pt")


def compiled() -> Case:
    model = some_net()
    torch.save({"state_dict": torch.compile(model, backend="eager").state_dict()}, "c.pth")

    def load(path: Path) -> nn.Module:
        return strictly(torch.compile(NAMES["Net"](), backend="eager"), torch.load(path)["state_dict"])._orig_mod

    return Case(Path("c.pth"), model, load, lambda name: ("state_dict", f"_orig_mod.{name}"), "f.pth")


def distributed_and_compiled() -> Case:
    model = some_net()

    def wrap(inner: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(torch.compile(inner, backend="eager"))

    with process_group():
        torch.save({"model": wrap(model).state_dict()}, "c.pt")

    def load(path: Path) -> nn.Module:
        with process_group():
            return strictly(wrap(NAMES["Net"]()), torch.load(path)["model"]).module._orig_mod

    return Case(Path("c.pt"), model, load, lambda name: ("model", f"module._orig_mod.{name}"), "f.pt")


def compiled_inside() -> Case:
    model = some_net()
    wrapped = nn.ModuleDict({"net": some_net()})
    wrapped["net"].load_state_dict(model.state_dict())
    wrapped["net"].conv = torch.compile(wrapped["net"].conv, backend="eager")
    save_file(wrapped.state_dict(), "c.safetensors")

    def load(path: Path) -> nn.Module:
        fresh = nn.ModuleDict({"net": NAMES["Net"]()})
        fresh["net"].conv = torch.compile(fresh["net"].conv, backend="eager")
        strictly(fresh, load_file(path))
        fresh["net"].conv = fresh["net"].conv._orig_mod
        return fresh["net"]

    place = lambda name: ("net." + name.replace("conv.", "conv._orig_mod."),)  # noqa: E731
    return Case(Path("c.safetensors"), model, load, place, "f.safetensors")


def lightning_modules() -> Any:
    import lightning
    import torchmetrics

    class Lit(lightning.LightningModule):
        def __init__(self, lr: float, where: Any = None, options: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.backbone = some_net()
            self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
            self.train_acc = torchmetrics.Accuracy(task="multiclass", num_classes=3)
            self.train_acc.persistent(True)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            logits = self.backbone(batch[0])
            self.train_acc.update(logits, batch[1])
            return self.criterion(logits, batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), self.hparams.lr)

    return Lit


def fitted(name: str, callbacks: list[Any], **settings: Any) -> tuple[Any, Any]:
    """A LightningModule after two steps, its checkpoint saved by the Trainer."""
    import lightning

    kind = lightning_modules()
    module = kind(1e-2, **settings)
    with quiet():
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        data = torch.utils.data.TensorDataset(*samples())
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=30))
        trainer.save_checkpoint(name)
    return module, lambda path: kind.load_from_checkpoint(path, weights_only=False, strict=True).backbone


def lightning_checkpoint() -> Case:
    options = argparse.Namespace(seed=1, names=["a", "b"])
    module, load = fitted("c.ckpt", [], where=pathlib.PurePosixPath("/a"), options=options)
    place = lambda name: ("state_dict", f"backbone.{name}")  # noqa: E731
    return Case(Path("c.ckpt"), module.backbone.eval(), load, place, "f.ckpt", others="criterion.weight")


def lightning_average() -> Case:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    callback = EMAWeightAveraging(decay=0.5)
    _, load = fitted("c.ckpt", [callback])
    place = lambda name: ("state_dict", f"backbone.{name}")  # noqa: E731
    return Case(Path("c.ckpt"), load(Path("c.ckpt")).eval(), load, place, "f.ckpt", weights="ema", others="raw")


def timm_training(ema: bool) -> Case:
    import timm
    from timm.utils import CheckpointSaver, ModelEmaV2

    model, twin = some_net(), some_net(seed=2)
    averaged = ModelEmaV2(model, decay=0.5)
    averaged.update(twin)
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        args=argparse.Namespace(model="net", lr=0.1, smoothing=None, mean=(0.5, 0.5, 0.5)),
        model_ema=averaged,
        checkpoint_dir=".",
    )
    saver.save_checkpoint(4, 61.5)
    for file in ("checkpoint-4.pth.tar", "model_best.pth.tar"):
        Path(file).unlink()

    def load(path: Path) -> nn.Module:
        fresh = NAMES["Net"]()
        timm.models.load_checkpoint(fresh, str(path), use_ema=ema, strict=True)
        return fresh

    key, flags = ("state_dict_ema", []) if ema else ("state_dict", ["--weights", "raw"])
    return Case(
        Path("last.pth.tar"),
        averaged.module if ema else model,
        load,
        lambda name: (key, name),
        "fixed.pth.tar",
        weights="ema" if ema else "raw",
        flags=flags,
        others="raw" if ema else "averaged",
    )


def averaged_model() -> Case:
    average = AveragedModel(some_net(), multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for seed in (2, 3):
        average.update_parameters(some_net(seed=seed))
    torch.save(average.state_dict(), "c.pt")
    load = lambda path: strictly(AveragedModel(NAMES["Net"]()), torch.load(path)).module  # noqa: E731
    return Case(
        Path("c.pt"),
        average.module.eval(),
        load,
        lambda name: (f"module.{name}",),
        "f.pt",
        weights="ema",
        others="no others",
    )


def average_beside() -> Case:
    model = some_net()
    both = nn.ModuleDict({"net": model, "smooth": AveragedModel(some_net(seed=2))})
    both["smooth"].update_parameters(model)
    torch.save({"state_dict": both.state_dict()}, "c.pt")

    def load(path: Path) -> nn.Module:
        fresh = nn.ModuleDict({"net": some_net(), "smooth": AveragedModel(some_net())})
        return strictly(fresh, torch.load(path)["state_dict"])["smooth"].module

    place = lambda name: ("state_dict", f"smooth.module.{name}")  # noqa: E731
    averaged = both["smooth"].module.eval()
    return Case(Path("c.pt"), averaged, load, place, "f.pt", weights="ema", others="raw")


def tied_weights() -> Case:
    model = some_net("Tied")
    state = model.state_dict()
    torch.save({"model": state, "history": [state["head.bias"]]}, "c.pt")
    load = lambda path: strictly(NAMES["Tied"](), torch.load(path)["model"])  # noqa: E731
    return Case(Path("c.pt"), model, load, lambda name: ("model", name), "f.pt", factory="tied")


def transformers_folder(form: str) -> Case:
    from huggingface_hub import save_torch_state_dict
    from transformers import ViTForImageClassification

    torch.manual_seed(1)
    model = NAMES["vit"]().eval()
    folder = Path("folder")
    model.inner.save_pretrained(folder, max_shard_size="2KB" if form == "sharded" else "50GB")
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")
    if form.startswith("bin"):
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        size = "2KB" if form == "bin sharded" else "5GB"
        save_torch_state_dict(state, folder, max_shard_size=size, safe_serialization=False)

    def load(path: Path) -> nn.Module:
        again, info = ViTForImageClassification.from_pretrained(path, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return NAMES["Logits"](again)

    return Case(folder, model, load, None, "fixed", factory="vit")


SHAPES: dict[str, Callable[[], Case]] = {
    "safetensors": safetensors_file,
    "safetensors in bf16": bf16_safetensors,
    "state dict in fp16": fp16_state_dict,
    "training loop": training_loop,
    "a key of one's own": key_of_ones_own,
    "DataParallel": data_parallel,
    "DistributedDataParallel": distributed,
    "torch.compile": compiled,
    "module._orig_mod.": distributed_and_compiled,
    "compiled inside": compiled_inside,
    "Lightning": lightning_checkpoint,
    "Lightning, averaged": lightning_average,
    "timm, averaged": lambda: timm_training(True),
    "timm, raw": lambda: timm_training(False),
    "AveragedModel": averaged_model,
    "average beside": average_beside,
    "tied weights": tied_weights,
    "transformers": lambda: transformers_folder("whole"),
    "transformers, sharded": lambda: transformers_folder("sharded"),
    "transformers, bin": lambda: transformers_folder("bin"),
    "transformers, bin sharded": lambda: transformers_folder("bin sharded"),
}


def corrected(case: Case) -> dict[str, torch.Tensor]:
    """What `verifix.correct` makes of the network."""
    return dict(verifix.correct(case.model, samples(), alpha=ALPHA, progress=False).corrected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_comes_back_in_its_own_shape(shape, here, vision, capsys):
    with quiet():
        case = SHAPES[shape]()
    before, expected = flat(case.path), corrected(case)
    assert expected
    source = {file: file.read_bytes() for file in case.path.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main([*arguments(case.path, case.out, *case.flags, factory=case.factory), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)

    after = flat(Path(case.out))
    assert list(after) == list(before)
    assert ties(after) == ties(before)
    changed = {place for place in before if not same(before[place], after[place])}
    if case.place is None:
        assert len(changed) == len(expected)
    else:
        names = dict(case.model.named_parameters(remove_duplicate=False))
        twins = {name: [n for n, p in names.items() if p is names[name]] for name in expected}
        places = {case.place(twin): name for name in expected for twin in twins[name]}
        assert {place[1:] for place in changed} == set(places)
        for place in changed:
            was, now = before[place], after[place]
            assert (now.dtype, now.shape) == (was.dtype, was.shape)
            assert torch.equal(now, expected[places[place[1:]]].to(was.dtype))
    with quiet():
        loaded = dict(case.load(Path(case.out)).named_parameters())
    for name, value in case.model.named_parameters():
        assert torch.equal(loaded[name], expected.get(name, value).to(loaded[name].dtype)), name

    assert result["weights"] == case.weights
    assert case.others in " ".join(result["notes"])
    assert {file: file.read_bytes() for file in source} == source
    left = {"net.py", "v.npz", str(case.path), case.out, result["correction_file"]}
    assert {p.name for p in here.iterdir() if p.name != "__pycache__"} == left

    back = Path(f"back{''.join(Path(case.out).suffixes)}")
    assert main(["undo", case.out, "--out", str(back)]) == 0
    assert f"{back} is identical to the original" in capsys.readouterr().out
    originals = [case.path, *case.path.rglob("*")]
    for file in filter(Path.is_file, originals):
        assert (back / file.relative_to(case.path)).read_bytes() == file.read_bytes(), file


def test_what_half_precision_keeps_of_a_correction_is_said(here, capsys):
    old, strong = bf16_safetensors().model, ["--alpha", "1e4"]
    new = verifix.correct(old, samples(), alpha=1e4, progress=False).corrected
    old = load_file("c.safetensors")
    same_entries = sum(int((new[name].bfloat16() == old[name]).sum()) for name in new)
    share = same_entries / sum(value.numel() for value in new.values())
    assert 0 < share < 1
    assert main([*arguments("c.safetensors", "f.safetensors", *strong), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["unchanged_by_rounding"] == share
    assert result["weights_dtypes"] == ["bfloat16"]
    assert main(arguments("c.safetensors", "g.safetensors", *strong)) == 0
    assert f"Rounding to bfloat16 left {share:.1%} of" in capsys.readouterr().out
    assert main(arguments(safetensors_file().path, "h.safetensors")) == 0
    assert "Rounding" not in capsys.readouterr().out


def test_which_weights_were_used_is_said_and_can_be_chosen(here, vision, capsys):
    case = timm_training(True)
    assert main(arguments(case.path, "f.pth.tar")) == 0
    used = "Used the averaged (EMA) weights (state_dict_ema); the raw ones (state_dict) are unchanged"
    assert used in capsys.readouterr().out
    score = ["score", str(case.path), "--model", "py:net.py:build", "--data", "v.npz", "--no-progress", "--json"]
    figures = {}
    for weights in ("auto", "ema", "raw"):
        assert main([*score, "--weights", weights]) == 0
        figures[weights] = json.loads(capsys.readouterr().out)
    assert figures["auto"] == figures["ema"]
    assert figures["raw"]["weights"] == "raw"
    assert figures["raw"]["cross_entropy"] != figures["ema"]["cross_entropy"]
    torch.save({"ema_state_dict": case.model.state_dict()}, "only.pt")
    torch.save({"state_dict": {f"ema_net.{k}": v for k, v in case.model.state_dict().items()}}, "inside.pt")
    for name in ("only.pt", "inside.pt"):
        notes = read_checkpoint(name).notes(case.model)
        assert notes == ["Used averaged (EMA) weights; the checkpoint has no others."]
    with pytest.raises(verifix.UsageError, match="it must be 'auto', 'raw' or 'ema'"):
        read_checkpoint(case.path, "mean")


@pytest.mark.parametrize("form", ["whole", "sharded", "bin", "bin sharded"])
def test_all_other_files_of_a_folder_are_copied_byte_for_byte(form, here, vision, capsys):
    case = transformers_folder(form)
    (case.path / "tf_model.h5").write_text("the same weights again")
    for file in case.path.glob("*.*"):
        file.chmod(0o640)
    command = arguments(case.path, "fixed", "--include", "*patch_embeddings*", factory="vit")
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "Left out, because they hold the same weights uncorrected: tf_model.h5." in result["notes"]
    before, after = (
        {str(f.relative_to(d)): f for f in d.rglob("*") if f.is_file()} for d in (case.path, Path("fixed"))
    )
    assert before.keys() - after.keys() == {"tf_model.h5"}
    assert after.keys() - before.keys() == set()
    differing = {name for name in after if before[name].read_bytes() != after[name].read_bytes()}
    weights = {name for name in after if name.endswith((".bin", ".safetensors"))}
    assert differing
    assert differing < weights if "sharded" in form else differing == weights
    for name in weights if form in ("whole", "sharded") else ():
        with safe_open(after[name], "pt") as file:
            assert ("verifix" in file.metadata()) == (name in differing)
            assert file.metadata()["format"] == "pt"
    assert {file.stat().st_mode & 0o777 for name, file in after.items() if "/" not in name} == {0o640}
    assert after["config.json"].stat().st_mtime == before["config.json"].stat().st_mtime
    umask = os.umask(0)
    os.umask(umask)
    assert Path("fixed").stat().st_mode & 0o777 == 0o777 & ~umask


def test_an_index_stands_for_the_files_it_names(here, vision, capsys):
    case = transformers_folder("sharded")
    index = case.path / "model.safetensors.index.json"
    assert main(arguments(index, "fixed", factory="vit")) == 0
    weights = {file.name for file in case.path.glob("model-*.safetensors")}
    assert {file.name for file in Path("fixed").iterdir()} == {index.name, *weights}
    assert (Path("fixed") / index.name).read_bytes() == index.read_bytes()
    assert Path("fixed.correction.safetensors").is_file()


def test_a_folder_that_brings_model_and_weights_is_corrected_as_a_whole(here, vision, capsys):
    case = transformers_folder("sharded")
    command = [*arguments("", "fixed"), "--force", "--json"]
    command[2:5] = [f"hf:{case.path}"]
    assert main(command) == 0
    expected = corrected(case)
    loaded = dict(case.load(Path("fixed")).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    command[command.index("fixed")] = str(case.path)
    assert main(command) == 2
    assert "folder is an input; it is never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["sharded", "bin"])
def test_a_corrected_folder_is_not_corrected_again(form, here, vision, capsys):
    case = transformers_folder(form)
    assert main(arguments(case.path, "fixed", factory="vit")) == 0
    if form == "sharded":
        Path("fixed.correction.safetensors").unlink()
    assert main(arguments("fixed", "twice", factory="vit")) == 5
    assert "fixed has been corrected already" in capsys.readouterr().err
    assert not Path("twice").exists()


def test_a_corrected_checkpoint_behind_a_prefix_is_not_corrected_again(here, capsys):
    data_parallel()
    assert main(arguments("c.bin", "f.bin")) == 0
    assert main(arguments("f.bin", "g.bin")) == 5
    assert "f.bin has been corrected already" in capsys.readouterr().err


def test_a_folder_is_replaced_only_by_force_and_only_if_it_holds_weights(here, vision, capsys):
    case = transformers_folder("whole")
    out = Path("fixed")
    out.mkdir(0o750)
    command = arguments(case.path, out, factory="vit")
    assert main(command) == 0  # an empty folder is none
    assert out.stat().st_mode & 0o777 == 0o750
    (out / "old.txt").write_text("old")
    Path("fixed.correction.safetensors").unlink()
    assert main(command) == 2
    assert "fixed exists already and is not empty" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert not (out / "old.txt").exists()
    assert flat(out).keys() == flat(case.path).keys()
    (out / "model.safetensors").unlink()
    assert main([*command, "--force"]) == 2
    assert "is a folder with other content" in capsys.readouterr().err
    assert (out / "config.json").is_file()
    Path("file").write_text("precious")
    for name, text in {
        "file": "is not a folder",
        "f.safetensors": "name a folder with --out",
        "folder/fixed": "is in the folder of the checkpoint",
        "folder": "is an input",
        ".": "is a folder with inputs",
        "nowhere/fixed": "does not exist; create it first",
    }.items():
        assert main([*arguments(case.path, name, factory="vit"), "--force"]) == 2, name
        assert text in capsys.readouterr().err
    assert Path("file").read_text() == "precious"
    assert (case.path / "model.safetensors").is_file()


@pytest.mark.parametrize("moment", ["copy", "write", "read back", "flush", "rename"])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_fails_to_be_written_leaves_what_was_there(moment, there, here, vision, capsys, monkeypatch):
    case = transformers_folder("whole")
    if there:
        shutil.copytree(case.path, "fixed")
        (Path("fixed") / "old.txt").write_text("old")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("disk\nfull")

    def rename(path: Path, target: Path) -> Path:
        if target.name == "fixed":  # not the plan's
            fail()
        os.replace(path, target)  # noqa: PTH105 - the method is replaced
        return target

    moments = {
        "copy": ("shutil.copy2", fail),
        "write": ("verifix.io.checkpoints.weight_file.write_tensors_like", fail),
        "read back": ("verifix.io.checkpoints.weight_file.read_safetensors", None),
        "flush": ("os.fsync", fail),
        "rename": ("pathlib.Path.replace", rename),
    }
    name, replacement = moments[moment]
    before = {str(p): p.read_bytes() for p in here.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    checkpoint = read_checkpoint(case.path)
    if replacement is None:
        damaged = {key: value + 1 for key, value in checkpoint.parts[0].content.items()}
        replacement = lambda _: (damaged, {})  # noqa: E731
    monkeypatch.setattr(name, replacement)
    if moment == "rename":  # as on a file system that cannot exchange two folders
        monkeypatch.setattr("verifix.storage.transaction.exchange", lambda *_: False)
    with pytest.raises(verifix.VerifixError, match="does not read back" if moment == "read back" else "disk full"):
        write_with(checkpoint, "fixed", {"classifier.bias": torch.ones(3)}, force=there)
    monkeypatch.undo()
    os.chdir(here)
    assert {str(p): p.read_bytes() for p in here.rglob("*") if p.is_file() and p.suffix != ".pyc"} == before
    assert Path("fixed").exists() == there


def test_a_snapshot_of_the_hub_is_copied_as_files(here, vision, capsys):
    case = transformers_folder("whole")
    snapshot, blobs = (Path("models--a--b") / name for name in ("snapshots/0123", "blobs"))
    for file in [file for file in case.path.rglob("*") if file.is_file()]:
        link = snapshot / file.relative_to(case.path)
        blob = blobs / f"{len(list(blobs.glob('*'))):040x}"
        for path in (link, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert main(arguments(snapshot, "fixed", factory="vit")) == 0
    copied = list(Path("fixed").rglob("*"))
    assert not any(path.is_symlink() for path in copied)
    assert (Path("fixed") / "sub" / "notes.txt").read_text() == "kept"
    assert (case.path / "model.safetensors").read_bytes() == (snapshot / "model.safetensors").read_bytes()


def test_weights_that_share_memory_in_the_file_alone_are_refused(here, capsys):
    weight = torch.randn(48, 48)
    model = some_net("Tied")
    state = model.state_dict() | {"a.weight": weight, "b.weight": weight}
    torch.save(state, "c.pt")
    model.b.weight = nn.Parameter(model.a.weight.detach().clone())
    checkpoint = read_checkpoint("c.pt")
    checkpoint.load_into(model)
    with pytest.raises(verifix.CheckpointError, match=r"has one tensor for 'a.weight' and 'b.weight'"):
        checkpoint.spread(model, {"a.weight": weight + 1})
    assert checkpoint.spread(model, {"head.weight": weight}).keys() == {"head.weight"}


def test_counters_and_buffers_that_do_not_matter_may_differ_as_in_torch(here, capsys):
    model = some_net()
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, "c.safetensors")
    strictly(NAMES["Net"](), load_file("c.safetensors"))
    checkpoint, fresh = read_checkpoint("c.safetensors"), NAMES["Net"]()
    checkpoint.load_into(fresh)
    assert torch.equal(fresh.bn.running_var, model.bn.running_var)
    model.register_buffer("ids", torch.arange(3), persistent=False)
    save_file(state | {"ids": torch.arange(3)}, "d.safetensors")
    again = read_checkpoint("d.safetensors")
    again.load_into(model)
    assert again.notes(model) == ["Unchanged, because the model has no such weights: ids."]
    with pytest.raises(verifix.CheckpointError, match=r"1 unexpected \(ids\)"):
        again.load_into(fresh)


def test_what_the_user_allowed_to_be_read_stays_allowed(here):
    training_loop()
    before = set(torch.serialization.get_safe_globals()) - {argparse.Namespace}
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint("c.pt")
        assert set(torch.serialization.get_safe_globals()) == before | {argparse.Namespace}
    read_checkpoint("c.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_correction_file_lies_beside(here):
    from verifix.io.checkpoints.undo_record import correction_path

    names = {"a.pt": "a", "m/last.pth.tar": "m/last", "v1.2.safetensors": "v1.2", "vit.b16": "vit.b16", "d/x/": "d/x"}
    for name, stem in names.items():
        assert str(correction_path(name)) == f"{stem}.correction.safetensors"
    assert correction_path(".") == here.with_name(f"{here.name}.correction.safetensors")


def test_the_manual_names_every_ending_and_setting():
    from verifix.io.checkpoints.weight_file import SUFFIXES

    page = (Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for word in (*SUFFIXES, ".index.json", "--weights", "state_dict_ema", "unchanged_by_rounding"):
        assert re.search(re.escape(word) + r"\b", page), word
