r"""
A timm checkpoint and image folders
===================================

An engineer has a checkpoint of a timm model, a folder of verified images and a folder of test images, and corrects the
checkpoint on the command line. This page first makes these three, so that it runs anywhere: skip the first two sections
if you have your own.
"""

import shlex
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.utils import shuffle
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

folder = Path(tempfile.mkdtemp())  # everything below is written here

# %%
# The images
# ----------
#
# Handwritten digits as PNG files, one subfolder per class, as ``torchvision.datasets.ImageFolder`` and timm read
# them. Of the training images, 30% are in the folder of another digit. The three folders share no image.

pixels, digits = shuffle(*load_digits(return_X_y=True), random_state=0)
pixels = np.uint8(pixels.reshape(-1, 8, 8) / 16 * 255)
generator = np.random.default_rng(0)
wrong = generator.random(1000) < 0.3
given = digits.copy()
given[:1000][wrong] = (digits[:1000][wrong] + generator.integers(1, 10, wrong.sum())) % 10

for name, part in {"train": range(1000), "verified": range(1000, 1200), "test": range(1200, 1797)}.items():
    for i in part:
        path = folder / name / str(given[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).resize((32, 32)).convert("RGB").save(path)

# %%
# The checkpoint
# --------------
#
# ``test_resnet`` is the smallest ResNet of timm. It is trained from scratch until it has learned most of the wrong
# labels.

torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=10)
config = timm.data.resolve_data_config({"input_size": (3, 32, 32), "crop_pct": 1.0}, model=model)
images = timm.data.create_dataset("", root=str(folder / "train"))
images.transform = timm.data.create_transform(**config)

inputs, labels = next(iter(DataLoader(images, batch_size=len(images))))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(15):
    for batch in torch.randperm(len(labels)).split(50):
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
model.eval()

with torch.no_grad():
    print(f"gives back {(model(inputs).argmax(1) == labels).float().mean():.1%} of its training labels")
save_file(model.state_dict(), folder / "net.safetensors")


# %%
# The correction
# --------------
#
# In a notebook, write ``!verifix correct …``; in a terminal, leave the function out.


def terminal(line: str) -> None:
    """Run a command in that folder as in a terminal, and print its output."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(shlex.split(line), cwd=folder, check=False, text=True, **streams)
    print(done.stdout + f"exit code {done.returncode}")


# %%
# The images have to become inputs as they did in training, so the two settings that differ from timm's data config
# are repeated here: ``--size`` and ``--crop-pct``. ``--recipe`` keeps this page short: the default also fine-tunes,
# which takes longer. The proof rests on ``--test``: 597 images that neither the training nor the correction has
# used.

terminal(
    "verifix correct --model timm:test_resnet --num-classes 10 --checkpoint net.safetensors --size 32 --crop-pct 1 "
    "--verified verified --verified-from unseen --drawn random --test test --recipe project,refit "
    "--out fixed.safetensors --report report.html --no-progress"
)

# %%
# The exit code is 0 because the gain is proven; without a proven gain it is 3, and no checkpoint is written.
#
# The corrected file has the same keys, shapes and types as the original: load it as you loaded that one.

fixed = timm.create_model("test_resnet", num_classes=10, checkpoint_path=folder / "fixed.safetensors").eval()
images = timm.data.create_dataset("", root=str(folder / "test"), transform=timm.data.create_transform(**config))
inputs, labels = next(iter(DataLoader(images, batch_size=len(images))))
with torch.no_grad():
    before, after = model(inputs).argmax(1), fixed(inputs).argmax(1)
for name, answers in {"before": before, "after": after}.items():
    print(f"{name}: {(answers == labels).float().mean():.1%} of the test images are right")

figure, grid = plt.subplots(2, 6, figsize=(8, 3.2), layout="constrained")
for axes, i in zip(grid.flat, ((before != labels) & (after == labels)).nonzero().flatten(), strict=False):
    axes.imshow(inputs[i, 0], cmap="gray")
    axes.set_title(f"{before[i]} → {after[i]}")
for axes in grid.flat:
    axes.set_axis_off()

# %%
# Back to the original
# --------------------
#
# ``verifix undo`` restores the original file to the byte from the two files that the correction wrote.

terminal("verifix undo fixed.safetensors --out net-again.safetensors")
assert (folder / "net.safetensors").read_bytes() == (folder / "net-again.safetensors").read_bytes()
