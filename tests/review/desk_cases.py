"""A small data set of images or texts with its queue, and the page around it in a process of its own."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from tests.record_cases import fingerprint
from verifix.io.data.records import Header
from verifix.selection.queue import Entry, Queue, order_of, write_queue

CLASSES = ("ant", "bee", "cat", "dog")


def write_images(folder: Path, count: int, side: int = 24) -> tuple[list[str], list[int]]:
    """Images of one colour per class, with their number as brightness; a subfolder per class."""
    names, labels = [], []
    for i in range(count):
        label = i * len(CLASSES) // count
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        names.append(f"{CLASSES[label]}/{i:04d}.png")
        labels.append(label)
        pixels = np.full((side, side, 3), 40 * label, np.uint8)
        pixels[:, : side // 2, 1] = i % 256
        Image.fromarray(pixels).save(folder / names[-1])
    return names, labels


def make_queue(folder: Path, count: int, ids=None, drawn: int | None = None, classes=CLASSES, side=24) -> Queue:
    """A queue of all samples, or some, of which the first ones drawn are the random part; in `folder`."""
    names, labels = write_images(folder / "photos", count, side)
    generator = np.random.default_rng(0)
    ids = [int(i) for i in generator.permutation(count)] if ids is None else list(ids)
    random = ids[: len(ids) if drawn is None else drawn]
    header = Header(
        data=str(folder / "photos"), classes=classes, length=count, fingerprint=fingerprint(names, labels),
        strategy="uncertain", seed=0, options={"classes": list(classes), "labels": True, "texts": False},
        random=tuple(random), probability=len(random) / count if random else None,
    )  # fmt: skip
    entries = tuple(
        Entry(
            id=i, file=names[i], label=labels[i], guesses=((i % 4, 0.7), ((i + 1) % 4, 0.2), ((i + 2) % 4, 0.1)),
            probability=header.probability if i in random else None, part="random" if i in random else "uncertain",
        )
        for i in order_of(random, [i for i in ids if i not in random])
    )  # fmt: skip
    queue = Queue(header, entries)
    write_queue(queue, folder / "queue.jsonl")
    return queue


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "verifix.cli.main",
        "verifix.cli.commands",
        "verifix.review.app",
        "verifix.review.guard",
        "uvicorn",
        "sklearn.metrics",
        "tests",
    ]
)


def _review(folder: Path, words: list[str]) -> None:
    """Be `verifix review`, with its streams in files."""
    from verifix.cli.main import main

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    sys.exit(main(words))


class Server:
    """`verifix review` on the queue of a folder, in a process that begins where its modules are imported already."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        (folder / "err").unlink(missing_ok=True)
        words = ["review", str(folder / "queue.jsonl"), "--port", "0", *flags]
        self.process = PROCESSES.Process(target=_review, args=(folder, words))
        self.process.start()
        port, self.token = wait_for(self._address, 60)
        self.port = int(port)

    def _address(self):
        said = self.said()
        assert self.process.is_alive() or "token=" in said, said
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", said)
        return found and found.groups()

    def said(self) -> str:
        """What is on stderr by now."""
        return (self.folder / "err").read_text("utf-8") if (self.folder / "err").exists() else ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def connect(self) -> Client:
        return Client(self.port, self.token)

    def end(self) -> str:
        """Interrupt it as Ctrl+C does, and return what it printed."""
        os.kill(self.process.pid, signal.SIGINT)
        self.process.join(30)
        assert self.process.exitcode == 0, self.said()
        return (self.folder / "out").read_text("utf-8")


class Client:
    """A browser's part of the conversation, with the cookie."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"
        status, headers, _ = self.ask("GET", f"/?token={token}", cookie=None)
        assert status == 200
        self.cookie = headers["set-cookie"].split(";")[0]

    def ask(self, method: str, path: str, body=None, *, cookie: str | None = "own", **headers):
        """Send a request, and return status, headers and content."""
        sent = {"Host": self.host} | ({"Cookie": self.cookie} if cookie == "own" else {})
        sent |= {} if cookie in ("own", None) else {"Cookie": cookie}
        if method == "POST":
            sent |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            for name, value in sent.items():
                for each in value if isinstance(value, list) else [value]:
                    if each is not None:
                        connection.putheader(name, each)
            if content is not None and "Content-Length" not in sent and "Transfer-Encoding" not in sent:
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def decide(self, *decisions, name: str = "ada", resolves: bool = False):
        """Decide as ``(place, status, class)``, and return the status of the answer."""
        listed = [
            {"place": place, "status": status} | ({} if verified is None else {"verified": verified})
            for place, status, verified in decisions
        ]
        return self.ask("POST", "/decide", {"name": name, "decisions": listed, "resolves": resolves})[0]

    def standing(self):
        return json.loads(self.ask("GET", "/standing")[2])


@contextmanager
def served(folder: Path, *flags: str):
    server = Server(folder, *flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.join()


def records(path: Path) -> list[dict]:
    """The lines of a file of records after the first."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]


def wait_for(found, seconds: float = 10.0):
    """Return what a function finds, once it finds anything."""
    end = time.monotonic() + seconds
    while not (what := found()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return what
