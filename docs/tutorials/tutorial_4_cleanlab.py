r"""
From cleanlab's ranking to a corrected model
============================================

cleanlab ranks samples whose labels look wrong. Here somebody looks at the first of them, and at a few random ones; both
correct the model, and samples that were kept apart prove the gain.
"""

import json
import shlex
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from cleanlab.filter import find_label_issues
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import shuffle
from torch.nn.functional import cross_entropy

folder = Path(tempfile.mkdtemp())  # everything below is written here

# %%
# A network, and a pool that it has not seen
# ------------------------------------------
#
# 1,000 digits train the network, 500 more are the pool, and 297 are the test. Of the labels of the first two, 30% are
# wrong. The pool was labelled like the training data, but was kept out of the training: a network that has learned
# wrong labels by heart agrees with them, so it cannot say which of its training labels are wrong.

(folder / "net.py").write_text("""
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
""")
names: dict = {}
exec((folder / "net.py").read_text(), names)
torch.manual_seed(0)
model = names["build"]()

pixels, truth = shuffle(*load_digits(return_X_y=True), random_state=0)
pixels = np.uint8(pixels.reshape(-1, 8, 8) / 16 * 255)
generator = np.random.default_rng(0)
wrong = generator.random(1500) < 0.3
given = truth.copy()
given[:1500][wrong] = (truth[:1500][wrong] + generator.integers(1, 10, wrong.sum())) % 10

for name, part in {"pool": range(1000, 1500), "test": range(1500, 1797)}.items():
    for i in part:
        path = folder / name / str(given[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path)

inputs = torch.from_numpy(pixels[:, None]) / 255
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(model(inputs[:1000]), torch.from_numpy(given[:1000])).backward()
    optimizer.step()
torch.save(model.eval().state_dict(), folder / "net.pt")

# %%
# The ranking
# -----------
#
# cleanlab gets the given labels of the pool and the network's probabilities. The order is that of the folder
# ``pool`` as torchvision and verifix read it: by class, then by file name.

files = sorted((folder / "pool").glob("*/*.png"), key=lambda path: (path.parent.name, path.name))
rows = [int(path.stem) for path in files]
with torch.no_grad():
    probabilities = model(inputs[rows]).softmax(1).numpy()
issues = find_label_issues(given[rows], probabilities, return_indices_ranked_by="self_confidence")
np.save(folder / "issues.npy", issues)

is_wrong = (given != truth)[rows]
print(f"{len(issues)} issues; of the first 100 labels {is_wrong[issues[:100]].mean():.0%} are wrong")
print(f"of all labels of the pool {is_wrong.mean():.0%} are wrong")

# %%
# Whether the ranking is any good can be told here because the truth is known; in practice it shows when somebody
# looks.

hits = np.cumsum(is_wrong[issues])
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(range(1, len(issues) + 1), hits, label="cleanlab's ranking")
axes.plot([0, len(issues)], [0, len(issues) * is_wrong.mean()], "--", color="gray", label="random order")
axes.set(xlabel="samples looked at", ylabel="wrong labels found")
axes.legend()


# %%
# A queue to look at
# ------------------
#
# :doc:`verifix import </exchange>` turns the ranking into a queue, the most suspicious label first. In a notebook,
# write ``!verifix import …``; in a terminal, leave the function out.


def terminal(line: str) -> None:
    """Run a command in that folder as in a terminal, and print its output."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(shlex.split(line), cwd=folder, check=False, text=True, **streams)
    print(done.stdout + f"exit code {done.returncode}")


terminal("verifix import issues.npy --format cleanlab --data pool --in-chans 1 --out queue.jsonl")

# %%
# ``verifix review queue.jsonl`` opens a page on which a person looks at these samples: see :doc:`/tutorial`. Here
# the truth takes the place of the person, who looks at the first 100 of the queue and at 100 random samples of the
# rest. It is written as a table, as any labelling tool writes one.

queue = [json.loads(line) for line in (folder / "queue.jsonl").read_text().splitlines()[1:]]
looked = [entry["id"] for entry in queue[:100]]
looked += generator.choice([i for i in range(len(rows)) if i not in looked], 100, replace=False).tolist()
decisions = pd.DataFrame(
    {"file_name": [str(files[i].relative_to(folder)) for i in looked], "verified_label": truth[rows][looked]}
)
decisions["status"] = np.where(is_wrong[looked], "relabel", "ok")
decisions.to_csv(folder / "decisions.csv", index=False)
print(decisions.status.value_counts().to_string())

# %%
# Correct, and prove it on the test
# ---------------------------------
#
# The 200 samples are no random sample: suspects are over-represented. ``--drawn suspects`` says so, and verifix then
# refuses to estimate a gain from them. They correct all the same, and ``--test`` proves the gain.

COMMAND = (
    "verifix correct --model py:net.py:build --checkpoint net.pt --in-chans 1 --verified decisions.csv "
    "--verified-from unseen --drawn suspects --recipe project,refit --out fixed.pt --no-progress"
)
terminal(COMMAND)

# %%
terminal(f"{COMMAND} --test test --report report.html")
