"""A hub on the loopback interface: directories served as repositories, faults on demand.

It speaks the part of the protocol that downloads use: HEAD and GET of
``/{repo}/resolve/{revision}/{file}``, answered with ``X-Repo-Commit``, ``ETag`` and
``Content-Length``, or with ``X-Error-Code``; and ``/api/models/{repo}/revision/{revision}``.
Given a folder for them, it takes uploads (`tests.hubuploads`) of those who have a token.

huggingface_hub reads its settings when it is imported, so a test has to use it in a subprocess::

    with HubServer({"openai-community/gpt2": directory}) as hub:
        subprocess.run([...], env=hub.environment(home))
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from tests.hubuploads import answer_post, tree


@dataclass
class Fault:
    """What goes wrong with a request, and with which ones: the first fault that matches."""

    file: str = "*"
    """Pattern of the file's name."""
    method: str = "*"
    """HEAD, GET or any."""
    times: int | None = None
    """How often, None for always."""
    status: int | None = None
    """Answer with this status instead of the file."""
    error_code: str | None = None
    """X-Error-Code of that answer."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that replace, or are added to, those of the answer."""
    without: tuple[str, ...] = ()
    """Headers that the answer lacks."""
    body: bytes | None = None
    """Other bytes than the file's."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall: float = 0.0
    """Seconds to wait before answering."""


@dataclass
class Request:
    """One request, as it came."""

    method: str
    path: str
    token: str | None


class HubServer:
    """Serves ``repositories`` (name -> directory) until the ``with`` block ends.

    ``uploads`` is where the commits that users make are kept; without, they may make none.
    """

    def __init__(self, repositories: dict[str, Path], *, uploads: Path | None = None) -> None:
        self.uploads = uploads
        self.messages: list[str] = []
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._commits: dict[str, dict[str, Path]] = {}
        self._refs: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        for name, directory in repositories.items():
            self.push(name, directory)
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(self, name: str, directory: Path, *, branch: str = "main") -> str:
        """Make ``directory`` the newest commit of a branch; returns the commit's hash.

        Earlier commits stay to be had, as long as their directories are not changed.
        """
        digest = hashlib.sha1(f"{name}\0{directory}".encode())
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(directory)}\0".encode() + path.read_bytes())
        commit = digest.hexdigest()
        self._commits.setdefault(name, {})[commit] = directory
        self._refs.setdefault(name, {})[branch] = commit
        return commit

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a subprocess that uses this hub, with its cache under ``home``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **more,
        }

    def commit_of(self, name: str, revision: str) -> str | None:
        """The hash of the commit that a branch or a hash names."""
        commit = self._refs[name].get(revision, revision)
        return commit if commit in self._commits[name] else None

    def directory_of(self, name: str, commit: str) -> Path:
        """The files of a commit."""
        return self._commits[name][commit]

    def knows(self, name: str) -> bool:
        """Whether there is a repository of this name."""
        return name in self._commits

    def fault_for(self, method: str, file: str) -> Fault:
        """The fault that this request meets; one that does nothing if there is none."""
        with self._lock:
            for fault in self.faults:
                if fault.times == 0 or fault.method not in ("*", method):
                    continue
                if fnmatchcase(file, fault.file):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return Fault()


class _Handler(http.server.BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        hub = self.server_hub
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.requests.append(Request("POST", path, self._token()))
        fault = hub.fault_for("POST", path)
        if fault.status is not None:
            self._fail(fault.status, fault.error_code, fault.headers)
        elif hub.uploads is None or not self._token():
            self._fail(401, None)
        else:
            status, content = answer_post(hub, path, body)
            self._send_json(status, content)

    def _token(self) -> str | None:
        authorization = self.headers.get("Authorization")
        return authorization.removeprefix("Bearer ") if authorization else None

    def _send_json(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self._send(status, headers, data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: tests look at `HubServer.requests`."""

    def _answer(self) -> None:
        hub = self.server_hub
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.requests.append(Request(self.command, path, self._token()))
        if path.startswith("/api/models/") and "/tree/" in path:
            name, _, revision = path.removeprefix("/api/models/").partition("/tree/")
            commit = hub.commit_of(name, revision) if hub.knows(name) else None
            if commit is None:
                self._fail(404, "RevisionNotFound")
            else:
                self._send_json(200, tree(hub.directory_of(name, commit)))
            return
        if path.startswith("/api/models/") and "/revision/" in path:
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            file = None
        elif "/resolve/" in path:
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
        else:
            self._fail(404, "RepoNotFound")
            return
        if not hub.knows(name):
            self._fail(401, "RepoNotFound")  # as the hub does, so as not to tell private ones
            return
        commit = hub.commit_of(name, revision)
        if commit is None:
            self._fail(404, "RevisionNotFound")
            return
        directory = hub.directory_of(name, commit)
        if file is None:
            names = sorted(path.name for path in directory.iterdir() if path.is_file())
            listing = {"id": name, "sha": commit, "siblings": [{"rfilename": n} for n in names]}
            self._send(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
            return
        fault = hub.fault_for(self.command, file)
        time.sleep(fault.stall)
        if fault.status is not None:
            self._fail(fault.status, fault.error_code, fault.headers)
            return
        target = directory / file
        if ".." in Path(file).parts or not target.is_file():
            self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content = target.read_bytes() if fault.body is None else fault.body
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha1(target.read_bytes()).hexdigest()}"',
            "Content-Length": str(len(content)),
            "Content-Type": "application/octet-stream",
        }
        headers |= fault.headers
        for header in fault.without:
            headers.pop(header, None)
        self._send(200, headers, content, cut_after=fault.cut_after)

    def _fail(self, status: int, code: str | None, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, headers | (more or {}), b"")

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, *, cut_after: int | None = None
    ) -> None:
        self.send_response(status)
        if "Content-Length" not in headers and status != 200:
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut_after is None else body[:cut_after])
        if cut_after is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
