"""Classifiers in folders that transformers has saved: built from their config, without weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from verifix.errors import UsageError
from verifix.io.optional_imports import library, reason, remedy

HEADS = {"audio": "Audio", "image": "Image", "text": "Sequence"}
"""What a model classifies, and how transformers calls its head. Audio is first, because some of its architectures end
in ForSequenceClassification too."""


MOST_LAYERS = 2000
"""Layers of one kind that a config may ask for: building them takes time before anything can be checked."""


def build_transformers(folder: str, num_classes: int | None = None) -> nn.Module:
    """Build an untrained model from a folder that transformers has saved.

    Parameters
    ----------
    folder
        The folder; nothing is downloaded, and no code in it is run.
    num_classes
        Must be None: the config has the number.

    Returns
    -------
    nn.Module
        The model, in float32 whatever the folder holds.

    Raises
    ------
    UsageError
        If it is no folder of a classifier that the library knows.
    """
    if num_classes is not None:
        raise UsageError("num_classes is for torchvision and timm models; the config of this model has its own number")
    transformers = library("transformers", "transformers", "text")
    config = _config(transformers, Path(folder))
    head = HEADS[head_of(config, folder)]
    _check_task(config, folder)
    _check_size(config.to_dict(), folder)
    try:
        auto = getattr(transformers, f"AutoModelFor{head}Classification")
        model: nn.Module = auto.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:  # every architecture checks its config in its own way
        raise UsageError(
            f"hf:{folder} is not a model that transformers can build ({reason(error)}); "
            f"{remedy(error, 'check its config.json')}"
        ) from None
    return model


def head_of(config: Any, folder: str) -> str:
    """Tell what a model of transformers classifies.

    Parameters
    ----------
    config
        Its config.
    folder
        Where it comes from, for the message.

    Returns
    -------
    str
        "image", "text" or "audio".

    Raises
    ------
    UsageError
        If its architecture is no classifier.
    """
    from transformers.models.auto import modeling_auto

    architectures = config.architectures or []
    for head, name in HEADS.items():
        table = getattr(modeling_auto, f"MODEL_FOR_{name.upper()}_CLASSIFICATION_MAPPING_NAMES")
        known = {each for value in table.values() for each in ([value] if isinstance(value, str) else value)}
        if len(architectures) == 1 and architectures[0] in known:
            return head
    raise UsageError(
        f"hf:{folder} is a {', '.join(architectures) or 'model whose config.json has no architectures'}; it must be a "
        "classifier of images, texts or audio, such as ViTForImageClassification or BertForSequenceClassification"
    )


def _config(transformers: Any, folder: Path) -> Any:
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"{folder} is a PEFT adapter, not a whole model; merge it first with merge_and_unload(), save the "
            "merged model with save_pretrained, and give that folder"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} has no config.json; hf: takes a local folder written by save_pretrained (download it first)"
        )
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # json, huggingface_hub and transformers each have errors of their own
        raise UsageError(
            f"{folder / 'config.json'} is not a config that transformers knows ({reason(error)}); code in a folder is "
            "never run, so give a model of the library itself, or the model's class with py:FILE:FACTORY"
        ) from None


def _check_size(config: Mapping[str, Any], folder: str) -> None:
    """Refuse a number of layers that no model has, wherever in a config it stands."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_size(value, folder)
        counts = [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, int)]
        if re.search("layer|depth|block", str(name)) and not str(name).endswith("_dim") and sum(counts) > MOST_LAYERS:
            raise UsageError(
                f"the config.json of hf:{folder} has {name} {value}; at most {MOST_LAYERS} layers are supported"
            )


def _check_task(config: Any, folder: str) -> None:
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise UsageError(
            f"hf:{folder} has {config.num_labels} outputs and the problem_type {config.problem_type!r}; it must choose "
            "one of several classes (single_label_classification)"
        )
