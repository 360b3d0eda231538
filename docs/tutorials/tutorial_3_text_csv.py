r"""
A text classifier and a CSV
===========================

Somebody has a folder of transformers' ``save_pretrained`` and a spreadsheet of texts whose labels were verified, and
corrects the classifier on the command line. This page first makes the folder and the tables, so that it runs anywhere:
skip the first two sections if you have your own.
"""

import ast
import importlib.util
import itertools
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

from verifix.report import read_result

folder = Path(tempfile.mkdtemp())  # everything below is written here

# %%
# The texts
# ---------
#
# Docstrings from the source of three installed packages. Which package does a docstring come from? Names that would
# tell are left out. In the training table, half of the docstrings of scipy carry the label sklearn, as if somebody
# who labelled them had confused the two. The three tables share no text.

PACKAGES = ["matplotlib", "scipy", "sklearn"]
HIDDEN = {*PACKAGES, "plt", "scikit", "learn", "axes"}


def docstrings(package: str):
    """Yield the first 30 words of the docstrings of a package."""
    for path in sorted(Path(importlib.util.find_spec(package).origin).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())) if "test" not in str(path) else ():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and len(text := ast.get_docstring(node) or "") > 150:
                words = re.findall(r"[a-z]+", text.lower())
                yield " ".join([word for word in words if word not in HIDDEN][:30])


generator = np.random.default_rng(0)
texts = []
for package in PACKAGES:
    found = list(dict.fromkeys(itertools.islice(docstrings(package), 1000)))
    texts += [(text, package) for text in generator.permutation(found)[:700]]
table = pd.DataFrame(texts, columns=["text", "label"]).drop_duplicates("text")
table = table.sample(frac=1, random_state=0, ignore_index=True)

train, verified, test = table[:1200].copy(), table[1200:1500], table[1500:]
confused = (train.label == "scipy") & (generator.random(len(train)) < 0.5)
train.loc[confused, "label"] = "sklearn"
verified.to_csv(folder / "verified.csv", index=False)
test.to_csv(folder / "test.csv", index=False)
print(verified.head(3).to_string(max_colwidth=60))

# %%
# The classifier
# --------------
#
# A small BERT with a vocabulary of its own, trained on the table with the wrong labels.

core = Tokenizer(models.WordLevel(unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
core.train_from_iterator(
    train.text, trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["[PAD]", "[UNK]", "[CLS]"])
)
core.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", model_max_length=32
)

torch.manual_seed(0)
names = dict(enumerate(PACKAGES))
sizes = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 512}
config = BertConfig(
    vocab_size=2000,
    max_position_embeddings=32,
    id2label=names,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    **sizes,
)
model = AutoModelForSequenceClassification.from_config(config)

inputs = tokenizer(list(train.text), padding=True, truncation=True, return_tensors="pt")
labels = torch.tensor([PACKAGES.index(label) for label in train.label])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(6):
    for batch in torch.randperm(len(labels)).split(32):
        optimizer.zero_grad()
        cross_entropy(model(**{name: value[batch] for name, value in inputs.items()}).logits, labels[batch]).backward()
        optimizer.step()
model.eval()

with torch.no_grad():
    right = model(**inputs).logits.argmax(1) == labels
print(f"gives back {right.float().mean():.1%} of its training labels")
model.save_pretrained(folder / "my-bert")
tokenizer.save_pretrained(folder / "my-bert")

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
# The folder says how texts become inputs and what the classes are called, and the tables have the columns ``text``
# and ``label``: nothing else has to be given. ``--recipe`` keeps this page short: the default also fine-tunes,
# which takes longer. The proof rests on ``--test``.

terminal(
    "verifix correct --model hf:./my-bert --verified verified.csv --verified-from unseen --drawn random "
    "--test test.csv --recipe project,refit --out fixed-bert --report report.html --result result.json --no-progress"
)

# %%
# The gain is proven, and it has a price: the network answered sklearn too often before, and now misses some of these
# texts. Whether that is welcome is for you to decide; :doc:`tutorial_5_report` says more.

rows = read_result(folder / "result.json").proof.comparison.per_class
_, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for shift, name in ((-0.2, "before"), (0.2, "after")):
    axes.bar([row.label + shift for row in rows], [getattr(row, name) for row in rows], width=0.4, label=name)
axes.set(ylabel="percent of the test texts right", xticks=range(len(rows)), xticklabels=PACKAGES)
axes.legend(loc="lower left")

# %%
# The corrected folder
# --------------------
#
# ``fixed-bert`` is what ``my-bert`` was: a folder for ``from_pretrained``, with the tokenizer and all other files.

fixed = AutoModelForSequenceClassification.from_pretrained(folder / "fixed-bert")
texts = tokenizer(list(test.text), padding=True, truncation=True, return_tensors="pt")
truth = torch.tensor([PACKAGES.index(label) for label in test.label])
with torch.no_grad():
    for name, network in {"before": model, "after": fixed}.items():
        print(f"{name}: {(network(**texts).logits.argmax(1) == truth).float().mean():.1%} of the test texts")
print(sorted(path.name for path in (folder / "fixed-bert").iterdir()))
