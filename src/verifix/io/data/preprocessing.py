"""How samples become inputs: as the model's own data config says, or, item by item, as flags say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from verifix.errors import UsageError, first_of
from verifix.io.data.preparation import RESIZING, Preparation, Text, Tokens, flag, listing
from verifix.io.data.resizing import Resizing
from verifix.io.models import TIMM
from verifix.io.optional_imports import library, reason, remedy
from verifix.io.options import DataOptions
from verifix.io.transformers_models import head_of
from verifix.model.class_names import check_classes, names_of
from verifix.progress import note

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
IMAGE_FLAGS = (*RESIZING, "mean", "std", "in_chans")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
ENDLESS = 10**6
"""Tokenizers that know no limit give a far larger one."""


def prepare(model: nn.Module | None, name: str, options: DataOptions) -> Preparation:
    """Find out how samples become the inputs of a model.

    Parameters
    ----------
    model
        The model, or None if only flags count.
    name
        The name that it was built from.
    options
        Flags; each given one takes the place of what the model's own data config says.

    Returns
    -------
    Preparation
        What to do.

    Raises
    ------
    UsageError
        If flags and model do not fit, or the model's own preprocessing cannot be read.
    """
    given = options.class_names
    if given is not None:
        check_classes(given)
    source, _, rest = name.partition(":")
    if source == "hf" and model is not None:
        return _of_transformers(model, Path(rest), options, given)
    if source in TIMM and model is not None:
        config: Any = getattr(model, "pretrained_cfg", None) or {}
        return _of_timm(model, config, names_of(model), options, given)
    return _of_flags(options, given)


def _of_flags(options: DataOptions, given: list[str] | None, remark: str = "") -> Preparation:
    mean, std = tuple(options.channel_mean), tuple(options.channel_std)
    if len(mean) != len(std):
        raise UsageError(f"mean has {len(mean)} numbers and std {len(std)}; give both, one number per channel")
    if options.size is None:
        for name in ("crop_pct", "crop_mode", "interpolation"):
            if getattr(options, name) is not None:
                raise UsageError(f"{flag(name)} says how images are resized, which needs --size")
    channels = _channels(options, len(mean) or 3)
    if mean:
        mean, std = map(tuple, _per_channel(options, channels))
    how, size = _resizing(options, mean), "images keep their size"
    if how is not None:
        told = (options.crop_pct, options.crop_mode, options.interpolation) != (None, None, None)
        size = f"resized to {how.size}×{how.size}"
        size += f" ({how.interpolation}, {how.mode} crop {how.share:g})" if told else ""
    normal = (
        f"mean {listing(mean)}, std {listing(std)}" if mean else "pixels from 0 to 1, as no --mean and --std are given"
    )
    image = partial(_plain_image, mode="L" if channels == 1 else "RGB", resizing=how, mean=mean, std=std)
    text = f"{remark}{size}, {normal}"
    square = None if how is None else (how.size, how.size)
    return Preparation(image, mean=mean, std=std, class_names=_tuple(given), description=text, size=square)


def _channels(options: DataOptions, own: int) -> int:
    """Return how many channels images are read with."""
    channels = own if options.in_chans is None else options.in_chans
    if channels not in (1, 3):
        raise UsageError(f"in_chans is {channels}; images are read with 1 channel (grey) or 3 (colour)")
    return channels


def _resizing(options: DataOptions, mean: Sequence[float]) -> Resizing | None:
    """Return how flags alone bring images to a size; without flags of a crop, the whole image is squashed."""
    if options.size is None:
        return None
    mode = options.crop_mode or ("squash" if options.crop_pct is None else "center")
    fill = tuple(round(255 * value) for value in mean)
    return Resizing(options.size, options.crop_pct or 1.0, mode, options.interpolation or "bilinear", fill)


def _plain_image(
    image: Image.Image, mode: str, resizing: Resizing | None, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    picture = image.convert(mode)
    array = np.array(picture if resizing is None else resizing.of(picture))
    x = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).float() / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None] if mean else x


def _of_timm(
    model: nn.Module,
    config: Mapping[str, Any],
    names: tuple[str, ...] | None,
    options: DataOptions,
    given: list[str] | None,
) -> Preparation:
    """Prepare images as timm's own validation does."""
    data = library("timm.data", "timm")
    own, *sides = data.resolve_data_config({}, pretrained_cfg=config)["input_size"]
    channels = _channels(options, own)
    mean, std = _per_channel(options, channels)
    for name, numbers in (("mean", mean), ("std", std)):
        if channels != own and not numbers:
            raise UsageError(
                f"--in-chans is {channels}, but the {name} of timm's data config is for {own} channels; give --mean "
                "and --std, one number per channel"
            )
    size = (options.size,) * 2 if options.size is not None else _built_for(model) or tuple(sides)
    words = {name: getattr(options, name) for name in ("crop_pct", "crop_mode", "interpolation")}
    flags = {"input_size": (channels, *size), "mean": mean or None, "std": std or None, **words}
    settings = data.resolve_data_config(flags, pretrained_cfg=config)
    transform = data.create_transform(**settings, is_training=False)
    return Preparation(
        partial(_converted, transform=transform, mode="L" if channels == 1 else "RGB"),
        mean=tuple(map(float, settings["mean"])),
        std=tuple(map(float, settings["std"])),
        class_names=_chosen(given, names),
        description=(
            f"timm's data config: {'×'.join(map(str, settings['input_size'][1:]))} ({settings['interpolation']}, "
            f"{settings['crop_mode']} crop {settings['crop_pct']:g}), mean {listing(settings['mean'])}, std "
            f"{listing(settings['std'])}{_from_flags(options)}"
        ),
        size=size,
    )


def _built_for(model: nn.Module) -> tuple[int, int] | None:
    """Return the size that a model of patches was built for, of which its data config does not know."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return size if isinstance(size, tuple) and len(size) == 2 else None


def _converted(image: Image.Image, transform: Callable[[Image.Image], Tensor], mode: str) -> Tensor:
    return transform(image.convert(mode))


def _of_transformers(model: nn.Module, folder: Path, options: DataOptions, given: list[str] | None) -> Preparation:
    config: Any = model.config
    names = names_of(model)
    head = head_of(config, str(folder))
    if head == "text":
        return _of_tokenizer(model, folder, options, _chosen(given, names))
    if head == "audio":
        return Preparation(None, class_names=_chosen(given, names), description="arrays are used as they are")
    if getattr(config, "pretrained_cfg", None):  # transformers' wrapper around models of timm
        return _of_timm(model, config.pretrained_cfg, names, options, given)
    if not any((folder / file).is_file() for file in PROCESSOR_FILES):
        remark = f"{folder} has no {PROCESSOR_FILES[0]}, so from options: "
        preparation = _of_flags(options, given, remark)
        return replace(preparation, class_names=preparation.class_names or names)
    return _of_processor(config, folder, options, _chosen(given, names))


def _of_processor(config: Any, folder: Path, options: DataOptions, names: tuple[str, ...] | None) -> Preparation:
    """Prepare images with the image processor of a folder of transformers."""
    for name in ("crop_pct", "crop_mode", "in_chans"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{flag(name)} is for models of timm, torchvision and py:, but images are prepared by the image "
                f"processor of {folder}; give --size, or edit {PROCESSOR_FILES[0]} there"
            )
    auto = _auto("AutoImageProcessor")
    try:
        processor = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            f"the image processor of {folder} cannot be read ({reason(error)}); "
            f"{remedy(error, 'save it there with save_pretrained')}"
        ) from None
    channels = getattr(config, "num_channels", None) or 3
    mean, std = _per_channel(options, channels)
    changes: dict[str, Any] = ({"image_mean": mean} if mean else {}) | ({"image_std": std} if std else {})
    changes |= {"do_normalize": True} if changes else {}
    changes |= {} if options.size is None else _sizes(processor, options.size)
    if options.interpolation is not None:
        changes |= {"resample": int(Image.Resampling[options.interpolation.upper()])}
    settings = processor.to_dict() | changes
    normal = settings.get("do_normalize")
    used = [_numbers_of(settings.get(key), channels) if normal else () for key in ("image_mean", "image_std")]
    return Preparation(
        partial(_processed, processor=processor, changes=changes, mode="L" if channels == 1 else "RGB"),
        mean=used[0],
        std=used[1],
        class_names=names,
        description=(
            f"{type(processor).__name__} of {folder}: size {_size_text(settings)}, "
            f"{f'mean {listing(used[0])}, std {listing(used[1])}' if normal else 'not normalised'}"
            f"{_from_flags(options)}"
        ),
        place=str(folder),
        size=_side(settings),
    )


def _side(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width that an image processor resizes and crops to; None if images keep their size."""
    cropped, size = settings.get("do_center_crop"), dict(settings.get("size") or {})
    wanted = dict(settings.get("crop_size") or {}) if cropped else size if settings.get("do_resize", True) else {}
    shortest = wanted.get("shortest_edge")
    height, width = wanted.get("height") or shortest, wanted.get("width") or shortest
    return (int(height), int(width)) if height and width else None


def _processed(image: Image.Image, processor: Any, changes: Mapping[str, Any], mode: str) -> Tensor:
    pixels: Tensor = processor(images=image.convert(mode), return_tensors="pt", **changes)["pixel_values"][0]
    return pixels


def _sizes(processor: Any, size: int) -> dict[str, Any]:
    """Change the side of the model's input; a resize in front of a crop keeps its ratio to it."""
    own = {key: value for key, value in dict(processor.size or {}).items() if value}
    if not getattr(processor, "do_center_crop", False) or not getattr(processor, "crop_size", None):
        return {"do_resize": True, "size": dict.fromkeys(own, size) or {"height": size, "width": size}}
    crop = dict(processor.crop_size)
    scaled = {key: round(value * size / crop["height"]) for key, value in own.items()}
    return {"size": scaled, "crop_size": {"height": size, "width": size}}


def _size_text(settings: Mapping[str, Any]) -> str:
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = dict(settings.get("size") or {}) if settings.get("do_resize", True) else {}
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in size.items() if value]
    return ", ".join(parts or ["as it is"]) + (f", crop {crop['height']}×{crop['width']}" if crop else "")


def _of_tokenizer(model: nn.Module, folder: Path, options: DataOptions, names: tuple[str, ...] | None) -> Preparation:
    """Prepare texts with the tokenizer of a folder of transformers."""
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        # transformers would make one with an empty vocabulary, without a word.
        return Preparation(None, class_names=names, description=f"{folder} has no tokenizer", place=str(folder))
    try:
        tokenizer = _auto("AutoTokenizer").from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            f"the tokenizer of {folder} cannot be read ({reason(error)}); "
            f"{remedy(error, 'save it there with save_pretrained')}"
        ) from None
    config: Any = model.config
    if tokenizer.pad_token is None or config.pad_token_id is None:
        raise UsageError(
            f"{folder} has no padding token in its {'tokenizer' if tokenizer.pad_token is None else 'config.json'}, so "
            "texts cannot be put into batches; set pad_token and pad_token_id as in training, and save both there"
        )
    limit = _longest(model, tokenizer, options.max_length)
    special = tokenizer.num_special_tokens_to_add()
    if limit is not None and limit <= special:
        raise UsageError(f"max_length is {limit}, and special tokens take {special} of them; give a larger number")
    _refuse_image_flags(options)
    return Preparation(
        None,
        partial(_tokenized, tokenizer=tokenizer, limit=limit),
        partial(_padded, tokenizer=tokenizer),
        class_names=names,
        description=f"tokenizer of {folder}, {'texts of any length' if limit is None else f'at most {limit} tokens'}",
        place=str(folder),
    )


def _refuse_image_flags(options: DataOptions) -> None:
    for name in IMAGE_FLAGS:
        if getattr(options, name) is not None:
            raise UsageError(f"{flag(name)} is for images, but the model takes texts; omit it")


def _tokenized(texts: Sequence[Text], tokenizer: Any, limit: int | None) -> Tokens:
    columns = list(zip(*texts, strict=True)) if isinstance(texts[0], tuple) else [texts]
    special = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
    if limit is not None and limit <= special:
        raise UsageError(f"max_length is {limit}, and special tokens take {special} of them; give a larger number")
    how = {"truncation": limit is not None, "max_length": limit, "padding": True, "return_tensors": "pt"}
    tokens: Tokens = tokenizer(*map(list, columns), **how).data
    return tokens


def _padded(texts: Sequence[Tokens], tokenizer: Any) -> Tokens:
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # padding alone is what is wanted here
    tokens: Tokens = tokenizer.pad([dict(each) for each in texts], return_tensors="pt").data
    return tokens


def _longest(model: nn.Module, tokenizer: Any, wanted: int | None) -> int | None:
    """Return how many tokens a text may have: what was asked for, else what model and tokenizer take."""
    positions = _positions(model)
    if wanted is not None and positions is not None and wanted > positions:
        raise UsageError(f"max_length is {wanted}, but the model has {positions} positions; give {positions} or less")
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit is not None and limit < ENDLESS]
    return wanted if wanted is not None else min(limits, default=None)


def _positions(model: nn.Module) -> int | None:
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Models like RoBERTa count positions from behind the padding index.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


def _per_channel(options: DataOptions, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and std of the flags, one number per channel; empty where there is no flag."""
    for name, numbers in (("mean", options.channel_mean), ("std", options.channel_std)):
        if len(numbers) not in (0, 1, channels):
            raise UsageError(
                f"{name} has {len(numbers)} numbers and the model takes images with {channels} channel"
                f"{'s' * (channels > 1)}; give one number per channel"
            )
    mean, std = options.channel_mean, options.channel_std
    return (mean * channels if len(mean) == 1 else mean), (std * channels if len(std) == 1 else std)


def _from_flags(options: DataOptions) -> str:
    flags = [flag(name) for name in IMAGE_FLAGS if getattr(options, name) is not None]
    return f"; {', '.join(flags)} from the command line" if flags else ""


def _auto(name: str) -> Any:
    transformers = library("transformers", "transformers", "text")
    try:
        return getattr(transformers, name)
    except Exception as error:
        raise UsageError(
            f"{name} of transformers cannot be imported ({reason(error)}); "
            + remedy(error, "install what it needs with: pip install 'verifix[text,vision]'")
        ) from None


def _numbers_of(value: Any, channels: int) -> tuple[float, ...]:
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(float(each) for each in (numbers * channels if len(numbers) == 1 else numbers))


def _chosen(given: list[str] | None, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Prefer the names of the flag, and say so where the model has others."""
    if given is not None and names is not None and tuple(given) != names:
        note(f"--classes replaces the model's own class names ({first_of(names, 5)})")
    return _tuple(given) or names


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
