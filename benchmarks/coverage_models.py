"""Models of torchvision and timm whose coverage is surveyed, with random weights.

A family of timm is one of its modules. Its smallest variant stands for it, and variants that multiply in another way
stand beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """One model to survey.

    Attributes
    ----------
    library, family, name
        What it is called.
    build
        Builds it, with random weights.
    inputs
        Makes a batch for the built model.
    padded
        Whether batches are token ids, which come padded.
    """

    library: str
    family: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Any]
    padded: bool = False


def declare_missing_operators() -> torch.library.Library:
    """Let torchvision and timm be imported beside a CPU build of torch, for which compiled operators are missing.

    Returns
    -------
    torch.library.Library
        To be kept for as long as they are used.
    """
    library = torch.library.Library("torchvision", "DEF")
    if not torch.cuda.is_available():
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def picture(size: int) -> Tensor:
    """Make one random image, ``[1, 3, size, size]``."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


TORCHVISION = {
    "alexnet": "alexnet",
    "vgg": "vgg11_bn",
    "resnet": "resnet18",
    "resnext": "resnext50_32x4d",
    "wide_resnet": "wide_resnet50_2",
    "squeezenet": "squeezenet1_1",
    "densenet": "densenet121",
    "inception": "inception_v3",
    "googlenet": "googlenet",
    "shufflenet": "shufflenet_v2_x0_5",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3_small",
    "mnasnet": "mnasnet0_5",
    "efficientnet": "efficientnet_b0",
    "efficientnet_v2": "efficientnet_v2_s",
    "regnet": "regnet_y_400mf",
    "convnext": "convnext_tiny",
    "vit": "vit_b_16",
    "swin": "swin_t",
    "swin_v2": "swin_v2_t",
    "maxvit": "maxvit_t",
}


def of_torchvision() -> Iterator[Case]:
    """Name the models of torchvision."""
    for family, name in TORCHVISION.items():

        def build(name: str = name) -> nn.Module:
            import torchvision

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # two models announce another initialisation of theirs
                model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
            return model

        def inputs(_: nn.Module, family: str = family) -> Tensor:
            return picture({"inception": 299, "swin_v2": 256}.get(family, 224))

        yield Case("torchvision", family, name, build, inputs)


TIMM: Mapping[str, str] = {
    "beit": "beit_base_patch16_224 beitv2_base_patch16_224",
    "byoanet": "halonet_h1 botnet26t_256 eca_botnext26ts_256 haloregnetz_b lambda_resnet26t sebotnet33ts_256",
    "byobnet": (
        "gernet_s bat_resnext26ts eca_resnext26ts gcresnext26ts mobileone_s1 regnetz_b16 repvgg_a0 resnext26ts "
        "seresnext26ts"
    ),
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms convnextv2_atto",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s cspresnext50 sedarknet21",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224 deit3_small_patch16_224",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": (
        "mnasnet_small efficientnet_lite0 tf_efficientnet_cc_b0_4e efficientnetv2_rw_t gc_efficientnetv2_rw_t mixnet_s "
        "mobilenetv2_035 semnasnet_050 tinynet_e"
    ),
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050 ghostnetv3_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "coatnet_pico_rw_224 coatnext_nano_rw_224 maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256",
    "metaformer": "poolformerv2_s12 caformer_s18 convformer_s18",
    "mlp_mixer": "gmlp_ti16_224 gmixer_12_224 mixer_s16_224 resmlp_12_224",
    "mobilenetv3": "mobilenetv3_small_050 fbnetv3_b lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0 eca_nfnet_l0 dm_nfnet_f0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002 regnety_002 regnetv_040 regnetz_005",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50 res2net50_14w_8s",
    "resnest": "resnest14d",
    "resnet": "resnet10t ecaresnext26t_32x4d resnetaa34d resnetblur18 resnetrs50 resnext50_32x4d seresnet18",
    "resnetv2": "resnetv2_18 resnetv2_50x1_bit",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small twins_pcpvt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": (
        "vit_tiny_patch16_224 vit_base_patch16_224 flexivit_small beit3_base_patch16_224 vit_base_patch16_siglip_224 "
        "vit_small_patch14_reg4_dinov2"
    ),
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224 vit_relpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw vovnet39a",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""Per family of timm, its smallest variant, then those that multiply in another way. Test models do not count."""

SMALLER: Mapping[str, dict[str, Any]] = {
    "deepseek_vit_412m": {"depth": 4},
    "vit_small_patch14_reg4_dinov2": {"img_size": 224},
}
"""Arguments that make a large model smaller, or take smaller images."""

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("csatv2", "deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m"), 224),
    **dict.fromkeys(("nasnetalarge", "pnasnet5large"), 224),
    "sam2_hiera_tiny": 224,
    "vit_small_patch14_reg4_dinov2": 224,
}
"""Image sizes for models that take any and whose own is large."""


def of_timm() -> Iterator[Case]:
    """Name the models of timm."""
    for family, names in TIMM.items():
        for name in names.split():

            def build(name: str = name) -> nn.Module:
                import timm

                model: nn.Module = timm.create_model(
                    name, pretrained=False, num_classes=CLASSES, **SMALLER.get(name, {})
                )
                return model

            def inputs(model: nn.Module, name: str = name) -> Tensor:
                configured: Any = model.default_cfg
                return picture(SIZES.get(name) or int(configured["input_size"][-1]))

            yield Case("timm", family, name, build, inputs)


def unsurveyed_families() -> list[str]:
    """Return the modules of the installed timm that no model above stands for."""
    import timm

    return sorted(set(timm.list_modules()) - set(TIMM))
