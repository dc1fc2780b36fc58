"""The part of the hub's protocol that uploads use, for `tests.hubserver`.

Making a repository, asking how files are to be sent (all of them inside the commit, base64), and
the commit itself: lines of JSON.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.hubserver import HubServer

Answer = tuple[int, dict[str, Any]]


def answer_post(hub: HubServer, path: str, body: bytes) -> Answer:
    """Status and JSON of the answer to a POST."""
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        known = hub.knows(name)
        if not known:
            hub.push(name, Path(tempfile.mkdtemp(dir=hub.uploads)))
        return 409 if known else 200, {"url": f"{hub.url}/{name}", "error": "it exists already"}
    name, _, rest = path.removeprefix("/api/models/").partition("/preupload/")
    if rest:
        files = json.loads(body)["files"]
        modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
        return 200, {"files": modes}
    name, _, branch = path.removeprefix("/api/models/").partition("/commit/")
    if not branch or not hub.knows(name):
        return 404, {"error": "no such place"}
    return 200, _commit(hub, name, branch, [json.loads(line) for line in body.splitlines()])


def _commit(hub: HubServer, name: str, branch: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    before = hub.commit_of(name, branch)
    directory = Path(tempfile.mkdtemp(dir=hub.uploads))
    if before is not None:
        shutil.copytree(hub.directory_of(name, before), directory, dirs_exist_ok=True)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            target = directory / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(base64.b64decode(value["content"]))
        elif line["key"] == "deletedFile":
            (directory / value["path"]).unlink()
        else:
            hub.messages.append(value["summary"])
    commit = hub.push(name, directory, branch=branch)
    return {
        "success": True,
        "commitOid": commit,
        "commitUrl": f"{hub.url}/{name}/commit/{commit}",
        "hookOutput": "",
    }


def tree(directory: Path) -> list[dict[str, Any]]:
    """The listing of a commit's files."""
    return [
        {
            "type": "file",
            "path": str(p.relative_to(directory)),
            "size": p.stat().st_size,
            "oid": "0",
        }
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    ]
