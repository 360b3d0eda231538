"""What the page shows beside the samples: the rate of wrong labels, and corrections that later samples judge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.review import desk_cases as cases
from verifix.cli.commands.review import SETTINGS
from verifix.cli.look import look
from verifix.cli.main import parse
from verifix.io.data.records import Record, read_lines
from verifix.io.data.tally import Tally
from verifix.review.betting import bounds
from verifix.review.looks import Looks
from verifix.review.standing import ever_in_turn, in_turn, standing, wrong_rate


def record(entry, verified: int | None, status: str | None = None, name: str = "ada") -> Record:
    status = status or ("ok" if verified == entry.label else "relabel")
    label = None if verified is None else cases.CLASSES[verified]
    return Record(id=entry.id, label=cases.CLASSES[entry.label], verified=label, status=status, annotator=name)


@pytest.fixture
def queue(tmp_path):
    return cases.make_queue(tmp_path, 80, drawn=40)


@pytest.fixture
def drawn(queue):
    """The random part, in the order of the draw."""
    of = {entry.id: entry for entry in queue.entries}
    return [of[number] for number in queue.header.random]


def test_only_random_samples_in_turn_are_counted(queue, drawn):
    others = [entry for entry in queue.entries if entry.part != "random"]
    records = [record(entry, (entry.label + 1) % 4) for entry in others]  # all wrong, and selected
    records += [record(entry, entry.label) for entry in (*drawn[:10], *drawn[11:20])]
    turns = in_turn(queue, Tally(), Tally(records))
    assert [number for number, _ in turns] == [entry.id for entry in drawn[:10]]
    rate = wrong_rate(turns, 80)
    assert (rate.estimate, rate.count) == (0.0, 10)
    records.append(record(drawn[10], (drawn[10].label + 1) % 4))
    rate = wrong_rate(in_turn(queue, Tally(), Tally(records)), 80)
    assert (rate.estimate, rate.count) == (1 / 20, 20)
    expected = bounds(np.array([0.0] * 10 + [1.0] + [0.0] * 9), 0.0, 1.0, total=80)
    assert (rate.low, rate.high) == (expected.low, expected.high)


def test_samples_of_earlier_rounds_are_in_turn(queue, drawn):
    earlier = Tally([record(entry, entry.label) for entry in drawn[:5]])
    now = Tally([record(drawn[5], None, "unsure"), record(drawn[2], (drawn[2].label + 1) % 4)])
    turns = in_turn(queue, earlier, now)
    assert [number for number, _ in turns] == [entry.id for entry in drawn[:6]]
    assert [r.status for _, r in turns] == ["ok", "ok", "relabel", "ok", "ok", "unsure"]


def test_what_nobody_knows_widens_the_interval(queue, drawn):
    records = [record(entry, entry.label) for entry in drawn[:20]]
    records += [record(entry, (entry.label + 1) % 4) for entry in drawn[20:25]]
    plain = wrong_rate(in_turn(queue, Tally(), Tally(records)), 80)
    disputed = [record(drawn[25], 0), record(drawn[25], 1, name="bob")]
    records += [record(drawn[26], None, "skip"), record(drawn[27], None, "unsure"), *disputed]
    unsure = wrong_rate(in_turn(queue, Tally(), Tally(records)), 80)
    assert (unsure.estimate, unsure.count) == (plain.estimate, plain.count) == (0.2, 25)
    y = np.array([0.0] * 20 + [1.0] * 5)
    assert unsure.low == bounds(np.concatenate([y, [0, 0, 0]]), 0, 1, total=80).low
    assert unsure.high == bounds(np.concatenate([y, [1, 1, 1]]), 0, 1, total=80).high


def test_everything_is_counted_once(queue, drawn, tmp_path):
    records = [record(entry, entry.label) for entry in drawn[:6]] + [record(drawn[0], 2, name="bob")]
    records += [record(drawn[7], None, "skip"), record(drawn[8], (drawn[8].label + 1) % 4)]
    found = standing(queue, Tally(), Tally(records), Looks(tmp_path / "looks", queue.header, "", None))
    same = drawn[0].label == 2
    assert (found.samples, found.decided, found.labelled, found.relabelled) == (80, 8, 6 + same, 1)
    assert found.gain is None


def starting(answers):
    """Starts a process that finds what was told, once it has read its job."""
    code = (
        "import json, pathlib, sys; place = pathlib.Path(sys.argv[1])\n"
        "job = json.loads((place / 'job.json').read_text())\n"
        "found = job | json.loads(sys.argv[2]); later = map(str, found.pop('later'))\n"
        "before, after = found.pop('predictions'); later = list(later)\n"
        "found['since'] = found['turns']\n"
        "found |= {'before': dict.fromkeys(later, before), 'after': dict.fromkeys(later, after), 'changed': True}\n"
        "(place / 'look.json').write_text(json.dumps(found | {'seconds': 1.0}))\n"
    )

    def start(place):
        seen.append(read_lines(place / "verified.jsonl", "verifix-verified-1", Record)[1])
        told = json.dumps({"predictions": answers[len(seen) - 1]})
        return subprocess.Popen([sys.executable, "-c", code, str(place), told])

    seen = []
    return start, seen


def finished(looks, turns, others):
    """Let the process that is running end, and take in what it has found."""
    looks._running[0].wait()
    looks.tick(turns, others, len(turns))


def test_each_correction_is_judged_by_the_samples_that_come_after_it(queue, drawn, tmp_path):
    start, seen = starting([(0, 1), (1, 2)])
    looks = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    others = [record(entry, entry.label) for entry in queue.entries if entry.part != "random"]
    labels = [1, 0, 2, 3, 1] * 8
    turns = [(e.id, record(e, label)) for e, label in zip(drawn, labels, strict=True)]
    looks.tick(turns[:9], others, 9)
    assert seen == []  # 49 labels
    assert looks.gain(turns[:9]).looks == 0
    looks.tick(turns[:10], others, 10)
    looks.tick(turns[:12], others, 12)  # one at a time
    assert looks.gain(turns[:12]).running
    finished(looks, turns[:12], others)
    assert [r.id for r in seen[0]] == [e.id for e in drawn[:10]] + [r.id for r in others]
    gain = looks.gain(turns[:20])  # from turn 10 on: 0 before, 1 after the correction
    outcomes = [(label == 1) - (label == 0) for label in labels[10:20]]
    assert (gain.fixed, gain.broken) == (outcomes.count(1), outcomes.count(-1)) == (4, 2)
    assert gain.bounds == bounds(np.array(outcomes, dtype=float), -1.0, 1.0)
    unsure = [*turns[:15], (drawn[15].id, record(drawn[15], None, "unsure")), *turns[16:20]]
    found, at = looks.gain(unsure).bounds, outcomes[:5]
    assert (found.count, found.estimate) == (9, pytest.approx(np.mean(at + outcomes[6:])))
    worst, best = (bounds(np.array([*at, d, *outcomes[6:]], float), -1, 1) for d in (-1, 1))  # answers differ
    assert (found.low, found.high) == (worst.low, best.high)
    more = others  # a second time, for 100 labels with 20 random samples in turn
    looks.tick(turns[:20], [*others, *more], 20)
    finished(looks, turns[:20], [*others, *more])
    gain = looks.gain(turns)
    outcomes += [(label == 2) - (label == 1) for label in labels[20:]]
    assert gain.bounds == bounds(np.array(outcomes, dtype=float), -1.0, 1.0)
    assert (gain.looks, gain.labels, gain.verdict) == (2, 100, "undecided")
    again = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)  # after a restart
    assert again.gain(turns) == gain
    assert Looks(tmp_path / "kept.jsonl", queue.header, "other model", start).gain(turns).looks == 0


def test_what_was_shown_is_not_judged_again_by_a_later_correction(queue, drawn, tmp_path):
    """Or whoever looks would see the better one of two sequences, and the bounds hold for one."""
    start, _ = starting([(0, 1), (0, 2)])
    looks = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    others = [record(entry, entry.label) for entry in queue.entries if entry.part != "random"]
    turns = [(e.id, record(e, 1)) for e in drawn]
    looks.tick(turns[:10], others, 10)
    finished(looks, turns[:14], others)  # it was not there yet at turns 10 to 13, but nothing was shown of these
    assert looks.gain(turns[:14]).fixed == 4
    looks.tick(turns[:20], others * 2, 20)
    assert looks.gain(turns[:30]).fixed == 20  # while the second one is being made
    looks._running[0].wait()
    looks.tick(turns[:25], others, 30)  # five of those that were shown have been taken back
    assert [look.since for look in looks.looks] == [10, 30]
    assert looks.gain(turns[:30]).fixed == 20
    assert looks.gain(turns).fixed == 20  # the second one sets none right
    again = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    assert again.gain(turns) == looks.gain(turns)


def test_decisions_that_were_taken_back_were_in_turn(queue, drawn):
    records = [record(entry, entry.label) for entry in drawn[:6]] + [record(drawn[2], None, "undo")]
    rounds = queue, Tally(), Tally(records)
    assert (len(in_turn(*rounds)), ever_in_turn(*rounds)) == (2, 6)
    assert ever_in_turn(queue, Tally(records[:6]), Tally()) == 6


def test_samples_without_a_given_label_have_no_wrong_one(queue, drawn):
    records = [record(entry, entry.label) for entry in drawn[:9]]
    records.append(replace(record(drawn[9], 1, "relabel"), label=None))
    rate = wrong_rate(in_turn(queue, Tally(), Tally(records)), 80)
    assert (rate.estimate, rate.count) == (0.0, 9)
    assert rate.high == bounds(np.array([0.0] * 9 + [1.0]), 0, 1, total=80).high


def test_a_label_that_was_kept_is_known_without_its_name(queue, drawn, tmp_path):
    """As records may have it that were not written by the page."""
    start, _ = starting([(0, 1)])
    looks = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    others = [record(entry, entry.label) for entry in queue.entries if entry.part != "random"] * 2
    looks.tick([], others, 0)
    finished(looks, [], others)
    plain = [(e.id, replace(record(e, e.label), verified=None)) for e in drawn]
    assert looks.gain(plain) == looks.gain([(e.id, record(e, e.label)) for e in drawn])


def test_a_correction_that_fails_is_told_and_the_next_one_is_made(queue, drawn, tmp_path, capsys):
    def start(place):
        (place / "log.txt").write_text("some warning\nverifix: error: the labels do not fit\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"])

    looks = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    others = [record(entry, entry.label) for entry in queue.entries if entry.part != "random"]
    turns = [(e.id, record(e, e.label)) for e in drawn[:12]]
    looks.tick(turns, others, len(turns))
    finished(looks, turns, others)
    gain = looks.gain(turns)
    assert (gain.failed, gain.running, gain.looks) == ("the labels do not fit", False, 0)
    assert "the correction from 50 labels failed: the labels do not fit" in capsys.readouterr().err
    assert not (tmp_path / "kept.jsonl").exists()
    looks.close()


def test_a_gain_that_is_certain_is_told(queue, drawn, tmp_path):
    start, _ = starting([(0, 1)])
    looks = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    others = [record(entry, entry.label) for entry in queue.entries if entry.part != "random"] * 2
    looks.tick([], others, 0)
    finished(looks, [], others)
    turns = [(e.id, record(e, 1)) for e in drawn]
    assert looks.gain(turns).verdict == "improved"
    assert looks.gain(turns).more == 0
    assert looks.gain(turns[:3]).verdict == "undecided"
    assert 0 < looks.gain(turns[:3]).more < 20
    assert looks.gain([(e.id, record(e, 0)) for e in drawn]).verdict == "harmful"


NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
"""


@pytest.fixture
def network(tmp_path):
    """The flags that name an untrained network for the pictures of `queue`."""
    import torch

    names: dict = {}
    exec(NET, names)
    (tmp_path / "net.py").write_text(NET)
    torch.save(names["build"]().state_dict(), tmp_path / "net.pt")
    return [
        *("--model", f"py:{tmp_path}/net.py:build", "--checkpoint", str(tmp_path / "net.pt")),
        *("--recipe", "verifix", "--verified-from", "unseen"),
    ]


def test_a_correction_is_made_from_the_labels_so_far(tmp_path, network):
    """Here in this process; see below for one of its own."""
    import torch

    queue = cases.make_queue(tmp_path, 80, drawn=40, side=2)
    command = parse(["review", str(tmp_path / "queue.jsonl"), *network])
    first, copy = queue.header.random[0], queue.header.random[35]
    names = {entry.id: tmp_path / "photos" / entry.file for entry in queue.entries}
    names[copy].write_bytes(names[first].read_bytes())

    def start(place):
        (place / SETTINGS).write_text(json.dumps(asdict(command)), "utf-8")
        look(place)
        return subprocess.Popen(["true"])

    of = {entry.id: entry for entry in queue.entries}
    others = [record(entry, entry.label) for entry in queue.entries if entry.part != "random"]
    turns = [(number, record(of[number], of[number].label)) for number in queue.header.random]
    looks = Looks(tmp_path / "kept.jsonl", queue.header, "now", start)
    looks.tick(turns[:30], others, 30)
    finished(looks, turns[:30], others)
    (made,) = looks.looks
    assert (made.turns, made.labels, looks.gain(turns).failed) == (30, 50, "")
    names: dict = {}
    exec(NET, names)
    net = names["build"]().eval()
    net.load_state_dict(torch.load(tmp_path / "net.pt"))
    later = [number for number in queue.header.random[30:] if number != copy]  # it was made from what equals that
    pixels = [np.array(Image.open(tmp_path / "photos" / of[number].file), dtype=np.float32) / 255 for number in later]
    expected = net(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).argmax(dim=1).tolist()
    assert made.before == dict(zip(later, expected, strict=True))
    assert set(made.after) == set(later)
    assert made.changed == (made.after != made.before)
    assert looks.gain(turns).bounds.count == 9


def test_the_page_makes_a_correction_in_a_process_of_its_own(tmp_path, network, often):
    if often(8) == 1:
        pytest.skip("the process stands back, and waits where all processors are busy; --all-cases runs it")
    queue = cases.make_queue(tmp_path, 80, drawn=40, side=2)
    with cases.served(tmp_path, *network) as server:
        client = server.connect()
        assert client.decide(*((place, "ok", e.label) for place, e in enumerate(queue.entries[:60]))) == 200
        made = cases.wait_for(lambda: (gain := client.standing()["gain"])["looks"] and gain, 300)
        assert (made["labels"], made["failed"]) == (50, "")
        assert client.decide(*((place + 60, "ok", e.label) for place, e in enumerate(queue.entries[60:]))) == 200
        assert client.standing()["gain"]["bounds"]["count"] == 10
        server.end()
    (kept,) = (tmp_path / "verified.looks.jsonl").read_text().splitlines()
    assert set(json.loads(kept)["after"]) == set(map(str, queue.header.random[30:]))


def looking(server: int) -> dict[int, Path]:
    """The processes that make corrections for a server, and the folder of each."""
    found = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split(maxsplit=2) for line in found.splitlines())
    return {
        int(own): Path(args.split()[-1]) for own, of, args in rows if int(of) == server and "verifix.cli.look" in args
    }


def alive(process: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


def test_a_correction_in_the_background_ends_with_the_server(tmp_path, network):
    """However the server ends: it is killed while a correction is being made."""
    queue = cases.make_queue(tmp_path, 80, drawn=40, side=2)
    with cases.served(tmp_path, *network) as server:
        assert server.connect().decide(*((place, "ok", e.label) for place, e in enumerate(queue.entries[:60]))) == 200
        ((process, folder),) = cases.wait_for(lambda: looking(server.process.pid), 60).items()
        assert folder.is_dir()
        os.kill(server.process.pid, signal.SIGKILL)
        cases.wait_for(lambda: not alive(process), 300)
    assert not folder.exists()  # it had no time to find anything, and left nothing
