"""The page's server: what it writes, what it refuses, and what is left when it is killed."""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.review import desk_cases as cases
from verifix.cli.main import main
from verifix.errors import DataError, UsageError
from verifix.io.data.records import Record
from verifix.io.data.tally import Tally
from verifix.io.data.verified import read_decisions
from verifix.review.ledger import Ledger


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    cases.make_queue(folder, 40, drawn=30)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with cases.served(folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.connect()


def entries(client):
    return json.loads(client.ask("GET", "/queue")[2])["entries"]


def test_decisions_are_in_the_file_when_they_are_acknowledged(tmp_path):
    queue = cases.make_queue(tmp_path, 12)
    first, second, third, fourth = queue.entries[:4]
    with cases.served(tmp_path) as server:
        client = server.connect()
        assert client.decide((0, "ok", first.label)) == 200
        (record,) = cases.records(tmp_path / "verified.jsonl")
        name = cases.CLASSES[first.label]
        assert {key: record[key] for key in ("id", "file", "label", "verified", "status", "annotator")} == {
            "id": first.id, "file": first.file, "label": name, "verified": name, "status": "ok", "annotator": "ada",
        }  # fmt: skip
        other = (second.label + 1) % 4
        assert client.decide((1, "relabel", other), (2, "unsure", None), (3, "skip", None)) == 200
        assert client.decide((3, "undo", None)) == 200
        found = [(r["id"], r["verified"], r["status"]) for r in cases.records(tmp_path / "verified.jsonl")[1:]]
        assert found == [
            (second.id, cases.CLASSES[other], "relabel"), (third.id, None, "unsure"), (fourth.id, None, "skip"),
            (fourth.id, None, "undo"),
        ]  # fmt: skip
        said = server.end()
    assert "3 of 12 samples decided, 2 with a label that counts, 1 of them another" in said
    read = read_decisions(tmp_path / "verified.jsonl")
    assert read.labels == {first.id: name, second.id: cases.CLASSES[other]}
    assert read.header == queue.header.__class__(**{**vars(queue.header), "format": "verifix-verified-1"})


def test_a_review_goes_on_where_it_was(tmp_path):
    queue = cases.make_queue(tmp_path, 12)
    with cases.served(tmp_path) as server:
        for place in range(5):
            assert server.connect().decide((place, "ok", queue.entries[place].label)) == 200
    with cases.served(tmp_path) as server:  # the first one was killed
        client = server.connect()
        answer = json.loads(client.ask("POST", "/decided", {"name": "ada"})[2])
        assert answer["decisions"] == {str(place): ["ok", queue.entries[place].label] for place in range(5)}
        assert answer["steps"] == [{"places": [place], "resolves": False} for place in range(5)]
        assert json.loads(client.ask("POST", "/decided", {"name": "bob"})[2])["others"] == [0, 1, 2, 3, 4]


def test_what_undo_takes_back_is_in_the_file(tmp_path):
    """Request by request, resolutions too, whoever reads it; what was taken back is not there."""
    queue = cases.make_queue(tmp_path, 8)
    given = [entry.label for entry in queue.entries]
    with cases.served(tmp_path) as server:
        client = server.connect()
        assert client.decide(*((place, "ok", given[place]) for place in (3, 4, 5))) == 200
        assert client.decide((0, "ok", given[0])) == 200
        assert client.decide((1, "skip", None)) == 200
        assert client.decide((1, "undo", None)) == 200
        assert client.decide((0, "relabel", (given[0] + 1) % 4), name="Bob") == 200
        assert client.decide((0, "relabel", (given[0] + 2) % 4), resolves=True) == 200
        assert client.decide((2, "unsure", None)) == 200
    with cases.served(tmp_path) as server:
        client = server.connect()
        steps = [([3, 4, 5], False), ([0], False), ([0], True), ([2], False)]
        answer = json.loads(client.ask("POST", "/decided", {"name": "ada"})[2])
        assert answer["steps"] == [{"places": places, "resolves": resolves} for places, resolves in steps]
        assert client.decide((2, "undo", None)) == client.decide((0, "undo", None), name="Bob", resolves=True) == 200
        assert client.standing()["disputed"] == []  # nobody takes back what somebody else has resolved
        assert client.decide((0, "undo", None), resolves=True) == 200
        assert len(client.standing()["disputed"]) == 1
        answer = json.loads(client.ask("POST", "/decided", {"name": "ada"})[2])
        assert answer["steps"] == [{"places": [3, 4, 5], "resolves": False}, {"places": [0], "resolves": False}]


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_what_was_acknowledged_outlives_a_kill(tmp_path, moment):
    """Decisions are sent as fast as they are answered, and the server is killed at a random moment."""
    queue = cases.make_queue(tmp_path, 40)
    rng = random.Random(moment)
    with cases.served(tmp_path) as server:
        client, acknowledged = server.connect(), []

        def send():
            try:
                for step in range(10_000):
                    place, label = step % 40, rng.randrange(4)
                    status = "ok" if label == queue.entries[place].label else "relabel"
                    if client.decide((place, status, label)) == 200:
                        acknowledged.append((queue.entries[place].id, cases.CLASSES[label]))
            except (OSError, http.client.HTTPException):
                pass

        sending = threading.Thread(target=send)
        sending.start()
        cases.wait_for(lambda: acknowledged)
        time.sleep(rng.uniform(0, 0.3))
        server.process.kill()
        sending.join()
    lines = (tmp_path / "verified.jsonl").read_bytes().split(b"\n")[1:-1]
    found = [(record["id"], record["verified"]) for record in map(json.loads, lines)]
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1
    with cases.served(tmp_path) as server:
        assert server.connect().standing()["decided"] == len({number for number, _ in found})


def test_half_a_line_is_cut_off(tmp_path):
    queue = cases.make_queue(tmp_path, 8)
    with cases.served(tmp_path) as server:
        server.connect().decide((0, "ok", queue.entries[0].label))
    path = tmp_path / "verified.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.split(b"\n")[1][:30])
    with cases.served(tmp_path) as server:
        assert path.read_bytes() == whole
        assert "was not complete, as after a crash, and was removed" in server.said()
        assert server.connect().decide((1, "ok", queue.entries[1].label)) == 200
    assert len(cases.records(path)) == 2


def test_a_decision_that_cannot_be_written_is_not_acknowledged(tmp_path):
    """Here the limit on the size of files stands for a full disk; what was written of the line is taken back."""
    queue = cases.make_queue(tmp_path, 8)
    code = (
        "import resource, signal, sys; from verifix.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "sys.exit(main(['review', 'queue.jsonl', '--port', '0']))\n"
    )
    with cases.served(tmp_path):
        pass
    size = (tmp_path / "verified.jsonl").stat().st_size + 250  # one record fits, and half of another
    process = subprocess.Popen([sys.executable, "-c", code, str(size)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "token=" in line)
        port, token = line.split(":")[-1].split("/?token=")
        client = cases.Client(int(port), token.strip())
        assert client.decide((0, "ok", queue.entries[0].label)) == 200
        before = (tmp_path / "verified.jsonl").read_bytes()
        status, _, text = client.ask(
            "POST", "/decide", {"name": "ada", "decisions": [{"place": 1, "status": "unsure"}], "resolves": False}
        )
        assert (status, text[:10]) == (507, b"Not saved:")
        assert (tmp_path / "verified.jsonl").read_bytes() == before
        assert client.standing()["decided"] == 1
    finally:
        process.kill()
        process.communicate()


def test_people_who_disagree_leave_a_sample_open_until_it_is_resolved(tmp_path):
    queue = cases.make_queue(tmp_path, 8)
    given = [entry.label for entry in queue.entries]
    with cases.served(tmp_path) as server:
        client = server.connect()
        assert client.decide(*((i, "ok", given[i]) for i in range(6))) == 200
        others = [(0, "relabel", (given[0] + 1) % 4), (1, "unsure", None), *((i, "ok", given[i]) for i in range(2, 6))]
        assert client.decide(*others, name="Bob") == 200
        standing = client.standing()
        assert standing["disputed"] == [{"place": 0, "votes": {"ada": given[0], "Bob": (given[0] + 1) % 4}}]
        (pair,) = standing["agreement"]["pairs"]
        labels = [[given[i] for i in (0, 2, 3, 4, 5)], [(given[0] + 1) % 4, *(given[i] for i in range(2, 6))]]
        assert (pair["people"], pair["samples"], pair["equal"]) == (["Bob", "ada"], 5, 4)
        assert pair["kappa"] == pytest.approx(kappa(*labels))
        path = tmp_path / "verified.jsonl"
        assert read_decisions(path).left_out == {queue.entries[0].id: "disagreement"}
        assert client.decide((0, "relabel", (given[0] + 1) % 4), name="Cleo", resolves=True) == 200
        assert client.standing()["disputed"] == []
        assert read_decisions(path).labels[queue.entries[0].id] == cases.CLASSES[(given[0] + 1) % 4]
        assert client.decide((0, "undo", None), name="Cleo", resolves=True) == 200
        assert len(client.standing()["disputed"]) == 1


def kappa(a, b) -> float:
    """Cohen's kappa, written out."""
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    expected = sum(a.count(c) * b.count(c) for c in set(a + b)) / n**2
    return (observed - expected) / (1 - expected)


def test_the_page_is_for_one_review_at_a_time(server, folder, capsys):
    assert main(["review", str(folder / "queue.jsonl"), "--port", "0"]) == 2
    assert "is open in another verifix review" in capsys.readouterr().err
    taken = ["review", str(folder / "queue.jsonl"), "--out", str(folder / "b.jsonl"), "--port", str(server.port)]
    assert main(taken) == 2
    assert f"port {server.port} cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "photos" / cases.CLASSES[0] / "0000.png").unlink(), "about a data set of 8 samples"),
        (lambda f: (f / "queue.jsonl").write_text("{}\n"), "has no such header"),
        (lambda f: (f / "verified.jsonl").write_text('{"a": 1}\n'), "has no such header"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, capsys, change, said):
    cases.make_queue(tmp_path, 8)
    change(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["review", str(tmp_path / "queue.jsonl"), "--port", "0"]) == 5
    assert said in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == before


def test_records_of_other_samples_are_not_continued(tmp_path, capsys):
    for name, count in (("a", 8), ("b", 12)):
        (tmp_path / name).mkdir()
        cases.make_queue(tmp_path / name, count)
    with cases.served(tmp_path / "a"):
        pass
    other = ["review", str(tmp_path / "b" / "queue.jsonl"), "--out", str(tmp_path / "a" / "verified.jsonl")]
    assert main([*other, "--port", "0"]) == 5
    assert "holds records on other data" in capsys.readouterr().err


def test_records_of_another_queue_of_the_same_samples_are_not_continued(tmp_path):
    header = cases.make_queue(tmp_path, 8).header
    with Ledger(tmp_path / "a.jsonl", header) as ledger:
        assert ledger.append([Record(id=1, status="skip", annotator="ada")])[0].time.endswith("Z")
    with pytest.raises(DataError, match="records of another queue of the same data"):
        Ledger(tmp_path / "a.jsonl", replace(header, seed=1)).__enter__()
    with Ledger(tmp_path / "a.jsonl", header) as ledger:  # the lock of the one that was refused is free again
        assert ledger.tally().records == 1
    for name, said in (("a.csv", "must end in .jsonl"), ("none/a.jsonl", "in a folder that exists")):
        with pytest.raises(UsageError, match=said):
            Ledger(tmp_path / name, header).__enter__()


def test_only_this_machine_can_reach_it(server):
    with socket.socket() as other:
        other.settimeout(2)
        with pytest.raises(OSError, match="refused"):
            other.connect(("127.0.0.2", server.port))


def test_the_cookie_is_for_this_page_alone(server):
    status, headers, _ = server.connect().ask("GET", f"/?token={server.token}", cookie=None)
    name, *attributes = headers["set-cookie"].split("; ")
    assert status == 200
    assert name.startswith(f"verifix-review-{server.port}=")
    assert {each.lower() for each in attributes} == {"httponly", "samesite=strict", "path=/"}
    assert "script-src 'self'" in headers["content-security-policy"]


GOOD = {"name": "eve", "decisions": [{"place": 0, "status": "skip"}], "resolves": False}
PATHS = [
    "/sample/../../etc/passwd", "/sample/..%2f..%2fetc%2fpasswd", "/sample/%2e%2e/%2e%2e/etc/passwd", "/sample/-1",
    "/sample/40", "/sample/00", "/sample/1e0", "/sample/0x1", "/sample/%00", "/sample/%D9%A3",
    "/sample/0/../../queue.jsonl",
    "/sample/0?file=/etc/passwd", "/small/../../../etc/passwd", "/small/99999999999999999999",
    "/page/../../pyproject.toml",
    "/page/..%2fguard.py", "/page/page.html", "/page//etc/passwd", "//etc/passwd", "/queue.jsonl", "/verified.jsonl",
    "/queue?path=../../etc/passwd", "/standing?x=1", "/..;/queue", "/sample", "/.git/config",
]  # fmt: skip
BODIES = [
    b"", b"{", b"[]", b"null", b'"' + b"a" * 5000, b"[" * 50_000, GOOD | {"extra": 1},
    GOOD | {"name": "../../etc/passwd"},
    GOOD | {"name": ""}, GOOD | {"name": "a" * 41}, GOOD | {"name": "a\nb"}, GOOD | {"name": "<script>"},
    GOOD | {"name": "\u202eevil"}, GOOD | {"name": 7}, GOOD | {"decisions": []}, GOOD | {"decisions": "0"},
    *(
        GOOD | {"decisions": [each]}
        for each in (
            {"place": -1, "status": "skip"}, {"place": 40, "status": "skip"}, {"place": "0", "status": "skip"},
            {"place": "../../x", "status": "skip"}, {"place": 0.5, "status": "skip"}, {"place": 0, "status": "../x"},
            {"place": 0, "status": "ok"}, {"place": 0, "status": "ok", "verified": 4},
            {"place": 0, "status": "relabel", "verified": -1}, {"place": 0, "status": "skip", "verified": 1},
            {"place": 0, "status": "relabel", "verified": "cat"}, {"place": True, "status": "skip"},
            {"place": 0, "status": "skip", "file": "/etc/passwd"}, {"place": 10**30, "status": "skip"},
        )
    ),
    GOOD | {"decisions": [{"place": 0, "status": "skip"}] * 2}, GOOD | {"resolves": True},
]  # fmt: skip
LONG = b'{"name": "' + b"a" * 70_000 + b'"}'
OTHERS = {
    "no cookie": {"cookie": None},
    "wrong cookie": {"cookie": "verifix-review=guess"},
    "empty cookie": {"cookie": "verifix-review-{port}="},
    "token as cookie": {"cookie": "verifix-review-{port}={token}"},
    "other host": {"Host": "evil.example"},
    "other host, our port": {"Host": "evil.example:{port}"},
    "our host, other port": {"Host": "127.0.0.1:1"},
    "host without port": {"Host": "127.0.0.1"},
    "all addresses": {"Host": "0.0.0.0:{port}"},
    "no host": {"Host": None},
    "two hosts": {"Host": ["127.0.0.1:{port}", "evil.example"]},
    "host with user": {"Host": "127.0.0.1:{port}@evil.example"},
    "other origin": {"Origin": "http://evil.example"},
    "null origin": {"Origin": "null"},
    "secure origin": {"Origin": "https://127.0.0.1:{port}"},
    "origin of another port": {"Origin": "http://127.0.0.1:1"},
    "origin that begins alike": {"Origin": "http://127.0.0.1:{port}.evil.example"},
    "two origins": {"Origin": ["http://127.0.0.1:{port}", "http://evil.example"]},
    "from another site": {"Sec-Fetch-Site": "cross-site"},
    "from a sibling": {"Sec-Fetch-Site": "same-site"},
    "long header": {"X-Long": "a" * 20_000},
}


def test_no_origin_is_refused_where_something_is_written(client):
    assert client.ask("POST", "/decide", GOOD, Origin=None)[0] == 403


@pytest.fixture
def untouched(folder, client):
    """Whatever a test sends, nothing is written."""
    before = (folder / "verified.jsonl").read_bytes(), sorted(path.name for path in folder.iterdir())
    yield
    assert ((folder / "verified.jsonl").read_bytes(), sorted(path.name for path in folder.iterdir())) == before
    assert client.ask("GET", "/queue")[0] == 200


def test_nothing_but_the_page_can_be_asked_for(client, untouched):
    for path in PATHS:
        status, _, content = client.ask("GET", path)
        assert status in (400, 404), path
        assert b"root:" not in content
        assert b"project" not in content


def test_only_decisions_on_the_queue_are_taken(client, untouched):
    for body in BODIES:
        status, _, content = client.ask("POST", "/decide", body)
        assert status == 400, body
        assert content.startswith(b"Refused: ")
        assert content.count(b"\n") == 1
    assert client.ask("POST", "/decided", {"name": "../../etc/passwd"})[0] == 400


@pytest.mark.parametrize("case", OTHERS)
def test_requests_from_elsewhere_are_refused(server, client, untouched, case):
    def filled(value):
        spelled = (
            [each.format(port=server.port, token=server.token) for each in value] if isinstance(value, list) else value
        )
        return spelled.format(port=server.port, token=server.token) if isinstance(spelled, str) else spelled

    settings = {name: filled(value) for name, value in OTHERS[case].items()}
    for method, path in (("GET", "/queue"), ("GET", "/sample/0"), ("POST", "/decide")):
        status, headers, content = client.ask(method, path, GOOD if method == "POST" else None, **settings)
        assert status in (400, 401, 403, 421, 431), (method, path)
        assert b"ant" not in content
        assert "set-cookie" not in headers


@pytest.mark.parametrize(
    "query", ["token=", "token={token}x", "token={token}&x=1", "x={token}", "token", "%ff", "token=%C3%A9"]
)
def test_only_the_token_opens_the_page(server, client, query):
    status, headers, _ = client.ask("GET", f"/?{query.format(token=server.token)}", cookie=None)
    assert (status, "set-cookie" in headers) == (401, False)


def test_long_bodies_and_other_methods_are_refused(client, untouched):
    assert client.ask("POST", "/decide", LONG)[0] == 413
    chunked = b"%x\r\n" % len(LONG) + LONG + b"\r\n0\r\n\r\n"
    assert client.ask("POST", "/decide", chunked, Transfer_Encoding="chunked")[0] == 413
    assert client.ask("POST", "/decide", GOOD, Content_Type="text/plain")[0] == 415
    assert client.ask("POST", "/decide", GOOD, Content_Type=["application/json", "text/plain"])[0] == 415
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"):
        assert client.ask(method, "/queue")[0] == 405, method
    assert client.ask("POST", "/queue", GOOD)[0] == 405
    assert client.ask("GET", "/decide")[0] == 405


def test_what_counts_of_records_is_what_a_slow_reading_finds():
    rng, people = random.Random(3), ("ada", "bob", "cleo")
    for _ in range(300):
        records = [random_record(rng, people) for _ in range(rng.randrange(12))]
        tally = Tally(records[:4])
        tally.add(records[4:])
        for number in range(3):
            assert (tally.outcome(number), number in tally.disputed()) == slow_outcome(records, number, people)


def random_record(rng, people):
    status = rng.choice(["ok", "relabel", "unsure", "skip", "undo", "undo"])
    verified = rng.choice("xy") if status in ("ok", "relabel") else None
    resolves = rng.random() < 0.2 and status in ("ok", "relabel", "undo")
    return Record(
        id=rng.randrange(3), verified=verified, status=status, annotator=rng.choice(people), resolves=resolves
    )


def slow_outcome(records, number, people):
    def last(kept):
        kept = list(kept)
        while any(record.status == "undo" for record in kept):
            at = next(i for i, record in enumerate(kept) if record.status == "undo")
            mine = [i for i in range(at) if kept[i].annotator == kept[at].annotator]
            kept = [record for i, record in enumerate(kept) if i not in (at, *mine[-1:])]
        return kept[-1] if kept else None

    own = [record for record in records if record.id == number]
    resolution = last(record for record in own if record.resolves)
    votes = [last(r for r in own if r.annotator == name and not r.resolves) for name in people]
    order = list(dict.fromkeys(r.annotator for r in own if not r.resolves))
    votes = sorted((vote for vote in votes if vote), key=lambda vote: order.index(vote.annotator))
    labels = [vote for vote in votes if vote.verified]
    if resolution:
        return resolution, False
    if len({vote.verified for vote in labels}) > 1:
        return None, True
    return (labels or votes or [None])[-1], False


def test_the_command_ends_with_what_was_decided(tmp_path):
    queue = cases.make_queue(tmp_path, 8)
    command = [str(Path(sys.executable).with_name("verifix")), "review", "queue.jsonl", "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    port, token = next(line for line in process.stderr if "token=" in line).split(":")[-1].split("/?token=")
    assert cases.Client(int(port), token.strip()).decide((0, "ok", queue.entries[0].label)) == 200
    process.send_signal(2)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    found = json.loads(out)
    assert (found["decided"], found["labelled"], found["relabelled"], found["disputed"]) == (1, 1, 0, 0)
