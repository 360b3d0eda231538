"""`verifix undo`, and what makes it possible: bytes that stay as they were, hashes, and marks that stick."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import verifix
from tests.checkpoint_cases import arguments, flat, same, samples, some_net, write_with, write_world
from verifix.cli.main import main
from verifix.io.checkpoints.byte_layout import entries
from verifix.io.checkpoints.read import read_checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    return tmp_path


def state(seed: int = 1) -> dict[str, torch.Tensor]:
    return dict(some_net(seed=seed).state_dict())


def corrected(content: object, suffix: str = ".pt", *more: str) -> None:
    """Save a checkpoint as c and its correction as f."""
    (save_file if suffix == ".safetensors" else torch.save)(content, f"c{suffix}")
    assert main([*arguments(f"c{suffix}", f"f{suffix}"), *more]) == 0


def undo(capsys, *words: str) -> tuple[int, dict, str]:
    capsys.readouterr()
    code = main(["undo", *words, "--json"])
    out, err = capsys.readouterr()
    assert err.count("\n") == (code != 0), err
    return code, json.loads(out) if out else {}, err


def test_the_result_tells_hashes(here, capsys):
    corrected({"epoch": 3, "model": state()})
    Path("net.py").unlink()  # no model is needed
    Path("v.npz").unlink()
    code, result, _ = undo(capsys, "f.pt", "--out", "b.pt")
    assert code == 0
    digest = hashlib.sha256(Path("c.pt").read_bytes()).hexdigest()
    assert result.pop("seconds") >= 0
    assert result == {
        "checkpoint": "f.pt",
        "correction_file": "f.correction.safetensors",
        "out": "b.pt",
        "tensors": 9,
        "restored": 2,
        "identical": True,
        "files": {"b.pt": {"sha256": digest, "identical": True}},
        "left_out": [],
    }
    assert main(["undo", "f.pt", "--out", "d.pt"]) == 0
    out = capsys.readouterr().out
    assert "Restored 2 of 9 tensors; all 9 have the SHA-256 that they had before the correction." in out
    assert "d.pt is identical to the original, to the byte." in out
    assert main(["undo", "f.pt", "--out", "d.pt"]) == 2
    assert main(["undo", "f.pt", "--out", "d.pt", "--force"]) == 0
    assert main(["undo", "d.pt", "--out", "e.pt", "--correction", "f.correction.safetensors"]) == 5
    assert "d.pt holds the original weights already; there is nothing to undo" in capsys.readouterr().err
    assert not Path("e.pt").exists()


def test_a_header_of_anybodys_making_comes_back_to_the_byte(here, capsys):
    save_file(state(), "c.safetensors")
    content = Path("c.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = {"z": "ä", "a": "\x7f", "format": "pt"}
    text = json.dumps({**dict(reversed(header.items())), "__metadata__": metadata}, indent=1).encode() + b" " * 9
    text = text.ljust(-(-len(text) // 8) * 8)
    Path("c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    assert main(arguments("c.safetensors", "f.safetensors")) == 0
    with safe_open("f.safetensors", "pt") as file:
        assert {key: file.metadata()[key] for key in metadata} == metadata
        about = json.loads(file.metadata()["verifix"])
    assert about["source_sha256"] == {"c.safetensors": read_checkpoint("c.safetensors").parts[0].sha256}
    assert undo(capsys, "f.safetensors", "--out", "b.safetensors")[1]["identical"]
    assert Path("b.safetensors").read_bytes() == Path("c.safetensors").read_bytes()


def test_weights_in_more_digits_than_the_model_holds_come_back_exactly(here, capsys):
    wide = {key: value.double() + 1e-12 if value.is_floating_point() else value for key, value in state().items()}
    corrected({"net": wide, "ema": state(2)}, ".pt", "--weights", "raw")
    assert undo(capsys, "f.pt", "--out", "b.pt")[1]["identical"]
    assert Path("b.pt").read_bytes() == Path("c.pt").read_bytes()


def test_views_of_one_memory_come_back_together(here, capsys):
    tensors = state()
    big = torch.cat([tensors["head.weight"].flatten(), torch.arange(5.0)])
    tensors["head.weight"] = big[:48].view(3, 16)
    content = {"model": tensors, "part": big[3:9], "all": big, "again": tensors["head.weight"].T}
    corrected(content)
    before, after = flat(Path("c.pt")), flat(Path("f.pt"))
    moved = {place[1:] for place in before if not same(before[place], after[place])}
    assert moved == {("model", "head.weight"), ("model", "conv.weight"), ("part",), ("all",), ("again",)}
    assert undo(capsys, "f.pt", "--out", "b.pt")[1]["identical"]
    assert Path("b.pt").read_bytes() == Path("c.pt").read_bytes()


def test_the_form_of_old_torch_is_restored_in_the_form_of_today(here, capsys):
    torch.save(state(), "c.pt", _use_new_zipfile_serialization=False)
    assert main(arguments("c.pt", "f.pt")) == 0
    assert main([*arguments("f.pt", "g.pt")]) == 5
    assert "f.pt has been corrected already" in capsys.readouterr().err
    code, result, _ = undo(capsys, "f.pt", "--out", "b.pt")
    assert code == 0
    assert result["identical"] is False
    assert all(torch.equal(value, state()[key]) for key, value in torch.load("b.pt").items())
    assert main(["undo", "f.pt", "--out", "d.pt"]) == 0
    assert "The bytes of d.pt differ from the original's outside the tensors." in capsys.readouterr().out


def test_a_checkpoint_that_was_loaded_and_saved_again_is_restored_all_the_same(here, capsys):
    corrected({"epoch": 3, "model": state()})
    torch.save(torch.load("f.pt"), "again.pt")
    assert "verifix" not in read_checkpoint("again.pt").metadata  # lost, and no harm done
    code, result, _ = undo(capsys, "again.pt", "--out", "b.pt", "--correction", "f.correction.safetensors")
    assert code == 0
    assert result["identical"] is False
    before, after = flat(Path("c.pt")), flat(Path("b.pt"))
    assert before.keys() == after.keys()
    assert all(same(before[place], after[place]) for place in before)


def test_what_cannot_be_undone_is_refused_in_one_line(here, capsys):
    corrected({"model": state(2)}, ".pth")
    Path("f.correction.safetensors").rename("other.safetensors")
    corrected({"epoch": 3, "model": state()})
    torch.save({"epoch": 3, "model": state(5)}, "five.pt")
    torch.save({**torch.load("f.pt"), "epoch": 4}, "later.pt")
    tuned = torch.load("f.pt")
    tuned["model"]["head.bias"] += 1
    torch.save(tuned, "tuned.pt")
    verifix.correct(some_net(), samples(), alpha=30, progress=False).save("api.safetensors")
    raw = bytearray(Path("f.correction.safetensors").read_bytes())
    raw[-3] ^= 1
    Path("flipped.safetensors").write_bytes(raw)
    raw = bytearray(Path("f.pt").read_bytes())
    raw[entries(Path("f.pt"))[-4].start] ^= 1
    Path("flipped.pt").write_bytes(raw)
    ours, before = "f.correction.safetensors", sorted(here.iterdir())
    for words, wanted, text in [
        (["f.pt", "--correction", "other.safetensors"], 5, "f.pt does not hold what other.safetensors says (6 of 9"),
        (["c.pt", "--correction", ours], 5, "c.pt holds the original weights already"),
        (["five.pt", "--correction", ours], 5, "five.pt does not hold what f.correction.safetensors says (6 of 9"),
        (["tuned.pt", "--correction", ours], 5, "(1 of 9 tensors differ, /'model'/'head.bias' first)"),
        (["later.pt", "--correction", ours], 5, "other content has changed since"),
        (["f.pt", "--correction", "api.safetensors"], 5, "api.safetensors was saved without a checkpoint"),
        (["f.pt", "--correction", "flipped.safetensors"], 5, "flipped.safetensors is damaged"),
        (["f.pt", "--correction", "c.pt"], 5, "c.pt is not a readable safetensors file"),
        (["f.pt", "--correction", "no.safetensors"], 2, "no.safetensors does not exist"),
        (["flipped.pt", "--correction", ours], 5, "does not match its CRC-32; restore it from a copy"),
        (["tuned.pt"], 2, "tuned.correction.safetensors does not exist; undo needs the correction file"),
        (["no.pt"], 2, "no.pt does not exist"),
        (["f.pt", "--out", "f.pt"], 2, "f.pt is an input; it is never overwritten"),
        (["f.pt", "--out", ours, "--force"], 2, "differ in format"),
        (["f.pt", "--out", "b.safetensors"], 2, "differ in format"),
    ]:
        code, _, err = undo(capsys, *words, *([] if "--out" in words else ["--out", "b.pt"]))
        assert (code, text in err) == (wanted, True), err
    assert sorted(here.iterdir()) == before


def test_a_correction_file_with_a_nonsensical_record_is_refused(here, capsys):
    from verifix.model.tensors import sealed
    from verifix.storage.tensors import read_safetensors, write_safetensors

    corrected(state())
    tensors, metadata = read_safetensors("f.correction.safetensors")
    about = json.loads(metadata["verifix"])
    del about["seal"]
    for i, record in enumerate(
        [7, {}, {**about["checkpoint"], "format": "verifix-undo-9"}, {**about["checkpoint"], "files": {"": {}}}]
    ):
        write_safetensors(f"{i}.safetensors", tensors, sealed(tensors, {**about, "checkpoint": record}))
        code, _, err = undo(capsys, "f.pt", "--out", "b.pt", "--correction", f"{i}.safetensors")
        assert code == 5
        assert ("is damaged" if i == 3 else "of another version of verifix") in err


@pytest.mark.parametrize("form", ["sharded", "bin"])
def test_what_a_folder_has_lost_or_what_was_edited_is_said(form, here, vision, capsys):
    from tests.io.checkpoints.test_checkpoints import transformers_folder

    case = transformers_folder(form)
    (case.path / "tf_model.h5").write_text("the same weights again")
    assert main(arguments(case.path, "fixed", factory="vit")) == 0
    (Path("fixed") / "config.json").write_text("{}")
    (Path("fixed") / "sub" / "notes.txt").unlink()
    code, result, _ = undo(capsys, "fixed", "--out", "back")
    assert code == 0
    assert result["left_out"] == ["tf_model.h5"]
    assert result["identical"] is False
    differing = {name for name, file in result["files"].items() if not file["identical"]}
    assert differing == {"config.json", "sub/notes.txt"}
    for file in case.path.glob("*.safetensors" if form == "sharded" else "*.bin"):
        assert (Path("back") / file.name).read_bytes() == file.read_bytes()
    assert main(["undo", "fixed", "--out", "again"]) == 0
    out = capsys.readouterr().out
    assert "config.json, sub/notes.txt differ" in out
    assert "Not restored, because the correction had left them out: tf_model.h5." in out
    shutil.copytree("fixed", "fewer")
    next(iter(sorted(Path("fewer").glob("*.safetensors" if form == "sharded" else "*.bin")))).unlink()
    code, _, _ = undo(capsys, "fewer", "--out", "x", "--correction", "fixed.correction.safetensors")
    assert code == 5
    assert not Path("x").exists()


def test_a_corrected_pt_is_known_wherever_it_goes_and_torch_does_not_mind(here, capsys):
    corrected({"model": state()})
    Path("away").mkdir()
    shutil.copy("f.pt", "away/g.pt")
    assert main(arguments("away/g.pt", "h.pt")) == 5
    assert "away/g.pt has been corrected already" in capsys.readouterr().err
    assert not Path("h.pt").exists()
    plain = torch.load("away/g.pt", weights_only=True)
    for other in (
        torch.load("away/g.pt", mmap=True, weights_only=True),
        torch.load(io.BytesIO(Path("away/g.pt").read_bytes()), weights_only=True),
    ):
        assert all(torch.equal(other["model"][key], value) for key, value in plain["model"].items())
    with zipfile.ZipFile("away/g.pt") as archive:
        assert archive.testzip() is None
        mark = json.loads(json.loads(archive.comment)["verifix"])
    assert mark["strengths"] == {"project": 30}
    torch.save(plain, "away/g.pt")
    read_checkpoint("away/g.pt").refuse_corrected()  # nothing tells any more, and nothing is in the way


def test_a_mark_too_long_for_an_archive_is_shortened(here):
    torch.save(state(), "c.pt")
    checkpoint = read_checkpoint("c.pt")
    write_with(checkpoint, "f.pt", {"head.bias": torch.ones(3)}, {"verifix": "1", "include": ["x" * 70_000]})
    again = read_checkpoint("f.pt")
    assert json.loads(again.metadata["verifix"]) == {"verifix": "1"}
    with pytest.raises(verifix.CheckpointError, match="corrected already"):
        again.refuse_corrected()


def test_files_without_checksums_are_read_and_undone(here, capsys):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": state()}, "c.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert main(arguments("c.pt", "f.pt")) == 0
    assert undo(capsys, "f.pt", "--out", "b.pt")[1]["identical"]
    assert Path("b.pt").read_bytes() == Path("c.pt").read_bytes()


def test_a_flipped_bit_in_a_pt_is_noticed(here, capsys):
    torch.save({"model": state()}, "c.pt")
    raw = Path("c.pt").read_bytes()
    for entry in entries(Path("c.pt")):
        if entry.name.startswith("data/") and entry.size:
            flipped = bytearray(raw)
            flipped[entry.start + entry.size // 2] ^= 4
            Path("d.pt").write_bytes(flipped)
            torch.load("d.pt", weights_only=True)  # torch does not
            assert main(arguments("d.pt", "f.pt")) == 5
            err = capsys.readouterr().err
            assert f"d.pt is damaged: {entry.name} in it does not match its CRC-32" in err


def test_a_correction_file_that_does_not_read_back_is_not_put_in_place(here, capsys, monkeypatch):
    from verifix.storage import tensors

    save_file(state(), "c.safetensors")
    flush, before = tensors.flush, sorted(here.iterdir())

    def damage_and_flush(path: Path, *, forget: bool) -> None:
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        flush(path, forget=forget)

    monkeypatch.setattr(tensors, "flush", damage_and_flush)
    assert main(arguments("c.safetensors", "f.safetensors")) == 5
    assert "f.correction.safetensors does not read back as it was written; check the disk" in capsys.readouterr().err
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_source_that_changes_meanwhile_is_noticed(suffix, here):
    (save_file if suffix == ".safetensors" else torch.save)(state(), f"c{suffix}")
    checkpoint = read_checkpoint(f"c{suffix}")
    (save_file if suffix == ".safetensors" else torch.save)(state(2), f"c{suffix}")
    with pytest.raises(verifix.CheckpointError, match="was changed after it was read; run again"):
        write_with(checkpoint, f"f{suffix}", {"head.bias": torch.ones(3)})
    assert not Path(f"f{suffix}").exists()


TWICE = """
import sys
from verifix.cli.main import main
for words in sys.argv[1:]:
    assert main(words.split("|")) == 0
"""


def process(*words: str, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **env},
    )


def test_the_same_inputs_give_the_same_bytes_in_every_process(here):
    save_file(state(), "c.safetensors", {"format": "pt", "b": "1", "a": "2"})
    torch.save({"model": state(), "seen": {"x", "y", "z"}, "net": 7}, "c.pt")
    torch.save(state(), "old.pt", _use_new_zipfile_serialization=False)
    for folder, seed in (("one", "1"), ("two", "12345")):
        Path(folder).mkdir()
        commands = [
            "|".join(arguments(name, f"{folder}/{name}", "--save-moments", f"{folder}/{name}.moments.safetensors"))
            for name in ("c.safetensors", "c.pt", "old.pt")
        ]
        # the two correction files of c.* would be one and the same
        commands[1] = commands[1].replace(f"{folder}/c.pt|", f"{folder}/d.pt|")
        result = process(*commands, code=TWICE, PYTHONHASHSEED=seed)
        assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in Path("one").iterdir())
    assert len(names) == 9
    assert names == sorted(path.name for path in Path("two").iterdir())
    for name in names:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes(), name


def test_no_variable_of_the_environment_makes_torch_run_what_is_in_a_file(here):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, ("executed",))

    torch.save({"net": state(), "hook": Evil()}, "evil.pt")
    torch.save({"net": state()}, "good.pt")
    code = (
        "import sys, warnings\nwarnings.simplefilter('error')\nfrom verifix.cli.main import main\n"
        "print([main(words.split('|')) for words in sys.argv[1:]])"
    )
    commands = ["|".join(arguments(name, f"f-{name}")) for name in ("evil.pt", "good.pt")]
    result = process(*commands, "undo|evil.pt|--out|x.pt", code=code, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    assert result.stdout.splitlines()[-1] == "[5, 0, 5]", result.stderr
    assert not Path("executed").exists()


INTERRUPTED = """
import os, signal
import torch
from torch import nn

class Net(nn.Linear):
    def forward(self, x):
        with open("calls", "a") as file:
            file.write(".")
        if os.path.getsize("calls") == int(os.environ["AT"]):
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x.flatten(1))

def build():
    return Net(48, 3)
"""


def test_an_interruption_in_the_pass_for_the_moments_leaves_nothing(here, monkeypatch):
    monkeypatch.setenv("AT", "0")
    Path("slow.py").write_text(INTERRUPTED)
    save_file({"weight": torch.randn(3, 48), "bias": torch.zeros(3)}, "c.safetensors")
    argv = arguments("c.safetensors", "f.safetensors", "--save-moments", "m.safetensors")
    argv[argv.index("py:net.py:build")] = "py:slow.py:build"
    code = "import sys\nfrom verifix.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    assert main(argv) == 0
    assert {"f.safetensors", "f.correction.safetensors", "m.safetensors"} <= {path.name for path in here.iterdir()}
    calls = Path("calls").stat().st_size
    for name in ("f.safetensors", "f.correction.safetensors", "m.safetensors", "calls"):
        Path(name).unlink()
    shutil.rmtree("__pycache__", ignore_errors=True)
    before = sorted(here.iterdir())
    result = process(*argv, code=code, AT=str(calls), PYTHONDONTWRITEBYTECODE="1")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (130, "verifix: error: interrupted")
    Path("calls").unlink()
    assert sorted(here.iterdir()) == before


def test_a_corrected_file_differs_from_its_source_in_nothing_but_the_corrected_bytes(here):
    corrected({"epoch": 3, "model": state(), "optimizer": {"momentum": torch.randn(1000)}})
    old, new = Path("c.pt").read_bytes(), Path("f.pt").read_bytes()
    spans = {entry.name: (entry.start, entry.size) for entry in entries(Path("c.pt"))}
    assert spans == {entry.name: (entry.start, entry.size) for entry in entries(Path("f.pt"))}
    changed = {name for name, (start, n) in spans.items() if old[start : start + n] != new[start : start + n]}
    assert changed == {"data/0", "data/7"}
    save_file(state(), "c.safetensors")
    assert main(arguments("c.safetensors", "g.safetensors")) == 0
    assert list(load_file("g.safetensors")) == list(load_file("c.safetensors"))
