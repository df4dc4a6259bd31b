"""A stand-in for the hub's HTTP API on this machine: create_repo, validate-yaml, preupload, LFS, commit.

It answers as huggingface_hub expects, keeps what was committed, and refuses what the hub refuses: no token, a
repository that exists, metadata that is not valid, an LFS file whose bytes never came.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub.repocard_data import model_index_to_eval_results
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

TOKEN = "hf_" + "x" * 34


@dataclass
class Repository:
    kind: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class LocalHub(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 until `close`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.loses_uploads = False
        """Whether bytes of LFS files get lost on their way."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a reply is two writes, and the second would wait 40 ms

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._note()
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+?)(?:/revision/\w+)?", self._path):
            repository = self.server.repositories.get(match[2])
            if repository is None or repository.kind != match[1]:
                self._reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            else:
                self._reply(200, {"id": match[2], "private": repository.private, "sha": "0" * 40, "siblings": []})
            return
        if match := re.fullmatch(r"/api/(?:model|dataset)s/([^/]+/[^/]+)/tree/main", self._path):
            files = self.server.repositories[match[1]].files
            self._reply(200, [{"type": "file", "path": p, "oid": "0" * 40, "size": len(b)} for p, b in files.items()])
            return
        self._reply(404, {"error": f"no GET {self.path}"})

    def do_POST(self) -> None:
        body = self._note()
        if self._path == "/api/validate-yaml":
            errors = invalid_metadata(json.loads(body)["content"], json.loads(body)["repoType"])
            self._reply(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._reply(401, {"error": "Invalid username or password."})
        elif self._path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/(?:model|dataset)s/([^/]+/[^/]+)/preupload/main", self._path):
            self._preupload(match[1], json.loads(body))
        elif match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._path):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._reply(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/(?:model|dataset)s/([^/]+/[^/]+)/commit/main", self._path):
            self._commit(match[1], [json.loads(line) for line in body.decode().splitlines()])
        else:
            self._reply(404, {"error": f"no POST {self.path}"})

    def do_PUT(self) -> None:
        body = self._note()
        if not self.server.loses_uploads:
            self.server.objects[hashlib.sha256(body).hexdigest()] = body
        self._reply(200, {})

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _note(self) -> bytes:
        """Remember the request; return its body."""
        self.server.requests.append(f"{self.command} {self._path}")
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _create(self, wish: dict[str, Any]) -> None:
        name, kind = f"{wish['organization']}/{wish['name']}", wish.get("type", "model")
        if name in self.server.repositories:
            self._reply(409, {"error": "You already created this repo"})
            return
        private = wish.get("visibility") == "private" or wish.get("private") is True
        self.server.repositories[name] = Repository(kind, private)
        prefix = "datasets/" if kind == "dataset" else ""
        self._reply(200, {"url": f"{self.server.endpoint}/{prefix}{name}"})

    def _preupload(self, name: str, wish: dict[str, Any]) -> None:
        large = (".safetensors", ".parquet")
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular", "shouldIgnore": False}
            for f in wish["files"]
        ]
        self._reply(200 if name in self.server.repositories else 404, {"files": files})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository, files, deleted = self.server.repositories[name], {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
            elif value["oid"] in self.server.objects:
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                self._reply(400, {"error": f"LFS pointer of {value['path']} without its object"})
                return
        repository.files |= files
        for path in deleted:
            del repository.files[path]
        repository.messages.append(lines[0]["value"]["summary"])
        oid = hashlib.sha1(json.dumps(sorted(repository.files)).encode()).hexdigest()
        answer = {"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True}
        self._reply(200, answer)

    def _reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def invalid_metadata(content: str, kind: str) -> list[str]:
    """Some of the checks of the hub's validate-yaml: types of known keys, and the structure of `model-index`."""
    head = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        data = YAML(typ="safe").load(head[1]) if head else None
    except YAMLError as error:
        return [f"not valid YAML: {error}"]
    if not isinstance(data, dict):
        return ["no metadata"]
    errors = [
        f'"{key}" must be a string'
        for key in ("license", "pipeline_tag", "library_name")
        if not isinstance(data.get(key, ""), str)
    ]
    codes = data.get("language") or []
    errors += [f'"language" {code} is not an ISO 639 code' for code in codes if not re.fullmatch(r"[a-z]{2,3}", code)]
    base = data.get("base_model", "some/base")
    errors += [f'"base_model" {base} is not a hub id'] * (not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base))
    if kind == "model" and "model-index" in data:
        try:
            _, results = model_index_to_eval_results(data["model-index"])
            errors += [
                f"metric {r.metric_type} has no number" for r in results if not isinstance(r.metric_value, int | float)
            ]
        except (KeyError, TypeError) as error:
            errors.append(f'"model-index" lacks {error}')
    return errors
