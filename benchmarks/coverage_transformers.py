"""Classifiers of transformers whose coverage is surveyed, built from small configurations with random weights.

What is covered depends on how a model multiplies, not on how wide it is. Text comes as two sequences of different
lengths with the attention mask that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage_models import CLASSES, Case, picture

NARROW = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}
CAUSAL = {**NARROW, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PAIRED = {
    "d_model": 32,
    "vocab_size": 120,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "max_position_embeddings": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
SHARED = {"share_att_key": True, "norm_rel_ebd": "layer_norm"}

TEXT: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("Bert", "Roberta", "XLMRoberta", "Electra", "MPNet", "ConvBert", "RoFormer", "Ernie"), NARROW),
    **dict.fromkeys(("MegatronBert", "RobertaPreLayerNorm", "Nystromformer", "LayoutLM", "FNet", "IBert"), NARROW),
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Phi", "StableLm"), CAUSAL),
    **dict.fromkeys(("Bart", "MBart"), PAIRED),
    "Deberta": {**NARROW, **RELATIVE, "max_relative_positions": 8},
    "DebertaV2": {**NARROW, **RELATIVE, **SHARED, "position_buckets": 8},
    "Albert": {**NARROW, "embedding_size": 16},
    "BigBird": {**NARROW, "attention_type": "original_full"},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 120, "pad_token_id": 3},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 120},
    "Esm": {**NARROW, "pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "rotary"},
    "Falcon": {**NARROW, "num_kv_heads": 2, "new_decoder_architecture": True, "pad_token_id": 0},
    "Funnel": {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "vocab_size": 120},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 120, "pad_token_id": 0},
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 120, "pad_token_id": 0},
    "GPTNeo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 120,
        "pad_token_id": 0,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "GPTNeoX": {**NARROW, "pad_token_id": 0},
    "Longformer": {**NARROW, "attention_window": 8},
    "Mixtral": {**CAUSAL, "num_local_experts": 4},
    "MobileBert": {**NARROW, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "ModernBert": {**NARROW, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1},
    "OPT": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "vocab_size": 120,
        "word_embed_proj_dim": 16,
    },
    "RemBert": {**NARROW, "input_embedding_size": 16},
    "SqueezeBert": {**NARROW, "embedding_size": 32},
    "T5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 120,
        "decoder_start_token_id": 0,
    },
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 120},
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 120},
    "Canine": {**NARROW, "num_hash_buckets": 64, "downsampling_rate": 4, "local_transformer_stride": 8},
    "Perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 32,
        "num_self_attends_per_block": 1,
        "vocab_size": 120,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "max_position_embeddings": 64,
    },
}
"""Configurations of classes whose input is token ids, by the name before ForSequenceClassification."""

BASE: Mapping[str, Mapping[str, Any]] = {
    "GPT2": {"pad_token_id": 50256},
    "Bert": {},
    "Deberta": RELATIVE,
    "DebertaV2": {
        **RELATIVE,
        **SHARED,
        "position_buckets": 256,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
"""Text models surveyed at their real size as well."""

PATCHES = {**NARROW, "image_size": 32, "patch_size": 8}
STAGES = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1]}
WINDOWS = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "window_size": 4,
    "depths": [2, 2],
    "num_heads": [2, 4],
}
BIASED = {**PATCHES, "use_relative_position_bias": True}
PYRAMID = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
TOWERS = {"vision_config": {**PATCHES, "projection_dim": 16}, "text_config": NARROW}
AS_IT_IS: Mapping[str, Any] = {}

IMAGES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "ViTMSN", "IJepa"), PATCHES),
    **dict.fromkeys(("Beit", "Data2VecVision"), BIASED),
    **dict.fromkeys(("Swin", "DonutSwin", "Swinv2"), WINDOWS),
    **dict.fromkeys(("ConvNext", "ConvNextV2"), PYRAMID),
    **dict.fromkeys(("ResNet", "RegNet"), STAGES),
    **dict.fromkeys(("CLIP", "Siglip"), TOWERS),
    "Bit": {"embedding_size": 32, "hidden_sizes": [128, 256, 256, 256], "depths": [1, 1, 1, 1]},
    "FocalNet": {
        "image_size": 32,
        "embed_dim": 16,
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
        "hidden_sizes": [16, 32],
    },
    **dict.fromkeys(("Cvt", "Hiera", "Levit", "MobileNetV2", "MobileViT", "PoolFormer", "Pvt"), AS_IT_IS),
    **dict.fromkeys(("PvtV2", "Segformer", "SwiftFormer"), AS_IT_IS),
}
"""Configurations of classes whose input is an image, by the name before ForImageClassification."""

SOUND = {
    **NARROW,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
SPECTRUM = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "classifier_proj_size": 16,
}

AUDIO: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "UniSpeechSat", "Data2VecAudio"), SOUND),
    "SEW": {**SOUND, "squeeze_factor": 2},
}
"""Configurations of classes whose input is sound, by the name before ForSequenceClassification."""


def of_transformers() -> Iterator[Case]:
    """Name the models of transformers."""
    for family, configured in TEXT.items():
        yield _case(family, "ForSequenceClassification", configured, _text, padded=True)
    for family, configured in BASE.items():
        yield _case(family, "ForSequenceClassification", configured, _text, size=" (base)")
    for family, configured in IMAGES.items():
        yield _case(family, "ForImageClassification", configured, _image)
    for family, configured in AUDIO.items():
        yield _case(family, "ForSequenceClassification", configured, _sound)
    mel = {**NARROW, "patch_size": 8, "num_mel_bins": 16, "max_length": 32, "frequency_stride": 8, "time_stride": 8}
    yield _case("AST", "ForAudioClassification", mel, _spectrum((32, 16)))
    yield _case("Whisper", "ForAudioClassification", SPECTRUM, _spectrum((16, 100)))


def _case(
    family: str, task: str, configured: Mapping[str, Any], inputs: Any, *, padded: bool = False, size: str = ""
) -> Case:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{family}Config")(**configured, num_labels=CLASSES)
        model: nn.Module = getattr(transformers, f"{family}{task}")(config)
        return model

    return Case("transformers", family, f"{family}{task}{size}", build, inputs, padded)


def _text(model: Any) -> dict[str, Tensor]:
    return padded_text(model, (12,))


def padded_text(model: Any, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Make random token ids of the given lengths, padded to the longest.

    Parameters
    ----------
    model
        Its configuration names the pad id and the id that ends a sequence.
    lengths
        Tokens of each sequence.

    Returns
    -------
    dict of str to Tensor
        ``input_ids`` and ``attention_mask``, int64 ``[sequences, tokens]``.
    """
    ids = torch.randint(5, 100, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    last = torch.tensor(lengths)[:, None] - 1
    at = torch.arange(max(lengths))
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int) and end < 100:
        ids = ids.where(at != last, end)
    pad = getattr(model.config, "pad_token_id", None) or 0
    return {"input_ids": ids.where(at <= last, pad), "attention_mask": (at <= last).long()}


def _image(model: Any) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 64)
    return picture(size if isinstance(size, int) else size[0])


def _sound(_: nn.Module) -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 1600, generator=torch.Generator().manual_seed(0))}


def _spectrum(shape: tuple[int, int]) -> Any:
    return lambda _: torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
