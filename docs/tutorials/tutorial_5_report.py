r"""
Reading the report and deciding
===============================

``verifix correct`` ends with a proven gain, with a gain that is not proven, with no change, or with a refusal. This
page runs into all four, reads the report and the result file, and says what to do next.
"""

import html
import shlex
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.utils import shuffle
from torch.nn.functional import cross_entropy

from verifix.report import Result, read_result

folder = Path(tempfile.mkdtemp())  # everything below is written here

# %%
# Two networks: one that learned 30% wrong labels, as in :doc:`the first tutorial <tutorial_1_digits>`, and one that
# was trained on correct labels. Three files of verified samples: 200 digits, 100 of them, and the 200 with the
# labels of other digits, as happens when a column of a table is sorted alone.

(folder / "net.py").write_text("""
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
""")
names: dict = {}
exec((folder / "net.py").read_text(), names)
x, y = shuffle(*load_digits(return_X_y=True), random_state=0)
x = np.float32(x / 16)
generator = np.random.default_rng(0)
given = y[:1000].copy()
given[:300] = (given[:300] + generator.integers(1, 10, 300)) % 10
for file, labels in {"net.pt": given, "clean.pt": y[:1000]}.items():
    torch.manual_seed(0)
    model = names["build"]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(torch.from_numpy(x[:1000])), torch.from_numpy(labels)).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / file)

np.savez(folder / "verified.npz", x=x[1000:1200], y=y[1000:1200])
np.savez(folder / "few.npz", x=x[1050:1150], y=y[1050:1150])
np.savez(folder / "sorted.npz", x=x[1000:1200], y=np.sort(y[1000:1200]))


def terminal(line: str) -> None:
    """Run a command in that folder as in a terminal, and print its output."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(shlex.split(line), cwd=folder, check=False, text=True, **streams)
    print(done.stdout + f"exit code {done.returncode}")


COMMAND = "verifix correct --model py:net.py:build --verified-from unseen --drawn random --recipe verifix --no-progress"

# %%
# A proven gain
# -------------
#
# Without ``--test``, nested cross-fitting on the verified samples proves the gain: each fifth of them is predicted
# by a correction that was made from the other four.

terminal(
    f"{COMMAND} --checkpoint net.pt --verified verified.npz --out fixed.pt --report report.html --result result.json"
)

# %%
# The report is one file that needs no network. :doc:`/report` says what each section answers.


class Page:
    """A page of HTML, to be shown in a notebook."""

    def __init__(self, path: Path):
        self.text = path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self.text)}" title="The report" width="100%" height="600"></iframe>'


Page(folder / "report.html")

# %%
# ``result.json`` holds the same for programs.

result = read_result(folder / "result.json")
gain = result.proof.comparison.gain
print(f"{result.verdict}: {gain.estimate:+.1f} points, 95% interval {gain.low:+.1f} to {gain.high:+.1f}")

# %%
# **Decide:** the interval is above zero, so the corrected file can replace the original. Two more questions belong
# to this decision. Does any class lose? The gain is a mean, and a class may pay for the others:


def classes(result: Result) -> None:
    """Draw the accuracy of each class before and after."""
    rows = result.proof.comparison.per_class
    _, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for shift, name in ((-0.2, "before"), (0.2, "after")):
        axes.bar([row.label + shift for row in rows], [getattr(row, name) for row in rows], width=0.4, label=name)
    axes.set(xlabel="class", ylabel="percent right", xticks=range(len(rows)))
    axes.legend(loc="lower right")


classes(result)

# %%
# And are the samples of the proof like those that the model will meet? The proof holds for these. If classes are more
# or less frequent in use, ``--class-shares`` weighs them (:doc:`/proof`).
#
# A gain that is not proven
# -------------------------
#
# The same with 100 verified samples.

terminal(f"{COMMAND} --checkpoint net.pt --verified few.npz --out fixed-few.pt")

# %%
# No checkpoint is written, and the exit code is 3. The interval contains gains and losses.
#
# **Decide:** verify more samples; the line that begins with ``Next`` says about how many would decide, if the gain is
# what it seems to be, and names another recipe. Try that once, not one setting after the other until a proof succeeds:
# each further try raises the chance that it succeeds by luck. ``--force`` writes the file in any case; then nothing is
# proven.
#
# No change
# ---------
#
# The network that was trained on correct labels, with the 200 samples.

terminal(f"{COMMAND} --checkpoint clean.pt --verified verified.npz --out fixed-clean.pt")

# %%
# No strength clearly lowered the loss on held-out samples, so there is nothing to prove, and the exit code is 3.
#
# **Decide:** a model that has not learned wrong labels needs no correction. If you know that it has, try more than
# the paper's method: ``--recipe verifix`` is used here because it is fast, and the default tries more
# (:doc:`/stages`).
#
# Refused
# -------
#
# The samples whose labels are those of other digits.

terminal(f"{COMMAND} --checkpoint net.pt --verified sorted.npz --out fixed-sorted.pt")

# %%
# The exit code is 5: samples and model do not fit together. A model whose accuracy is that of guessing was not
# trained for these inputs or these labels, and a proof on them would be worth nothing. :doc:`/assumptions` lists
# what is checked.
#
# **Decide:** mend the samples. ``--no-check-inputs`` is for the rare model that really is near chance.
