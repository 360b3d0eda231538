"""A torchvision that was built for another torch, and other libraries that are there and broken: a real remedy."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from verifix import UsageError
from verifix.io import optional_imports
from verifix.io.data.preprocessing import prepare
from verifix.io.models import build_model
from verifix.io.optional_imports import library
from verifix.io.options import DataOptions

ERRORS = {
    "operators": RuntimeError("operator torchvision::nms does not exist"),
    "second import": AttributeError(
        "partially initialized module 'torchvision' from '/x' has no attribute 'extension' (most likely due to a "
        "circular import)"
    ),
    "cuda": RuntimeError(
        "Detected that PyTorch and torchvision were compiled with different CUDA major versions. PyTorch has CUDA "
        "Version=12.6 and torchvision has CUDA Version=13.0."
    ),
    "symbols": OSError("/x/torchvision/_C.so: undefined symbol: _ZN3c10"),
    "through transformers": ModuleNotFoundError(
        "Could not import module 'AutoImageProcessor'. operator torchvision::nms does not exist"
    ),
}

VERSIONS = {
    "cpu": ("2.13.0+cpu", "'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"),
    "cuda": ("2.6.0+cu124", "'torchvision==0.21.*' --index-url https://download.pytorch.org/whl/cu124"),
    "from PyPI": ("2.0.1", "'torchvision==0.15.*'"),
    "another major version": ("3.0.0", "'torchvision'"),
}


@pytest.fixture
def installed(monkeypatch):
    """Set what is installed, and what importing it raises."""

    def make(error, **versions):
        def fail(name):
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)
        monkeypatch.setattr(optional_imports, "_version", lambda package: versions.get(package, ""))

    return make


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("package", ["torchvision", "timm", "transformers"])
def test_torchvision_of_another_build_is_what_is_to_be_installed(error, package, installed):
    installed(error, torch="2.13.0+cpu", torchvision="0.29.2", timm="1.0.31")
    with pytest.raises(UsageError) as caught:
        library(package, package)
    told = str(caught.value)
    assert "torchvision 0.29.2 was built for another torch than 2.13.0+cpu" in told
    assert told.endswith(
        "pip install --force-reinstall --no-deps 'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"
    )
    assert "verifix[" not in told


@pytest.mark.parametrize(("torch", "wanted"), VERSIONS.values(), ids=VERSIONS)
def test_the_version_and_the_index_are_those_of_the_installed_torch(torch, wanted, installed):
    installed(ERRORS["operators"], torch=torch, torchvision="0.1")
    with pytest.raises(UsageError) as caught:
        library("timm", "timm")
    assert str(caught.value).endswith(f"pip install --force-reinstall --no-deps {wanted}")


OTHERS = {
    "not there": (ModuleNotFoundError("No module named 'timm'"), "", "install it with: pip install 'verifix[vision]'"),
    "a part is missing": (
        ModuleNotFoundError("No module named 'huggingface_hub'"), "1.0",
        "install it with: pip install 'verifix[vision]'",
    ),
    "there and broken": (
        AttributeError("module 'numpy' has no attribute 'float'"), "1.0",
        "version 1.0 of it is installed; reinstall it with: pip install --force-reinstall timm",
    ),
    "a library of the system": (
        OSError("libGL.so.1: cannot open shared object file"), "1.0",
        "version 1.0 of it is installed; reinstall it with: pip install --force-reinstall timm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "version", "wanted"), OTHERS.values(), ids=OTHERS)
def test_other_errors_have_remedies_of_their_own(error, version, wanted, installed):
    installed(error, timm=version, torch="2.13.0+cpu")
    with pytest.raises(UsageError) as caught:
        library("timm", "timm")
    assert str(caught.value) == f"timm cannot be imported ({type(error).__name__}: {error}); {wanted}"


def test_models_and_processors_of_transformers_name_it_too(vision, tmp_path, monkeypatch, installed):
    import transformers

    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)

    def fail(*_, **__):
        raise ERRORS["through transformers"]

    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoModelForImageClassification, "from_config", fail)
        with pytest.raises(UsageError, match=r"can build .*; torchvision .* was built for another torch than"):
            build_model(f"hf:{tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoImageProcessor, "from_pretrained", fail)
        with pytest.raises(UsageError, match=r"cannot be read .*; torchvision .* was built for another torch than"):
            prepare(model, f"hf:{tmp_path}", DataOptions())


def test_this_is_what_a_real_one_says():
    code = "import torchvision"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 0:
        pytest.skip("torchvision fits the torch that is installed here")
    for model in ("timm:resnet18", "torchvision:resnet18"):
        code = f"from verifix.io.models import build_model; build_model({model!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
        assert "was built for another torch than" in done.stderr.splitlines()[-1]
