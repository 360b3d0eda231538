"""Models that bring their weights, their preprocessing and their class names."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import verifix
from tests import tiny
from verifix import UsageError
from verifix.cli.main import main
from verifix.cli.options import CorrectCommand, ScoreCommand
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.data.preprocessing import prepare
from verifix.io.models import build_model, own_checkpoint
from verifix.io.options import DataOptions


@pytest.fixture(scope="module")
def folders(vision, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.text_model(root / "text", train=True)
    tiny.image_model(root / "image", train=True)
    tiny.timm_folder(vision[1], root / "timm")
    return root


def edited(folder: Path, target: Path, file: str = "config.json", **changes) -> Path:
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text()) | changes
    (target / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return target


def library_model(folder: Path, head: str) -> torch.nn.Module:
    import transformers

    loaded = []
    auto = getattr(transformers, f"AutoModelFor{head}Classification")
    tiny.quietly(lambda: loaded.append(auto.from_pretrained(folder).eval()))
    return loaded[0]


@pytest.mark.parametrize(("kind", "head"), [("text", "Sequence"), ("image", "Image")])
def test_a_folder_of_transformers_is_built_from_its_config_and_filled_with_its_weights(folders, kind, head):
    model, own = build_model(f"hf:{folders / kind}"), library_model(folders / kind, head)
    assert type(model) is type(own)
    assert not torch.equal(model.classifier.weight, own.classifier.weight)
    read_checkpoint(own_checkpoint(f"hf:{folders / kind}")).load_into(model)
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_half_precision_folder_is_built_in_float32(folders, tmp_path):
    folder = edited(folders / "text", tmp_path / "half", dtype="float16")
    assert {p.dtype for p in build_model(f"hf:{folder}").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("text", {"num_hidden_layers": 10**6}),
        ("image", {"num_hidden_layers": 2001}),
        ("text", {"encoder": {"n_layers": 10**9}}),
    ],
)
def test_a_config_of_more_layers_than_any_model_has_is_refused_before_anything_is_built(
    folders, tmp_path, kind, changes
):
    folder = edited(folders / kind, tmp_path / "deep", **changes)
    with pytest.raises(UsageError, match=r"config.json of hf:.*deep has \w*layers \d+; at most 2000 layers"):
        build_model(f"hf:{folder}")


def test_audio_models_are_built_too(vision, tmp_path):
    from transformers import ASTConfig, ASTForAudioClassification

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ASTForAudioClassification(ASTConfig(**small, num_labels=3, max_length=32, num_mel_bins=16))
    tiny.quietly(model.save_pretrained, tmp_path)
    built = build_model(f"hf:{tmp_path}")
    assert built(torch.zeros(2, 32, 16)).logits.shape == (2, 3)
    assert prepare(built, f"hf:{tmp_path}", DataOptions()).image is None


def test_what_is_no_classifier_is_refused_by_its_name(folders, tmp_path):
    def refused(match: str, **changes) -> None:
        folder = edited(folders / "text", tmp_path / str(len(list(tmp_path.iterdir()))), **changes)
        with pytest.raises(UsageError, match=match):
            build_model(f"hf:{folder}")

    refused("is a BertForMaskedLM; it must be a classifier", architectures=["BertForMaskedLM"])
    refused("has no architectures; it must be", architectures=None)
    refused(
        "is a BertForSequenceClassification, BertModel;", architectures=["BertForSequenceClassification", "BertModel"]
    )
    refused("not a config that transformers knows .*code in a folder is never run", model_type="mine")
    refused("2 outputs and the problem_type 'regression'", problem_type="regression")
    refused("problem_type 'multi_label_classification'", problem_type="multi_label_classification")


def test_code_in_a_folder_is_never_run(folders, tmp_path):
    auto = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    folder = edited(folders / "text", tmp_path / "evil", model_type="mine", auto_map=auto)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(UsageError, match="code in a folder is never run"):
        build_model(f"hf:{folder}")
    assert not (tmp_path / "executed").exists()


def test_adapters_and_what_is_no_folder_say_what_to_do(folders, tmp_path):
    import peft

    model = build_model(f"hf:{folders / 'text'}")
    settings = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks for it
        tiny.quietly(peft.get_peft_model(model, settings).save_pretrained, tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"PEFT adapter, not a whole model.*merge_and_unload"):
        build_model(f"hf:{tmp_path / 'adapter'}")
    for name in ("hf:", "local-dir:"):
        with pytest.raises(UsageError, match=r"nowhere has no config\.json"):
            build_model(f"{name}{tmp_path / 'nowhere'}")
    with pytest.raises(UsageError, match="num_classes is for torchvision and timm"):
        build_model(f"hf:{folders / 'text'}", 3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is not a timm model"):
        build_model(f"local-dir:{tmp_path}")
    with pytest.raises(UsageError, match="not a config that transformers knows"):
        build_model(f"hf:{tmp_path}")


def test_weights_come_from_where_the_model_comes_from(folders, tmp_path):
    assert own_checkpoint(f"hf:{folders / 'text'}") == folders / "text"
    assert own_checkpoint(f"local-dir:{folders / 'timm'}") == folders / "timm" / "model.safetensors"
    (tmp_path / "pytorch_model.bin").touch()
    assert own_checkpoint(f"local-dir:{tmp_path}") == tmp_path / "pytorch_model.bin"
    with pytest.raises(UsageError, match=r"has no model\.safetensors and no pytorch_model\.bin; give .*--checkpoint"):
        own_checkpoint(f"local-dir:{folders}")


def test_other_models_need_a_checkpoint():
    for model in ("timm:resnet18", "torchvision:resnet18", "py:net.py:build"):
        with pytest.raises(UsageError, match=f"{model} is a model without weights; give .*--checkpoint"):
            CorrectCommand(model=model, verified="v", out="o", verified_from="unseen")
        with pytest.raises(UsageError, match="verifix score CHECKPOINT"):
            ScoreCommand(model=model, data="v")
    for model in ("hf:d", "hf-hub:a/b", "local-dir:d"):
        assert (
            CorrectCommand(model=model, verified="v", out="o", verified_from="unseen", drawn="random").checkpoint
            is None
        )


def test_the_hub_is_asked_as_timm_asks_it(vision, folders, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folders / "timm", snapshot)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = build_model("hf-hub:org/name")
    assert model.pretrained_cfg["label_names"] == tiny.NAMES
    assert own_checkpoint("hf-hub:org/name") == snapshot / "model.safetensors"
    with pytest.raises(UsageError, match="hf-hub:org/other is not a timm model"):
        build_model("hf-hub:org/other")
    with pytest.raises(UsageError, match="hf-hub:org/other has no model"):
        own_checkpoint("hf-hub:org/other")


def test_images_are_prepared_as_timm_does(vision, folders):
    from timm.data import create_transform, resolve_data_config

    name = f"local-dir:{folders / 'timm'}"
    model = build_model(name)
    config = resolve_data_config({}, model=model)
    image = tiny.picture("red", 0, (60, 90))
    found = prepare(model, name, DataOptions())
    torch.testing.assert_close(found.image(image), create_transform(**config)(image), rtol=0, atol=1e-6)
    assert found.image(image).shape == (3, 48, 48)
    assert found.image(image.convert("RGBA")).shape == (3, 48, 48)
    assert found.class_names == tuple(tiny.NAMES)
    assert "48×48 (bicubic, center crop 0.8), mean 0.4,0.5,0.6" in found.description
    changed = prepare(model, name, DataOptions(size=32, std="0.5"))
    expected = create_transform(**config | {"input_size": (3, 32, 32), "std": (0.5, 0.5, 0.5)})(image)
    torch.testing.assert_close(changed.image(image), expected, rtol=0, atol=1e-6)
    assert changed.mean == found.mean
    assert changed.description.endswith("; --size, --std from the command line")
    imagenet = prepare(build_model("timm:resnet18", 3), "timm:resnet18", DataOptions())
    assert imagenet.class_names is None
    assert imagenet.mean == pytest.approx((0.485, 0.456, 0.406))


def test_images_are_prepared_as_the_image_processor_does(folders):
    from transformers import AutoImageProcessor

    name = f"hf:{folders / 'image'}"
    model = build_model(name)
    processor = AutoImageProcessor.from_pretrained(folders / "image")
    image = tiny.picture("blue", 0, (60, 90))

    def check(options: DataOptions, **changes) -> None:
        expected = processor(images=image, return_tensors="pt", **changes)["pixel_values"][0]
        torch.testing.assert_close(prepare(model, name, options).image(image), expected, rtol=0, atol=1e-6)

    check(DataOptions())
    check(DataOptions(size=24), size={"height": 24, "width": 24})
    check(DataOptions(mean="0.1,0.2,0.3"), image_mean=[0.1, 0.2, 0.3])
    check(DataOptions(std="0.1", size=8), image_std=[0.1] * 3, size={"height": 8, "width": 8})
    found = prepare(model, name, DataOptions())
    assert (found.mean, found.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert found.class_names == tuple(tiny.NAMES)


def test_a_resize_in_front_of_a_crop_keeps_its_ratio(folders, tmp_path):
    from transformers import CLIPImageProcessor

    folder = tmp_path / "crop"
    shutil.copytree(folders / "image", folder)
    own = CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    own.save_pretrained(folder)
    image = tiny.picture("red", 0, (60, 90))
    found = prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions(size=32))
    expected = own(images=image, size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, return_tensors="pt")
    torch.testing.assert_close(found.image(image), expected["pixel_values"][0], rtol=0, atol=1e-6)
    assert "crop 32×32" in found.description


def test_flags_prepare_images_where_the_model_says_nothing(folders, tmp_path):
    shutil.copytree(folders / "image", tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    name = f"hf:{tmp_path / 'bare'}"
    image = tiny.picture("red", 0)
    found = prepare(build_model(name), name, DataOptions(size=16, mean="0.1,0.2,0.3", std="0.5,0.5,0.5"))
    plain = prepare(None, "", DataOptions(size=16, mean="0.1,0.2,0.3", std="0.5,0.5,0.5"))
    assert torch.equal(found.image(image), plain.image(image))
    assert "bare has no preprocessor_config.json, so from options: resized to 16×16" in found.description
    assert found.class_names == tuple(tiny.NAMES)
    with pytest.raises(UsageError, match="give both"):
        prepare(None, "", DataOptions(mean="0.1"))
    with pytest.raises(UsageError, match="mean has 1 numbers and std 3"):
        prepare(None, "", DataOptions(mean="0.1", std="0.1,0.1,0.1"))


def test_texts_are_prepared_as_the_tokenizer_does(folders, tmp_path):
    from transformers import AutoTokenizer

    name = f"hf:{folders / 'text'}"
    own = AutoTokenizer.from_pretrained(folders / "text")
    texts = ["the film was very good", "bad", "dull " * 30]
    found = prepare(build_model(name), name, DataOptions())
    for given, limit in ((None, 16), (5, 5)):
        prepared = prepare(build_model(name), name, DataOptions(max_length=given)).tokenize(texts)
        expected = own(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt")
        assert set(prepared) == {"input_ids", "attention_mask"}
        assert all(torch.equal(prepared[key], expected[key]) for key in prepared)
        assert prepared["input_ids"].shape == (3, limit)
    assert found.class_names == ("neg", "pos")
    alone = [{key: x[0] for key, x in found.tokenize([text]).items()} for text in texts]
    padded, expected = found.pad(alone), own(texts, truncation=True, padding=True, return_tensors="pt")
    assert all(torch.equal(padded[key], expected[key]) for key in padded)
    with pytest.raises(UsageError, match="max_length is 17, but the model has 16 positions"):
        prepare(build_model(name), name, DataOptions(max_length=17))


@pytest.mark.parametrize("longest", [10**30, 12])
def test_a_tokenizer_that_allows_more_is_held_to_the_models_positions(vision, tmp_path, longest):
    tiny.text_model(tmp_path, max_position_embeddings=9)
    tiny.tokenizer(longest).save_pretrained(tmp_path)
    found = prepare(build_model(f"hf:{tmp_path}"), f"hf:{tmp_path}", DataOptions())
    assert found.tokenize(["dull " * 30])["input_ids"].shape == (1, 9)


def test_positions_that_begin_behind_the_padding_index_are_not_counted(vision, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=20, max_position_embeddings=12, pad_token_id=1, **small)
    tiny.quietly(RobertaForSequenceClassification(config).save_pretrained, tmp_path)
    tiny.tokenizer(longest=10**30).save_pretrained(tmp_path)
    model = build_model(f"hf:{tmp_path}").eval()
    tokens = prepare(model, f"hf:{tmp_path}", DataOptions()).tokenize(["dull " * 30])
    assert tokens["input_ids"].shape == (1, 10)
    assert model(**tokens).logits.isfinite().all()


def test_a_missing_tokenizer_or_padding_is_said(folders, tmp_path):
    shutil.copytree(folders / "text", tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / file).unlink()
    name = f"hf:{tmp_path / 'bare'}"
    found = prepare(build_model(name), name, DataOptions())
    assert found.tokenize is None
    assert found.description.endswith("bare has no tokenizer")
    folder = edited(folders / "text", tmp_path / "pad", "tokenizer_config.json", pad_token=None)
    with pytest.raises(UsageError, match="no padding token in its tokenizer"):
        prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions())
    folder = edited(folders / "text", tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"the tokenizer of .*broken cannot be read"):
        prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions())


def test_names_of_classes_come_from_flags_then_the_model_unless_they_are_its_default(folders, tmp_path):
    name = f"hf:{folders / 'text'}"
    model = build_model(name)
    assert prepare(model, name, DataOptions(classes="bad,good")).class_names == ("bad", "good")
    (tmp_path / "names.txt").write_text("worse\n\nbetter\n")
    assert prepare(model, name, DataOptions(classes=str(tmp_path / "names.txt"))).class_names == ("worse", "better")
    with pytest.raises(UsageError, match=r"gone\.txt does not exist; --classes"):
        prepare(model, name, DataOptions(classes="gone.txt"))
    with pytest.raises(verifix.DataError, match="--classes names 'a' twice"):
        prepare(model, name, DataOptions(classes="a,b,a"))
    labels = {"0": "LABEL_0", "1": "LABEL_1"}
    folder = edited(folders / "text", tmp_path / "default", id2label=labels, label2id={v: k for k, v in labels.items()})
    assert prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions()).class_names is None


def test_eight_bit_arrays_take_the_models_mean_and_other_numbers_do_not(folders, tmp_path):
    name = f"hf:{folders / 'image'}"
    found = prepare(build_model(name), name, DataOptions())
    x = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["red", "blue", "blue", "green"]))
    inputs, labels = open_data(tmp_path / "a.npz", DataOptions(), found).dataset[:]
    expected = (x.transpose(0, 3, 1, 2) / 255 - np.reshape([0.4, 0.5, 0.6], (3, 1, 1))) / np.reshape(
        [0.2, 0.3, 0.4], (3, 1, 1)
    )
    np.testing.assert_allclose(inputs, expected, atol=1e-6)
    assert labels.tolist() == [0, 2, 2, 1]
    np.savez(tmp_path / "b.npz", x=expected.astype(np.float32), y=np.zeros(4, int))
    np.testing.assert_array_equal(
        open_data(tmp_path / "b.npz", DataOptions(), found).dataset[:][0], expected.astype(np.float32)
    )


def test_a_missing_library_is_one_line_with_its_extra(monkeypatch, tmp_path):
    import sys

    (tmp_path / "config.json").write_text("{}")
    for package, use, extra in (
        ("transformers", lambda: build_model(f"hf:{tmp_path}"), "text"),
        ("timm", lambda: build_model(f"local-dir:{tmp_path}"), "vision"),
        ("webdataset.tariterators", lambda: open_data(tmp_path / "a-{0..1}.tar", DataOptions()), "shards"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match=rf"cannot be imported .*pip install 'verifix\[{extra}\]'"):
            use()


def correct(model: str, verified: Path, out: Path, capsys, *more: str) -> tuple[int, str, str]:
    argv = ["correct", "--model", model, "--verified", str(verified), "--verified-from", "unseen", "--proof", "none"]
    argv.append("--no-check-inputs")  # the models are not trained
    code = main([*argv, "--alpha", "100", "--out", str(out), "--json", "--no-progress", *more])
    return code, *capsys.readouterr()


def test_a_text_classifier_is_corrected_from_its_folder_and_scores_as_the_library_does(folders, tmp_path, capsys):
    for name, n, seed in (("verified", 60, 1), ("test", 30, 2)):
        texts, labels = tiny.sentences(n, seed)
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    test, model = tmp_path / "test.jsonl", f"hf:{folders / 'text'}"
    code, text, err = correct(model, tmp_path / "verified.jsonl", tmp_path / "fixed", capsys, "--test", str(test))
    assert code == 0, err
    result = json.loads(text)
    assert result["preprocessing"] == f"tokenizer of {folders / 'text'}, at most 16 tokens"
    assert "bert.encoder.layer.0.attention.self.query.weight" in {layer["parameter"] for layer in result["layers"]}
    assert result["test"]["before"] == pytest.approx(library_accuracy(folders / "text", *tiny.sentences(30, 2)))
    assert main(["score", "--model", model, "--data", str(test), "--json", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["test"]["before"]


def library_accuracy(folder: Path, texts: list[str], labels: list[str]) -> float:
    from transformers import AutoTokenizer

    model = library_model(folder, "Sequence")
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens).logits.argmax(1).tolist()
    return 100 * float(np.mean([model.config.id2label[k] == y for k, y in zip(found, labels, strict=True)]))


def test_an_image_classifier_is_corrected_from_its_folder(folders, tmp_path, capsys):
    verified = tiny.image_folder(tmp_path / "verified")
    test, out = tiny.image_folder(tmp_path / "test", 90), tmp_path / "fixed"  # of these, 60 are the verified ones
    code, text, err = correct(f"hf:{folders / 'image'}", verified, out, capsys, "--test", str(test))
    assert code == 0, err
    result = json.loads(text)
    assert result["test"]["samples"] == 30
    assert result["preprocessing"].startswith("ViTImageProcessor of ")
    assert result["test"]["before"] > 50
    before, after = (library_model(folder, "Image").state_dict() for folder in (folders / "image", out))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {layer["parameter"] for layer in result["layers"] if layer["status"] == "corrected"}
    assert len(changed) == 8


def test_a_folder_of_timm_is_corrected_with_its_own_preprocessing(folders, tmp_path, capsys):
    verified, out = tiny.image_folder(tmp_path / "verified", 12), tmp_path / "fixed.safetensors"
    code, text, err = correct(f"local-dir:{folders / 'timm'}", verified, out, capsys, "--size", "32")
    assert code == 0, err
    assert json.loads(text)["preprocessing"].startswith("timm's data config: 32×32")
    assert set(load_file(out)) == set(load_file(folders / "timm" / "model.safetensors"))


def test_an_own_checkpoint_goes_before_that_of_the_folder(folders, tmp_path, capsys):
    state = load_file(folders / "text" / "model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in state.items()}, tmp_path / "zero.safetensors", {"format": "pt"})
    texts, labels = tiny.sentences(10, 3)
    rows = "\n".join(f"{text},{label}" for text, label in zip(texts, labels, strict=True))
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}\n")
    argv = ["--model", f"hf:{folders / 'text'}", "--data", str(tmp_path / "t.csv"), "--json", "--no-progress"]
    assert main(["score", str(tmp_path / "zero.safetensors"), *argv]) == 0
    assert json.loads(capsys.readouterr().out)["cross_entropy"] == pytest.approx(np.log(2))


def test_a_folder_of_transformers_is_inspected_without_making_values(tmp_path, vision, capsys):
    size = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 10, "num_attention_heads": 64}
    tiny.text_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | size))  # 130 GB of weights
    assert main(["inspect", "--model", f"hf:{tmp_path}", "--input-shape", "16", "--memory", "100GB"]) == 0
    text = capsys.readouterr().out
    assert "Of 32480722944 multiplied weights: 100.00% corrected" in text
    assert "62 layers would be corrected, with 1000 samples and 5 folds. The moments take " in text
    assert "wait in a temporary file" in text
