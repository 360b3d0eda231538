from __future__ import annotations

import json
from dataclasses import replace

import pytest

from verifix.errors import DataError, OutputError, UsageError
from verifix.io.data.records import VERIFIED, Header, Record, read_lines
from verifix.selection.queue import Entry, Queue, order_of, read_queue, write_queue

HEADER = Header(
    data="/photos",
    classes=("cat", "dog"),
    length=100,
    fingerprint="f" * 64,
    strategy="uncertain",
    seed=3,
    options={"label_column": "y", "classes": ["cat", "dog"]},
    random=(7, 41),
    probability=0.02,
)
ENTRIES = (
    Entry(id=7, file="a/ü.png", label=1, guesses=((1, 0.75), (0, 0.25)), probability=0.02, part="random"),
    Entry(id=99, file=None, label=None, guesses=((0, 1.0),), probability=None, part="uncertain"),
)


@pytest.fixture
def written(tmp_path):
    return write_queue(Queue(HEADER, ENTRIES), tmp_path / "queue.jsonl")


def test_what_is_written_is_what_is_read(written):
    assert read_queue(written) == Queue(HEADER, ENTRIES)
    first, second, _ = map(json.loads, written.read_text("utf-8").splitlines())
    assert first["format"] == "verifix-queue-1"
    assert first["classes"] == ["cat", "dog"]
    assert second == {
        "id": 7,
        "file": "a/ü.png",
        "label": 1,
        "guesses": [[1, 0.75], [0, 0.25]],
        "probability": 0.02,
        "part": "random",
    }


def test_a_queue_is_not_replaced_unless_forced(written):
    with pytest.raises(UsageError, match="exists already"):
        write_queue(Queue(HEADER, ENTRIES[:1]), written)
    write_queue(Queue(HEADER, ENTRIES[:1]), written, force=True)
    assert read_queue(written).entries == ENTRIES[:1]


def test_a_queue_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OutputError, match=r"queue.jsonl could not be written"):
        write_queue(Queue(HEADER, ENTRIES), tmp_path / "queue.jsonl")
    assert list(tmp_path.iterdir()) == []


ENTRY = {"id": 8, "file": None, "label": 0, "guesses": [], "probability": None, "part": "uncertain"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 4 of .* is not a valid entry"),
        ("[1]", "line 4 of .* is not a valid entry"),
        (json.dumps(ENTRY | {"id": "8"}), r"line 4 of .*Expected `int`, got `str` - at `\$.id`"),
        (json.dumps({k: v for k, v in ENTRY.items() if k != "part"}), "line 4 of .*missing required field `part`"),
        (json.dumps(ENTRY | {"guesses": [[1]]}), r"line 4 of .*at `\$.guesses"),
        (json.dumps(ENTRY | {"id": 100}), "has the id 100, but its data set has 100 samples"),
        (json.dumps(ENTRY | {"id": -1}), "has the id -1"),
        (json.dumps(ENTRY | {"id": 99}), "line 4 of .* has the id 99 a second time"),
        (json.dumps(ENTRY | {"label": 2}), "has the class 2, but there are 2, numbered from 0"),
        (json.dumps(ENTRY | {"guesses": [[-1, 0.5]]}), "has the class -1"),
        (json.dumps(ENTRY | {"guesses": [[1, 1.5]]}), "a guess whose probability is not between 0 and 1"),
        (json.dumps(ENTRY | {"part": "random"}), "the part 'random', which contradicts"),
        (json.dumps(ENTRY | {"id": 41}), "the part 'uncertain', which contradicts"),
        (
            json.dumps(ENTRY | {"id": 41, "part": "random", "probability": 0.5}),
            "the probability 0.5, which",
        ),
        (json.dumps(ENTRY | {"probability": 0.02}), "the probability 0.02, which contradicts"),
    ],
)
def test_a_wrong_line_is_named(written, line, told):
    with written.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=told) as caught:
        read_queue(written)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"length": 0}, "length 0"),
        ({"length": True}, "Expected `int`, got `bool`"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["cat", "cat"]}, "2 classes"),
        ({"classes": "cat"}, "line 1 of"),
        ({"random": [7, 7]}, "ids in random"),
        ({"random": [100]}, "ids in random"),
        ({"probability": None}, "probability None"),
        ({"probability": 0}, "probability 0"),
        ({"probability": 1.5}, "probability 1.5"),
        ({"random": []}, "probability 0.02"),
        ({"format": "verifix-queue-9"}, "line 1 of .* is not a valid header"),
        ({"format": VERIFIED}, "is a verifix-verified-1, but a queue of verifix select"),
    ],
)
def test_a_wrong_header_is_named(written, change, told):
    first, *rest = written.read_text("utf-8").splitlines()
    written.write_text("\n".join([json.dumps(json.loads(first) | change), *rest, ""]), "utf-8")
    with pytest.raises(DataError, match=told) as caught:
        read_queue(written)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_queue_are_refused(tmp_path, written):
    with pytest.raises(UsageError, match="does not exist"):
        read_queue(tmp_path / "none.jsonl")
    for content in ("", "\n", '{"id": 3}\n', "\x00\xff"):
        other = tmp_path / "other.jsonl"
        other.write_text(content, "latin1")
        with pytest.raises(DataError, match="has no such header"):
            read_queue(other)
    written.write_text(written.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    with pytest.raises(DataError, match="has no samples to verify"):
        read_queue(written)


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path, capsys):
    record = Record(id=7, label="dog", verified="cat", status="relabel", annotator="ada", time="2026-01-01T00:00:00Z")
    path = tmp_path / "verified.jsonl"
    from verifix.io.data.records import spelled

    whole = spelled([replace(HEADER, format=VERIFIED), record, record])
    path.write_bytes(whole[:-9])
    assert read_lines(path, VERIFIED, Record)[1] == [record]
    assert "its last line is not finished" in capsys.readouterr().err


def test_whoever_stops_half_way_has_done_half_of_both_parts():
    order = order_of(range(25), range(100, 175))
    assert sorted(order) == [*range(25), *range(100, 175)]
    for done in range(1, 101):
        assert abs(sum(each < 100 for each in order[:done]) - done / 4) <= 1
    assert [each for each in order if each < 100] == list(range(25))
    assert order_of([], [3, 1]) == [3, 1]
