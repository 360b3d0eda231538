"""Pairs of texts, from every container, as the tokenizer takes them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from tests import tiny
from tests.io.test_data import labels_of
from verifix import DataError, UsageError
from verifix.cli.main import main
from verifix.io.data.open import open_data
from verifix.io.data.preparation import Preparation
from verifix.io.data.preprocessing import prepare
from verifix.io.data.text import PAIRS
from verifix.io.models import build_model
from verifix.io.options import DataOptions
from verifix.model.samples import read_samples

FIRST, SECOND = ["good film", "the plot is dull", "very bad"], ["fine", "bad", "the film is great"]
LABELS = [1, 0, 1]


def pairing_tokenizer(longest: int = 16):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    core = tiny.tokenizer(longest).backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=longest, model_input_names=names, **special)


@pytest.fixture(scope="module")
def folder(vision, tmp_path_factory):
    folder = tiny.text_model(tmp_path_factory.mktemp("pairs"))
    pairing_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def preparation(folder) -> Preparation:
    return prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions())


def table(first="premise", second="hypothesis", **others) -> pd.DataFrame:
    return pd.DataFrame({second: SECOND, first: FIRST, "label": LABELS} | others)


def saved(frame, path):
    import datasets

    datasets.Dataset.from_pandas(frame).save_to_disk(path)


WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "saved": saved,
}


def written(form, frame, tmp_path):
    WRITERS[form](frame, tmp_path / f"t.{form}")
    return tmp_path / f"t.{form}"


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    "given", [None, "premise,hypothesis", ["premise", "hypothesis"]], ids=["found", "text", "list"]
)
def test_pairs_become_what_the_tokenizer_makes_of_them(form, given, tmp_path, preparation, capsys):
    path = written(form, table(), tmp_path)
    source = open_data(path, DataOptions(text_column=given), preparation)
    assert labels_of(source) == LABELS
    batch = next(read_samples(source).batches(range(3), 3)).inputs
    wanted = pairing_tokenizer()(FIRST, SECOND, padding=True, return_tensors="pt")
    assert batch.keys() == wanted.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(torch.equal(batch[name], wanted[name]) for name in batch)
    assert wanted["token_type_ids"].any()
    told = "premise and hypothesis are read as pairs of texts; --text-column names others" in capsys.readouterr().err
    assert told == (given is None)
    assert read_samples(source).text(1) == "the plot is dull | bad"


@pytest.mark.parametrize("pair", PAIRS, ids=map("-".join, PAIRS))
def test_common_names_of_pairs_are_known(pair, tmp_path, preparation):
    source = open_data(written("jsonl", table(*pair), tmp_path), DataOptions(), preparation)
    assert [source.dataset.text(i) for i in range(3)] == [f"{a} | {b}" for a, b in zip(FIRST, SECOND, strict=True)]


@pytest.mark.parametrize("form", WRITERS)
def test_other_names_are_given_and_order_counts(form, tmp_path, preparation):
    path = written(form, table("left", "right"), tmp_path)
    with pytest.raises(DataError, match=r"or two of texts with --text-column a,b"):
        open_data(path, DataOptions(), preparation)
    source = open_data(path, DataOptions(text_column="right, left"), preparation)
    assert source.dataset.text(0) == "fine | good film"


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("beside", ["text", "question1 and question2"])
def test_what_may_be_a_pair_and_more_is_refused_until_it_is_named(form, beside, tmp_path, preparation):
    others = {"text": FIRST} if beside == "text" else {"question1": FIRST, "question2": SECOND}
    path = written(form, table(**others), tmp_path)
    first = next(iter(others))
    with pytest.raises(
        DataError, match=rf"premise and hypothesis, which may be a pair of texts, and {first}; name what"
    ):
        open_data(path, DataOptions(), preparation)
    assert open_data(path, DataOptions(text_column="premise"), preparation).dataset.text(0) == "good film"
    both = open_data(path, DataOptions(text_column="hypothesis,premise"), preparation)
    assert both.dataset.text(0) == "fine | good film"


def test_a_column_with_a_comma_in_its_name_is_one_column(tmp_path, preparation):
    path = written("jsonl", pd.DataFrame({"title, body": FIRST, "label": LABELS}), tmp_path)
    assert open_data(path, DataOptions(text_column="title, body"), preparation).dataset.text(0) == "good film"


WRONG = {
    "three": ("premise,hypothesis,label", UsageError, "names 3 columns; a sample is one text, or a pair of two"),
    "not there": ("premise,other", DataError, "has no column 'other' .it has hypothesis, premise, label.; name the ri"),
}


@pytest.mark.parametrize(("given", "error", "told"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("form", WRITERS)
def test_columns_that_are_no_pair_are_refused(form, given, error, told, tmp_path, preparation):
    with pytest.raises(error, match=told):
        open_data(written(form, table(), tmp_path), DataOptions(text_column=given), preparation)


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_blank_in_either_column_is_named(blank, tmp_path, preparation):
    frame = table()
    frame["hypothesis"] = ["fine", blank, "bad"]
    with pytest.raises(DataError, match=r"line 2 of .* has the text .*; give it words, or leave the sample out"):
        open_data(written("jsonl", frame, tmp_path), DataOptions(), preparation)


def test_pairs_are_cut_to_the_longest_and_a_length_for_nothing_is_refused(folder, tmp_path):
    path = written("jsonl", table(), tmp_path)
    for length in (6, 3):
        found = prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions(max_length=length))
        source = open_data(path, DataOptions(), found)
        if length == 3:
            with pytest.raises(UsageError, match="max_length is 3, and special tokens take 3 of them"):
                source.dataset[0]
            continue
        wanted = pairing_tokenizer()(FIRST, SECOND, truncation=True, max_length=6)["input_ids"]
        assert [source.dataset[i]["input_ids"].tolist() for i in range(3)] == wanted


def test_the_command_line_scores_pairs_as_transformers_does(folder, tmp_path, capsys):
    from transformers import BertForSequenceClassification

    path = written("csv", table("sentence1", "sentence2"), tmp_path)
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(**pairing_tokenizer()(FIRST, SECOND, padding=True, return_tensors="pt")).logits
    for flags in ([], ["--text-column", "sentence1,sentence2"]):
        assert main(["score", "--model", f"hf:{folder}", "--data", str(path), "--json", *flags]) == 0
        found = json.loads(capsys.readouterr().out)
        wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
        assert found["cross_entropy"] == pytest.approx(float(wanted), rel=1e-5)
