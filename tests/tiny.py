"""Tiny models of real libraries and tiny data in real layouts, written to disk."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
NAMES = list(COLOURS)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
POSITIVE, NEGATIVE, OTHER = ["good", "great", "fine"], ["bad", "poor", "dull"], ["film", "plot", "the", "is", "very"]
WORDS = [*SPECIAL, *POSITIVE, *NEGATIVE, *OTHER]


def quietly(save, *arguments, **settings) -> None:
    """Save without the library's progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        save(*arguments, **settings)


def picture(name: str, seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 40, (*size, 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def png(name: str, seed: int = 0, size: tuple[int, int] = (12, 12)) -> bytes:
    buffer = io.BytesIO()
    picture(name, seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(root: Path, n: int = 60, names=NAMES) -> Path:
    for i in range(n):
        folder = root / names[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(NAMES[i % 3], i))
    return root


def sentences(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences of 3 to 8 words, and whether they are "pos" or "neg"."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(n):
        mood = POSITIVE if i % 2 else NEGATIVE
        words = [*generator.choice(OTHER, generator.integers(2, 7)), generator.choice(mood)]
        generator.shuffle(words)
        texts.append(" ".join(words))
        labels.append("pos" if i % 2 else "neg")
    return texts, labels


def tokenizer(longest: int = 16):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=longest, **special)


def text_model(folder: Path, names=("neg", "pos"), train: bool = False, **changes) -> Path:
    """Save a tiny BERT with its tokenizer; trained on sentences of which every fourth has the wrong label."""
    from transformers import BertConfig, BertForSequenceClassification

    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**(settings | changes))).eval()
    if train:
        texts, labels = sentences(160, 7)
        wrong = torch.tensor([names.index(y) ^ (i % 4 == 0) for i, y in enumerate(labels)])
        batch = tokenizer()(texts, padding=True, return_tensors="pt")
        _train(model, batch, wrong)
    quietly(model.save_pretrained, folder)
    tokenizer().save_pretrained(folder)
    return folder


def image_model(folder: Path, names=NAMES, train: bool = False, processor: bool = True, **changes) -> Path:
    """Save a tiny ViT with its image processor; trained on images of which every fourth has the wrong label."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 8,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**(settings | changes))).eval()
    own = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    if train:
        images = [picture(NAMES[i % 3], 1000 + i) for i in range(120)]
        wrong = torch.tensor([(i + (i % 4 == 0)) % 3 for i in range(120)])
        _train(model, own(images=images, return_tensors="pt"), wrong)
    quietly(model.save_pretrained, folder)
    if processor:
        own.save_pretrained(folder)
    return folder


def _train(model, batch, labels: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()


def timm_folder(timm, folder: Path, names=NAMES) -> Path:
    """Save a small network as timm saves models for the hub."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=len(names)).eval()
    timm.models.save_for_hf(model, folder, model_config={"label_names": list(names)}, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    own = {"input_size": [3, 48, 48], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "crop_pct": 0.8}
    config["pretrained_cfg"] |= own
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_cifar(root: Path, kind: str = "python", n: int = 12, hundred: bool = False) -> np.ndarray:
    """Write the images of CIFAR, as numbers in a layout of Toronto's, with human labels; return the pixels."""
    generator = np.random.default_rng(0)
    classes = 100 if hundred else 10
    pixels = generator.integers(0, 256, (n, 3, 32, 32), np.uint8)
    labels = np.arange(n) % classes
    names = [f"class{i}" for i in range(classes)]
    parts = [range(n)] if hundred else [range(i, n, 5) for i in range(5)]
    parts = [list(part) for part in parts]
    folder = (
        root
        / {
            ("python", False): "cifar-10-batches-py",
            ("binary", False): "cifar-10-batches-bin",
            ("python", True): "cifar-100-python",
            ("binary", True): "cifar-100-binary",
        }[kind, hundred]
    )
    folder.mkdir(parents=True)
    for i, part in enumerate(parts):
        rows, own = pixels[part].reshape(len(part), -1), [int(y) for y in labels[part]]
        if kind == "python":
            key = "fine_labels" if hundred else "labels"
            content = {"data": rows, key: own, "filenames": ["a.png"] * len(part)}
            (folder / ("train" if hundred else f"data_batch_{i + 1}")).write_bytes(pickle.dumps(content, protocol=2))
        else:
            column = np.array(own, np.uint8)[:, None]
            records = np.concatenate([column // 5, column, rows] if hundred else [column, rows], axis=1)
            (folder / ("train.bin" if hundred else f"data_batch_{i + 1}.bin")).write_bytes(records.tobytes())
    if kind == "python":
        meta = ("meta", "fine_label_names") if hundred else ("batches.meta", "label_names")
        (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: names}, protocol=2))
    else:
        text = "fine_label_names.txt" if hundred else "batches.meta.txt"
        (folder / text).write_text("\n".join(names) + "\n")
    order = np.concatenate(parts)
    write_human(root, labels[order], hundred)
    return pixels[order].transpose(0, 2, 3, 1)


def write_human(root: Path, clean: np.ndarray, hundred: bool = False, **changes) -> None:
    classes = 100 if hundred else 10
    keys = ["noisy_label"] if hundred else ["aggre_label", "worse_label", *(f"random_label{i}" for i in (1, 2, 3))]
    content = {"clean_label": clean.astype(np.int64)}
    content |= {key: (clean.astype(np.int64) + 1 + i) % classes for i, key in enumerate(keys)}
    torch.save(content | changes, root / ("CIFAR-100_human.pt" if hundred else "CIFAR-10_human.pt"))


def write_webvision(root: Path, classes: int = 60) -> Path:
    info = root / "info"
    info.mkdir(parents=True)
    (info / "synsets.txt").write_text("".join(f"n{i:08d} thing{i}, other thing{i}\n" for i in range(classes)))
    lists = {
        "train_filelist_google.txt": [(f"google/q{i:04d}/g{i}.jpg", i) for i in (0, 49, 50, 59)],
        "train_filelist_flickr.txt": [(f"flickr/q{i:04d}/f{i}.jpg", i) for i in (1, 58)],
        "val_filelist.txt": [(f"val{i:06d}.jpg", i) for i in (49, 3, 51)],
    }
    for file, pairs in lists.items():
        (info / file).write_text("".join(f"{name} {label}\n" for name, label in pairs))
        for name, _ in pairs:
            path = (root / "val_images_256" if file.startswith("val") else root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png("red", 1))
    return root


def write_clothing(root: Path, annotations: bool = True) -> Path:
    lists = root / "annotations" if annotations else root
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "category_names_eng.txt").write_text("".join(f"Cloth {i}\n" for i in range(14)))
    keys = [f"images/{i % 3}/{i:02d}/{i}.jpg" for i in range(10)]
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(png("blue", 2))
    splits = {"noisy_train": keys[:4], "clean_train": keys[3:6], "clean_val": keys[6:8], "clean_test": keys[8:]}
    for split, own in splits.items():
        (lists / f"{split}_key_list.txt").write_text("".join(f"{key}\n" for key in own))
    (lists / "noisy_label_kv.txt").write_text("".join(f"{key} {(i + 5) % 14}\n" for i, key in enumerate(keys[:4])))
    (lists / "clean_label_kv.txt").write_text("".join(f"{key} {i}\n" for i, key in enumerate(keys) if i >= 3))
    return root


def write_shards(root: Path, shards: int = 2, n: int = 6, **kinds) -> str:
    """Write shards with webdataset's own writer; `kinds` gives the content of each ending by number."""
    import webdataset

    kinds = kinds or {"png": lambda i: png(NAMES[i % 3], i), "cls": lambda i: i % 3}
    for shard in range(shards):
        with webdataset.TarWriter(str(root / f"s-{shard:03d}.tar")) as writer:
            for i in range(shard * n, (shard + 1) * n):
                writer.write({"__key__": f"{i:04d}", **{kind: make(i) for kind, make in kinds.items()}})
    return str(root / f"s-{{000..{shards - 1:03d}}}.tar")
