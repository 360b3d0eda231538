r"""
Digits in a minute
==================

A network learned from wrong labels. 200 samples with verified labels correct it, and 597 samples that nothing else has
used show whether that helped.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.utils import shuffle
from torch import nn

import verifix

# %%
# The data, in three parts
# ------------------------
#
# 1,797 handwritten digits are split into three parts that share no sample: 1,000 train the network, 200 are verified,
# and 597 measure the result. 300 of the 1,000 training labels are made wrong.

torch.manual_seed(0)
inputs, labels = map(torch.from_numpy, shuffle(*load_digits(return_X_y=True), random_state=0))
inputs = inputs.float() / 16
given = labels[:1000].clone()
given[:300] = (given[:300] + torch.randint(1, 10, (300,))) % 10

training = inputs[:1000], given
verified = inputs[1000:1200], labels[1000:1200]
test_inputs, test_labels = inputs[1200:], labels[1200:]

# %%
# A network that learned the wrong labels
# ---------------------------------------

model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(training[0]), training[1]).backward()
    optimizer.step()
model.eval()

with torch.no_grad():
    fitted = (model(training[0]).argmax(1) == given).float().mean()
print(f"The network gives back {fitted:.1%} of its training labels, right and wrong ones alike.")

# %%
# The correction
# --------------
#
# One call. ``verified_from="unseen"`` states that the network was not trained on the verified samples, and
# ``drawn="random"`` that they are a random sample. :func:`verifix.correct` works on a copy: ``model`` stays as it is.

correction = verifix.correct(model, verified, verified_from="unseen", drawn="random", progress=False)
print(correction.reason)
print("Taken:", correction.kept)

# %%
# The paths that were tried, by their cross-fitted loss. The path with the lowest loss is compared with no change.

tried = sorted((path for path in correction.paths if path.point), key=lambda path: -path.point.loss)
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.barh([path.name for path in tried], [path.point.loss for path in tried])
axes.set_xlabel("cross-fitted loss on the verified samples, nats")

# %%
# Is it better?
# -------------
#
# The scores above chose the correction, so they overstate its gain. The 597 test digits chose nothing.
# :func:`verifix.compare` compares both models on them, sample by sample, and states how certain the gain is.

with torch.no_grad():
    before, after = model(test_inputs), correction.model(test_inputs)
comparison = verifix.compare(before, after, test_labels)
print(comparison.summary())

# %%
# If there are no further samples, ``correction.prove()`` estimates the gain within the verified samples, by nested
# cross-fitting: it takes two to four times as long as the correction. :doc:`/proof` explains both.
#
# Twelve test digits that the network got wrong and that the correction sets right:

was_wrong = before.argmax(1) != test_labels
right_now = after.argmax(1) == test_labels
figure, grid = plt.subplots(2, 6, figsize=(8, 3.2), layout="constrained")
for axes, i in zip(grid.flat, (was_wrong & right_now).nonzero().flatten(), strict=False):
    axes.imshow(test_inputs[i].reshape(8, 8), cmap="gray_r")
    axes.set_title(f"{before[i].argmax()} → {after[i].argmax()}")
for axes in grid.flat:
    axes.set_axis_off()

# %%
# Use it
# ------
#
# ``correction.model`` is the corrected network. The correction itself can be saved: it holds the changed weights
# before and after, so that :meth:`~verifix.Correction.apply_` and :meth:`~verifix.Correction.undo_` can change a
# model in place and change it back.

correction.apply_(model)
with torch.no_grad():
    assert torch.equal(model(test_inputs), after)
correction.undo_(model)
with torch.no_grad():
    assert torch.equal(model(test_inputs), before)
