"""How images become inputs: timm's words for it, in every kind of model, and what is said about it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from verifix import UsageError
from verifix.cli.commands.record import spelled_command
from verifix.cli.main import main, parse
from verifix.io.data.open import open_data
from verifix.io.data.preprocessing import prepare
from verifix.io.data.resizing import Resizing
from verifix.io.models import build_model
from verifix.io.options import DataOptions, ModelOptions

SIDES = ((40, 40), (31, 77), (90, 37), (12, 20), (33, 32))


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, *channels), np.uint8)
    return Image.fromarray(pixels)


def folder_of(root: Path, *sides: tuple[int, int], count: int = 4) -> Path:
    for i in range(count):
        (root / "0").mkdir(parents=True, exist_ok=True)
        picture(*sides[i % len(sides)]).save(root / "0" / f"{i}.png")
    return root


# Resizing


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [1.0, 0.95, 0.875, 0.4])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_flags_resize_and_crop_as_timm_does(vision, mode, share, interpolation):
    from timm.data import create_transform

    mean, std = (0.5, 0.25, 0.75), (0.2, 0.3, 0.4)
    about = {"crop_pct": share, "crop_mode": mode, "interpolation": interpolation}
    theirs = create_transform((3, 32, 32), mean=mean, std=std, **about)
    ours = prepare(None, "", DataOptions(size=32, mean=list(mean), std=list(std), **about)).image
    for sides in SIDES:
        image = picture(*sides)
        torch.testing.assert_close(ours(image), theirs(image), msg=str(sides))


def test_without_flags_of_a_crop_an_image_is_squashed_as_before():
    image = picture(31, 77)
    found = prepare(None, "", DataOptions(size=16))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / np.float32(255)
    torch.testing.assert_close(found.image(image), torch.from_numpy(expected).float())
    assert found.description == "resized to 16×16, pixels from 0 to 1, as no --mean and --std are given"
    assert (
        "resized to 16×16 (bicubic, squash crop 1)"
        in prepare(None, "", DataOptions(size=16, interpolation="bicubic")).description
    )


def test_a_share_crops_in_the_middle_and_the_longer_side_is_cut():
    assert Resizing(32, 0.5, "center", "bilinear").scaled(100, 50) == (128, 64)
    assert Resizing(32, 1.0, "border", "bilinear").scaled(100, 50) == (32, 16)
    assert Resizing(32, 0.5, "squash", "bilinear").scaled(100, 50) == (64, 64)
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255  # the middle
    assert prepare(None, "", DataOptions(size=8, crop_mode="center")).image(Image.fromarray(wide)).mean() == 1
    assert prepare(None, "", DataOptions(size=8, crop_mode="border")).image(Image.fromarray(wide)).mean() < 0.5


# timm


def test_the_centre_crop_of_timm_can_be_switched_off(vision):
    name = "timm:test_resnet"
    model = build_model(name, 4)
    image = picture(64, 64)
    own = prepare(model, name, DataOptions(size=64))
    whole = prepare(model, name, DataOptions(size=64, crop_pct=1.0))
    assert "64×64 (bilinear, center crop 0.95)" in own.description
    assert "64×64 (bilinear, center crop 1)" in whole.description
    assert whole.description.endswith("; --size, --crop-pct from the command line")
    as_it_is = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(whole.image(image), (as_it_is - 0.5) / 0.5)
    assert not torch.allclose(own.image(image), whole.image(image))


def test_every_word_of_timm_reaches_its_transform(vision):
    from timm.data import create_transform

    name = "timm:test_resnet"
    model = build_model(name, 4)
    flags = {"crop_pct": 0.8, "crop_mode": "border", "interpolation": "lanczos"}
    found = prepare(model, name, DataOptions(size=32, **flags))
    theirs = create_transform((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, **flags)
    for sides in SIDES:
        torch.testing.assert_close(found.image(picture(*sides)), theirs(picture(*sides)))
    assert "32×32 (lanczos, border crop 0.8)" in found.description


def test_a_timm_model_of_grey_images(vision):
    name = "timm:test_resnet"
    model = build_model(name, 4, in_chans=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    match = "--in-chans is 1, but the mean of timm's data config is for 3 channels; give --mean and --std"
    with pytest.raises(UsageError, match=match):
        prepare(model, name, DataOptions(size=32, in_chans=1))
    found = prepare(model, name, DataOptions(size=32, in_chans=1, mean="0.4", std="0.2"))
    assert found.image(picture(40, 30)).shape == (1, 32, 32)
    with pytest.raises(UsageError, match=r"in_chans is 4; images are read with 1 channel \(grey\) or 3"):
        prepare(model, name, DataOptions(in_chans=4))
    with pytest.raises(UsageError, match="in_chans is 0; it must be a whole number of channels"):
        DataOptions(in_chans=0)


def test_further_arguments_build_a_model_and_its_size_is_kept(vision):
    words = "score n.pt --model timm:test_vit --data d --model-kwargs img_size=32 patch_size=8 act_layer=relu"
    command = parse(shlex.split(words))
    assert command.further == {"img_size": 32, "patch_size": 8, "act_layer": "relu"}
    model = build_model(command.model, 4, further=command.further)
    found = prepare(model, command.model, command)
    assert found.image(picture(64, 48)).shape == (3, 32, 32)  # and not the 160 of the data config
    assert model.eval()(found.image(picture(64, 48))[None]).shape == (1, 4)
    with pytest.raises(UsageError, match=r"timm's test_vit cannot be built with .*colour=3.*correct --model-kwargs"):
        build_model(command.model, 4, further={"colour": 3})


@pytest.mark.parametrize("word", ["img_size", "=3", "a-b=3", "num_classes=3", "in_chans=1"])
def test_what_is_no_further_argument_is_refused(word):
    with pytest.raises(UsageError, match=rf"model_kwargs has '{word}'; give name=value, each name once"):
        ModelOptions(model_kwargs=[word])
    with pytest.raises(UsageError, match="model_kwargs has 'a=2'"):
        ModelOptions(model_kwargs=["a=1", "a=2"])


# Other models


def test_torchvision_takes_further_arguments_and_three_channels(vision):
    assert build_model("torchvision:resnet18", 4, 3, {"zero_init_residual": True})(torch.zeros(2, 3, 32, 32)).shape == (
        2,
        4,
    )
    with pytest.raises(UsageError, match="in_chans is 1, but models of torchvision take 3 channels"):
        build_model("torchvision:resnet18", 4, 1)
    with pytest.raises(UsageError, match="torchvision's resnet18 cannot be built with"):
        build_model("torchvision:resnet18", 4, None, {"img_size": 32})
    flags = DataOptions(size=32, crop_pct=0.875, interpolation="bicubic")
    found = prepare(build_model("torchvision:resnet18", 4), "torchvision:resnet18", flags)
    assert found.description.startswith("resized to 32×32 (bicubic, center crop 0.875)")


def test_where_words_do_not_apply_one_line_says_so(tmp_path, monkeypatch):
    (tmp_path / "n.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n")
    with pytest.raises(UsageError, match=r"model_kwargs \(a\) is for torchvision and timm models; give the factory"):
        build_model(f"py:{tmp_path / 'n.py'}:build", further={"a": 1})
    for name in ("crop_pct", "crop_mode", "interpolation"):
        value = {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "box"}[name]
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"{flag} says how images are resized, which needs --size"):
            prepare(None, "", DataOptions(**{name: value}))
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4), np.uint8), y=[0, 1])
        with pytest.raises(UsageError, match=f"{flag} is for image files; the arrays of .* are used as they are"):
            open_data(tmp_path / "a.npz", DataOptions(size=None, **{name: value}), prepare(None, "", DataOptions()))
    for name, value in (("crop_pct", 95), ("crop_pct", 0), ("crop_mode", "middle"), ("interpolation", "linear")):
        with pytest.raises(UsageError, match=f"{name} is {value!r}; it must be"):
            DataOptions(**{name: value})


def test_an_image_processor_takes_a_filter_and_no_crop(vision, tmp_path):
    name = f"hf:{tiny.image_model(tmp_path / 'images')}"
    model = build_model(name)
    for flags in ({"crop_pct": 0.9}, {"crop_mode": "center"}, {"in_chans": 1}):
        flag = "--" + next(iter(flags)).replace("_", "-")
        with pytest.raises(UsageError, match=f"{flag} is for models of timm, torchvision and py:, but images are"):
            prepare(model, name, DataOptions(**flags))
    smooth, sharp = (prepare(model, name, DataOptions(interpolation=i)) for i in ("bilinear", "nearest"))
    assert sharp.description.endswith("; --interpolation from the command line")
    assert sharp.size == smooth.size == tuple(smooth.image(picture(40, 40)).shape[1:])
    assert not torch.allclose(sharp.image(picture(40, 40)), smooth.image(picture(40, 40)))
    assert len(sharp.image(picture(40, 40)).unique()) <= 256 * 3


def test_a_text_model_takes_none_of_them(tmp_path):
    name = f"hf:{tiny.text_model(tmp_path / 'texts')}"
    model = build_model(name)
    for flags in ({"crop_pct": 0.9}, {"crop_mode": "center"}, {"interpolation": "box"}, {"in_chans": 1}):
        flag = "--" + next(iter(flags)).replace("_", "-")
        with pytest.raises(UsageError, match=f"{flag} is for images, but the model takes texts; omit it"):
            prepare(model, name, DataOptions(**flags))
    with pytest.raises(UsageError, match=r"config\.json says how a model of transformers is built"):
        build_model(name, further={"a": 1})


# What is said


def notes_of(path: object, options: DataOptions, capsys, name: str = "", model=None) -> str:
    open_data(str(path), options, prepare(model, name, options))
    return capsys.readouterr().err


def test_images_that_are_enlarged_are_told(vision, tmp_path, capsys):
    name = "timm:test_resnet"
    model = build_model(name, 4)
    small, large = folder_of(tmp_path / "s", (32, 32)), folder_of(tmp_path / "l", (200, 170), (160, 160))
    told = notes_of(small, DataOptions(), capsys, name, model)
    assert (
        f"verifix: note: {small}: the images are smaller than the model's input, for example 32×32 pixels, and are "
        "enlarged (timm's data config: 160×160 (bilinear, center crop 0.95)"
    ) in told
    assert "give --size if the model was trained on smaller inputs" in told
    assert notes_of(small, DataOptions(size=32), capsys, name, model) == ""
    assert notes_of(large, DataOptions(), capsys, name, model) == ""
    assert "for example 32×32 pixels" in notes_of(small, DataOptions(size=48), capsys)
    assert notes_of(small, DataOptions(), capsys) == ""  # images keep their size


def test_the_kinds_of_small_images(tmp_path, capsys):
    flat = folder_of(tmp_path / "flat", (400, 20))  # one side is smaller
    assert "for example 400×20 pixels" in notes_of(flat, DataOptions(size=32), capsys)
    few = folder_of(tmp_path / "few", (64, 64), (64, 64), (64, 64), (8, 8), count=8)
    assert notes_of(few, DataOptions(size=32), capsys) == ""  # as in any collection from the web
    most = folder_of(tmp_path / "most", (8, 8), (8, 8), (64, 64), count=9)
    assert "for example 8×8 pixels" in notes_of(most, DataOptions(size=32), capsys)
    broken = folder_of(tmp_path / "broken", (8, 8))
    (broken / "0" / "0.png").write_bytes(b"")
    assert "for example 8×8 pixels" in notes_of(broken, DataOptions(size=32), capsys)  # told when it is read
    rows = "\n".join(f"0/{i}.png,0" for i in range(4))
    (tmp_path / "most" / "t.csv").write_text(f"file_name,label\n{rows}\n")
    assert "t.csv: the images are smaller" in notes_of(tmp_path / "most" / "t.csv", DataOptions(size=99), capsys)
    tiny.write_cifar(tmp_path / "cifar")
    told = notes_of(f"cifar10n:{tmp_path / 'cifar'}:clean_label", DataOptions(size=176), capsys)
    assert "for example 32×32 pixels" in told
    grey = tmp_path / "grey"
    (grey / "0").mkdir(parents=True)
    picture(8, 8, "L").save(grey / "0" / "a.png")
    assert "for example 8×8 pixels" in notes_of(grey, DataOptions(size=32, in_chans=1), capsys)


def test_arrays_are_not_said_to_be_resized(vision, tmp_path):
    name = "timm:test_resnet"
    model = build_model(name, 4)
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 32, 32, 3), np.uint8), y=[0, 1, 2, 3])
    np.savez(tmp_path / "f.npz", x=np.zeros((4, 3, 32, 32), np.float32), y=[0, 1, 2, 3])
    np.savez(tmp_path / "v.npz", x=np.zeros((4, 7), np.float32), y=[0, 1, 2, 3])
    for file, flags, said in (
        ("b.npz", {}, "arrays: 32×32, 8-bit numbers divided by 255, mean 0.5,0.5,0.5, std 0.5,0.5,0.5"),
        ("f.npz", {}, "arrays: 32×32, numbers as they are, not normalised"),
        ("v.npz", {}, "arrays: numbers as they are, not normalised"),
        ("f.npz", {"mean": [0.1] * 3, "std": [0.2] * 3}, "numbers as they are, mean 0.1,0.1,0.1, std 0.2,0.2,0.2"),
    ):
        options = DataOptions(**flags)
        assert said in open_data(tmp_path / file, options, prepare(model, name, options)).prepared


def test_the_command_that_is_told_says_the_same_again():
    words = (
        "correct --model timm:test_vit --checkpoint n.pt --verified v --verified-from unseen --out o.pt --crop-pct 1.0 "
        "--crop-mode border --interpolation nearest --in-chans 3 --model-kwargs img_size=32 'pos_embed=a b' "
        "--expect-accuracy 769/1000 --no-check-inputs --drawn random"
    )
    command = parse(shlex.split(words))
    assert parse(shlex.split(spelled_command(command))[1:]) == command
    assert (command.crop_pct, command.stops, command.further["pos_embed"]) == (1.0, False, "a b")


@pytest.mark.parametrize(
    ("flags", "stops"),
    [("", True), ("--force", False), ("--no-check-inputs", False), ("--force --check-inputs", True)],
)
def test_force_goes_on_unless_inputs_are_to_be_checked(flags, stops):
    words = "correct --model py:m.py:f --checkpoint n.pt --verified v --verified-from unseen --out o.pt --drawn random"
    assert parse(f"{words} {flags}".split()).stops == stops


def test_files_of_settings_have_the_words_too(tmp_path):
    (tmp_path / "c.yaml").write_text("check_inputs: off\nmodel_kwargs: [img_size=32, depth=2]\nexpect_accuracy: 76.9\n")
    words = "correct --model py:m.py:f --checkpoint n.pt --verified v --verified-from unseen --out o.pt --drawn random"
    command = parse([*words.split(), "--config", str(tmp_path / "c.yaml")])
    assert (command.check_inputs, command.further) == (False, {"img_size": 32, "depth": 2})
    assert command.expected == (pytest.approx(0.769), None)


def test_digits_of_32_pixels_without_a_size_are_told_and_stopped(vision, tmp_path, capsys):
    from benchmarks import preprocessing as grid

    case = grid.train("timm_resnet", 0, 0.2, tmp_path, epochs=8)
    argv = ["correct", "--model", case.name, "--num-classes", "10", "--checkpoint", tmp_path / "net.pt"]
    argv += ["--verified", case.folders["rgb"], "--verified-from", "unseen", "--out", tmp_path / "o.pt"]
    argv += ["--no-progress", "--no-check-labels", "--limit", "120", "--recipe", "refit"]
    argv += ["--proof", "split", "--drawn", "random"]
    expected = ["--expect-accuracy", "{}/{}".format(*case.measured)]
    assert main([str(word) for word in (*argv, *expected)]) == 5
    err = capsys.readouterr().err
    assert "for example 32×32 pixels, and are enlarged (timm's data config: 160×160" in err
    assert re.search(r"right on \S+% of the 6\d verified samples, but", err)  # of the half that corrects
    assert not list(tmp_path.glob("o.*"))
