"""Replies of a remote server, kept by what was asked: a reply that was paid for once is not asked for again.

One file per request, named by a hash of server and request. Holds bodies of answers, never requests, headers or
keys. May be shared by processes and runs, and deleted at any time. Knows nothing of what the bodies mean.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from engine.errors import RoleError


class ReplyCache:
    """Bodies below one folder; without a folder nothing is kept."""

    def __init__(self, folder: str | None, base_url: str):
        self._folder = Path(folder) if folder else None
        self._base_url = base_url

    def get(self, request: dict[str, Any]) -> str | None:
        """The body kept for `request`; None if there is none, or none that is whole."""
        if self._folder is None:
            return None
        try:
            kept = json.loads(self._path(request).read_text(encoding="utf-8"))
            return kept["body"] if hashlib.sha256(kept["body"].encode()).hexdigest() == kept["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, request: dict[str, Any], body: str) -> None:
        """Keep `body`, all at once. Raises RoleError where the folder cannot be written."""
        if self._folder is None:
            return
        path = self._path(request)
        kept = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
        # Not engine.store.disk: several processes may write one name, and a reply that a power cut took is asked again.
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                file.write(json.dumps(kept))
            Path(file.name).replace(path)
        except OSError as error:
            raise RoleError(f"server.cache = {self._folder}: cannot be written: {error.strerror or error}") from error

    def _path(self, request: dict[str, Any]) -> Path:
        assert self._folder is not None
        text = json.dumps({"base_url": self._base_url, "request": request}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"
