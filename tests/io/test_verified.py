"""Records of decisions: what they say together, and the samples that they give labels to."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.record_cases import header, record, write
from tests.tiny import NAMES, image_folder
from verifix.errors import DataError, UsageError
from verifix.io.data.open import open_data, reopen
from verifix.io.data.records import header_of
from verifix.io.data.verified import read_decisions, weights_of
from verifix.io.options import DataOptions
from verifix.model.sources import ask_dataset

FILES = sorted(f"{NAMES[i % 3]}/{i}.png" for i in range(12))
LABELS = [NAMES.index(name.split("/")[0]) for name in FILES]


@pytest.fixture
def photos(tmp_path):
    return image_folder(tmp_path / "photos", 12)


def head(photos, **more):
    return header(photos, FILES, LABELS, NAMES, **more)


def opened(path, **options):
    return open_data(path, DataOptions(**{"classes": NAMES} | options)).dataset


def given(number: int) -> str:
    return NAMES[LABELS[number]]


def other(number: int) -> str:
    return NAMES[(LABELS[number] + 1) % 3]


def test_verified_labels_take_the_place_of_given_ones(photos, tmp_path):
    lines = [record(7, given(7), other(7)), record(2, given(2)), record(5, given(5), status="ok")]
    found = opened(write(tmp_path / "v.jsonl", head(photos), *lines))
    assert list(found.ids) == [2, 5, 7]
    assert list(found.labels) == [LABELS[2], LABELS[5], (LABELS[7] + 1) % 3]
    pool = open_data(photos, DataOptions(classes=NAMES)).dataset
    for place, number in enumerate(found.ids):
        x, label = found[place]
        assert np.array_equal(x, pool[number][0])
        assert label == found.labels[place]
        assert found.file(place) == str(photos / FILES[number])
        assert found.fingerprint(place) == pool.fingerprint(number)
    assert ask_dataset(found, 0, "weight") is None


def test_the_last_record_of_each_person_counts_and_disagreements_are_left_out(photos, tmp_path, capsys):
    lines = [
        record(1, given(1), other(1)),
        record(1, given(1), given(1)),  # changed their mind
        record(2, given(2), other(2)),
        record(2, given(2), given(2), annotator="ben"),  # disagree
        record(3, given(3), other(3)),
        record(3, given(3), status="undo"),  # taken back: nothing is left
        record(4, given(4), other(4)),
        record(4, given(4), given(4)),
        record(4, given(4), status="undo"),  # the second is taken back
        record(5, given(5), status="unsure"),
        record(5, given(5), other(5), annotator="ben"),  # one is sure
        record(6, given(6), status="skip"),
        record(8, given(8), status="undo"),  # nothing to take back
        record(9, given(9), other(9)),
        record(9, given(9), given(9), annotator="ben"),
        record(9, given(9), other(9), annotator="ben"),  # resolved
    ]
    path = write(tmp_path / "v.jsonl", head(photos), *lines)
    decisions = read_decisions(path)
    assert decisions.labels == {1: given(1), 4: other(4), 5: other(5), 9: other(9)}
    assert decisions.left_out == {2: "disagreement", 6: "skip"}
    assert list(opened(path).ids) == [1, 4, 5, 9]
    assert "2 samples are left out: 1 disagreement, 1 skip" in capsys.readouterr().err


def test_a_third_opinion_does_not_hide_a_disagreement(photos, tmp_path):
    lines = [record(2, given(2), name, annotator=who) for who, name in
             (("ada", given(2)), ("ben", other(2)), ("cyd", given(2)), ("dan", other(2)))]  # fmt: skip
    decisions = read_decisions(write(tmp_path / "v.jsonl", head(photos), *lines))
    assert (decisions.labels, decisions.left_out) == ({}, {2: "disagreement"})


def test_only_the_random_part_has_weights_and_only_as_far_as_it_was_verified_in_turn(photos, tmp_path, capsys):
    random = {"random": [6, 3, 8, 1], "probability": 0.25}
    done = [record(i, given(i)) for i in (6, 8, 10)] + [record(3, given(3), status="unsure")]
    decisions = read_decisions(write(tmp_path / "a.jsonl", head(photos, **random), *done))
    assert weights_of(decisions, [6, 8, 10]) == [4.0, 4.0, 0.0]
    decisions = read_decisions(write(tmp_path / "b.jsonl", head(photos, **random), *done[:3]))
    assert weights_of(decisions, [6, 8, 10]) == [4.0, 0.0, 0.0]  # 3 was drawn before 8, and is not done
    opened(tmp_path / "b.jsonl")
    err = capsys.readouterr().err
    assert "1 samples of the random part were verified before others that were drawn earlier" in err
    assert "verify 3 more in their order" in err
    found = opened(tmp_path / "a.jsonl")
    assert [ask_dataset(found, i, "weight") for i in range(3)] == [4.0, 4.0, 0.0]
    assert "1 of 3 random samples have no agreed label" in capsys.readouterr().err


def test_earlier_rounds_are_read_with_the_last_one(photos, tmp_path):
    first = write(tmp_path / "1.jsonl", head(photos), record(1, given(1), other(1)), record(2, given(2)))
    second = head(photos, earlier=[str(first)], random=[1, 4], probability=1 / 6)
    path = write(tmp_path / "2.jsonl", second, record(4, given(4)), record(2, given(2), other(2)))
    decisions = read_decisions(path)
    assert decisions.labels == {1: other(1), 2: other(2), 4: given(4)}
    assert decisions.counted == {1, 4}
    write(first, head(photos, fingerprint="0" * 64), record(1, given(1)))
    with pytest.raises(DataError, match="other file names or labels than that of"):
        read_decisions(path)
    first.unlink()
    with pytest.raises(UsageError, match=r"1.jsonl does not exist"):
        read_decisions(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (record(1, "red", "pink"), "the label 'pink', which is not among the classes"),
        (record(1, None, None, status="ok"), "the status 'ok' but no label"),
        (record(1, "red", None, status="relabel"), "'relabel' but no verified label"),
        (record(1, "red", "blue", status="ok"), "the given label 'red' and the verified label 'blue'"),
        (record(12, "red"), "has the id 12"),
        (record(1, "red", status="fine"), "line 2 of .* is not a valid record"),
        ({"id": 1, "status": "ok"}, "missing required field `annotator`"),
    ],
)
def test_records_that_contradict_themselves_are_refused(photos, tmp_path, line, told):
    with pytest.raises(DataError, match=told) as caught:
        opened(write(tmp_path / "v.jsonl", head(photos), line))
    assert "\n" not in str(caught.value)


def test_another_data_set_is_refused_and_a_moved_one_is_found(photos, tmp_path):
    path = write(tmp_path / "v.jsonl", head(photos), record(1, given(1)))
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="photos does not exist"):
        opened(path)
    assert list(opened(path, pool=str(moved)).ids) == [1]
    victim = moved / FILES[0]
    victim.rename(victim.with_name("x.png"))
    with pytest.raises(DataError, match="other file names or labels"):
        opened(path, pool=str(moved))
    victim.with_name("x.png").unlink()
    with pytest.raises(DataError, match=r"12 samples, but .* has 11"):
        opened(path, pool=str(moved))
    with pytest.raises(UsageError, match="is a file of records itself"):
        opened(path, pool=str(path))


def test_labels_that_have_changed_are_noticed(photos, tmp_path):
    path = write(tmp_path / "v.jsonl", head(photos), record(1, given(1)))
    shutil.move(photos / "red" / "0.png", photos / "green" / "0.png")
    with pytest.raises(DataError, match="other file names or labels"):
        opened(path)


def test_names_are_looked_up_in_the_models_order(photos, tmp_path):
    path = write(tmp_path / "v.jsonl", head(photos), record(1, given(1)), record(2, given(2), other(2)))
    found = opened(path, classes=NAMES[::-1])
    assert [NAMES[::-1][label] for label in found.labels] == [given(1), other(2)]
    assert [NAMES[label] for label in opened(path, classes=None).labels] == [given(1), other(2)]


def test_a_set_with_class_numbers(tmp_path):
    labels = np.array([0, 2, 1, 2])
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), y=labels)
    first = header(tmp_path / "d.npz", [None] * 4, labels.tolist(), None)
    path = write(tmp_path / "v.jsonl", first, record(1, "2", "0"), record(3, "2"))
    found = open_data(path, DataOptions(classes=["2", "1", "0"])).dataset  # names that are no numbers here
    assert list(found.labels) == [0, 2]
    assert len(found[0]) == 2
    assert list(open_data(path, DataOptions()).dataset.labels) == [0, 2]


def test_a_file_without_labels_or_a_queue_is_refused(photos, tmp_path):
    path = write(tmp_path / "v.jsonl", head(photos), record(1, given(1), status="skip"))
    with pytest.raises(DataError, match="no sample with a verified label"):
        opened(path)
    with pytest.raises(UsageError, match="still to be verified"):
        opened(write(tmp_path / "q.jsonl", head(photos, format="verifix-queue-1")))


def test_samples_are_shown_without_a_model(photos, tmp_path):
    path = write(tmp_path / "v.jsonl", head(photos), record(1, given(1)))
    found = reopen(header_of(path), str(path)).dataset
    assert (len(found), list(found.labels)) == (12, LABELS)
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"film {i}", "label": "ab"[i % 2]}) + "\n" for i in range(3))
    )
    first = header(tmp_path / "t.jsonl", [None] * 3, [0, 1, 0], ["a", "b"], options={"texts": True})
    found = reopen(header_of(write(path, first)), str(path)).dataset
    assert [found.text(i) for i in range(3)] == ["film 0", "film 1", "film 2"]
