"""A server that is as much of the Hub as uploads and downloads need, in memory; shared by the tests of both."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import huggingface_hub.constants
import pytest


COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository, me/toy, of models or datasets. Uploads need the token "right"; downloads need none."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer right":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            self.server.repository = json.loads(body)
            folder = "datasets/" if self.server.repository.get("type") == "dataset" else ""
            return self.answer(200, {"url": f"{self.server.endpoint}/{folder}me/toy"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path in ("/api/models/me/toy/preupload/main", "/api/datasets/me/toy/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path in ("/api/models/me/toy/commit/main", "/api/datasets/me/toy/commit/main"):
            operations = [json.loads(line) for line in body.splitlines()]
            self.server.files = {
                operation["value"]["path"]: base64.b64decode(operation["value"]["content"])
                for operation in operations
                if operation["key"] == "file"
            }
            commit = {"commitOid": COMMIT, "commitUrl": f"{self.server.endpoint}/me/toy/commit/{COMMIT}"}
            return self.answer(200, commit | {"hookOutput": "", "success": True})
        self.answer(404, {"error": f"no {self.path}"})

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        files = self.server.files or {}
        if files and path in ("/api/models/me/toy", *(f"/api/models/me/toy/revision/{r}" for r in ("main", COMMIT))):
            info = {"id": "me/toy", "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
            return self.answer(200, info | {"siblings": [{"rfilename": name} for name in files]})
        if files and path.startswith("/api/models/me/toy/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(200, entries)
        for revision in ("main", COMMIT):
            name = path.removeprefix(f"/me/toy/resolve/{revision}/")
            if name in files:
                etag = hashlib.sha1(files[name]).hexdigest()
                return self.send(200, files[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        self.answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound" if files else "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, value, headers: dict[str, str] | None = None):
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A server in the place of the Hub, as `HF_ENDPOINT` would set it before huggingface_hub is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = None
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
