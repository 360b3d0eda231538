"""A Hugging Face Hub on this machine: the few endpoints that an upload speaks to, for the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_localtoken"


@dataclass
class Hub:
    """What clients have sent: repositories with whether they are private, their files, and the messages of commits.

    With `xet`, large files go to that store: its client cuts them up, and the Hub learns their SHA-256 alone.
    """

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False
    xet: bool = False
    blocks: dict[str, int] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repositories[name] = asked.get("private") or asked.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}", "name": name}
        if method == "PUT" and path.startswith("/lfs/"):
            self.large[path.removeprefix("/lfs/")] = body
            return (200, {}) if hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/") else (400, {})
        if self.refuses:
            return 403, {"error": "this token may only read"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": _mode(f), "shouldIgnore": False} for f in files]}
        if path.endswith("/xet-write-token/main"):
            return 200, {"casUrl": self.address, "exp": 2**33, "accessToken": TOKEN}
        if method == "POST" and path.startswith("/v1/xorbs/"):
            self.blocks[path.rpartition("/")[2]] = len(body)
            return 200, {"was_inserted": True}
        if path == "/v1/shards":
            return 200, {"result": 1}
        if path.endswith("/info/lfs/objects/batch") and self.xet and "xet" in json.loads(body)["transfers"]:
            return 200, {"transfer": "xet", "objects": []}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(o) for o in json.loads(body)["objects"]]}
        if re.fullmatch("/api/models/.+/commit/main", path):
            return 200, self._commit([json.loads(line) for line in body.decode().splitlines() if line])
        return 404, {"error": f"{method} {path}"}

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.address}/lfs/{asked['oid']}", "header": {}}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and self.xet:
                self.named[value["path"]] = value["oid"]
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
        return {"commitUrl": f"{self.address}/x/y/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}


def _mode(file: dict[str, Any]) -> str:
    return "lfs" if file["path"].endswith(".safetensors") else "regular"


@contextmanager
def hub_here() -> Iterator[Hub]:
    """Serve a Hub that knows one token, on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            known = self.headers.get("authorization") == f"Bearer {TOKEN}" or path.startswith("/lfs/")
            status, content = hub.answer(self.command, path, body) if known else (401, {"error": "who are you?"})
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = _serve  # noqa: N815  # names of http.server

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
