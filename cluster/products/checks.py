"""Check an exported folder before it leaves this machine.

Refused are pickles, secrets, links, hidden files, paths of this machine in a card or a model's configuration, weights
that are not those in SHA256SUMS, and a card whose metadata cannot be read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.products.cards import REPO_ID
from engine.errors import KumiteError, PublishError
from engine.store.weights import CONFIG, SUMS, file_digests, tensor_shapes

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
SECRET_FILES = {
    ".env",
    ".netrc",
    ".git-credentials",
    "credentials",
    "credentials.json",
    "id_rsa",
    "id_ed25519",
    "token",
}
SECRET_SUFFIXES = {".pem", ".key", ".p12", ".pfx", ".kdbx"}
SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|AKIA[0-9A-Z]{16}"
    r"|xox[abp]-[\w-]{20,}|gsk_[A-Za-z0-9]{30,}|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""Tokens of well-known services, and private keys."""
SECRET_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
"""How the names of environment variables with secrets end."""
LOCAL_PATH = re.compile(r"(?<![\w/:.>)\]}~-])(?:~?(?:/[\w.+@-]+){2,}|[A-Za-z]:\\\w|file:/)")
VISIBLE = {".eval_results", ".gitattributes"}
"""Hidden names that belong to a repository of the hub."""
SAFE = ".safetensors"


@dataclass(frozen=True)
class Publication:
    """A folder and what it becomes on the hub."""

    folder: Path
    repo: str
    kind: Literal["model", "dataset"]
    files: tuple[tuple[str, int], ...]
    """(path, bytes), sorted by path."""

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)


def examine(folder: Path, repo: str, texts_checked: bool = False) -> Publication:
    """The folder as it may be published. Raises PublishError with everything that speaks against it.

    texts_checked: somebody looked at texts of the data that look like secrets.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder")
    problems = [] if REPO_ID.fullmatch(repo) else [f"{repo} is not a hub id; expected NAMESPACE/NAME"]
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    kind = _kind(folder)
    if kind is None:
        problems.append("it holds neither a model (config.json), nor an adapter, nor data/*.parquet")
    for path in paths:
        name = path.relative_to(folder).as_posix()
        problems += [f"{name}: {problem}" for problem in _problems_of(path, name, texts_checked)]
    problems += _problems_of_card(folder, kind)
    problems += _problems_of_weights(folder)
    if problems or kind is None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise PublishError(f"{folder} must not be published; nothing was sent:\n{listed}")
    files = tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)
    return Publication(folder, repo, kind, files)


def _kind(folder: Path) -> Literal["model", "dataset"] | None:
    if (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return "model"
    return "dataset" if any((folder / "data").glob("*.parquet")) else None


def _problems_of(path: Path, name: str, texts_checked: bool) -> Iterator[str]:
    """What speaks against one file."""
    if path.is_symlink():
        yield "a link, which may lead out of the folder; copy the file"
        return
    hidden = [part for part in Path(name).parts if part.startswith(".") and part not in VISIBLE]
    if path.name in SECRET_FILES or path.suffix in SECRET_SUFFIXES:
        yield "files of this name hold secrets"
    elif hidden:
        yield "a hidden file, which no export writes"
    if path.suffix == ".parquet":
        yield from [] if texts_checked else _secret_texts(path)
    elif path.suffix in PICKLES or (path.suffix != SAFE and _begins_as_pickle(path)):
        yield "may hold a pickle, which runs code when it is loaded"
    elif path.suffix != SAFE:
        yield from _problems_of_text(path.read_text(encoding="utf-8", errors="replace"), name)


def _begins_as_pickle(path: Path) -> bool:
    """A pickle of protocol 2 or newer, or a zip archive, which is what torch.save writes."""
    with path.open("rb") as file:
        start = file.read(4)
    return (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and len(start) > 1) or start == b"PK\x03\x04"


def _problems_of_text(text: str, name: str) -> Iterator[str]:
    if found := SECRET.search(text):
        yield f"holds what looks like a secret ({found.group()[:6]}...); remove it, and revoke it if it was real"
    for variable, value in _secrets_of_environment():
        if value in text:
            yield f"holds the value of the environment variable {variable}"
    if name in ("README.md", CONFIG, "config.json") and (found := LOCAL_PATH.search(text)):
        yield f"names a path of this machine, {found.group()!r}; name a hub id, or the file alone"
    if name == "tokenizer_config.json" and LOCAL_PATH.match(str(_json(text).get("name_or_path", ""))):
        yield "names a path of this machine in name_or_path; remove the key"


def _secrets_of_environment() -> list[tuple[str, str]]:
    """(variable, value) of the environment variables that hold secrets."""
    return [(name, value) for name, value in os.environ.items() if SECRET_NAMES.search(name) and len(value) >= 12]


def _secret_texts(path: Path) -> Iterator[str]:
    """What a table's texts hold that looks like a secret."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[str, None] = {}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    for texts in _texts(column):
                        hits = pc.filter(texts, pc.match_substring_regex(texts, _RE2_SECRET)).to_pylist()
                        matches = (SECRET.search(_decoded(text)) for text in hits)
                        starts = [f"a text in {name} looks like a secret ({m.group()[:6]}...)" for m in matches if m]
                        found |= dict.fromkeys(starts[:1])
                        for variable, value in _secrets_of_environment():
                            if pc.any(pc.match_substring(texts, value)).as_py():
                                found[f"a text in {name} holds the value of the environment variable {variable}"] = None
    except (pa.ArrowException, OSError) as error:
        yield f"not a Parquet file ({error})"
    for sentence in found:
        yield f"{sentence}; remove the row, or publish with --texts-checked once you have looked at it"


_RE2_SECRET = SECRET.pattern.replace("(?<![A-Za-z0-9])", "")
"""The same without the look-behind, which Arrow's expressions lack."""


def _texts(column: Any) -> Iterator[Any]:
    """The texts and bytes of a column at any depth of lists, maps, structs and dictionaries."""
    from pyarrow import large_binary, types

    if types.is_dictionary(column.type):
        yield from _texts(column.dictionary)
    elif types.is_struct(column.type):
        for part in column.flatten():
            yield from _texts(part)
    elif types.is_map(column.type):
        yield from (*_texts(column.keys), *_texts(column.items))
    elif types.is_nested(column.type):
        yield from _texts(column.flatten())
    elif any(is_one(column.type) for is_one in (types.is_string, types.is_large_string, types.is_string_view,
                                                types.is_binary, types.is_large_binary, types.is_binary_view,
                                                types.is_fixed_size_binary)):  # fmt: skip
        yield column.cast(large_binary())


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _problems_of_card(folder: Path, kind: str | None) -> Iterator[str]:
    from huggingface_hub import DatasetCard, ModelCard

    path = folder / "README.md"
    if not path.is_file():
        yield "README.md: the card is missing"
        return
    try:
        card = (DatasetCard if kind == "dataset" else ModelCard)(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML's errors, and ValueError for wrong metadata
        yield f"README.md: its metadata cannot be read ({error})"
        return
    if not card.data.to_dict():
        yield "README.md: it has no metadata"


def _problems_of_weights(folder: Path) -> Iterator[str]:
    """Weights that are not safetensors, files that are not those of SHA256SUMS, an adapter of an unknown base."""
    try:
        if (folder / CONFIG).is_file() or (folder / "config.json").is_file():
            tensor_shapes(folder)
    except KumiteError as error:
        yield str(error)
        return
    if (folder / SUMS).is_file():
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        actual = file_digests(folder)
        changed = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
        if changed:
            yield f"{', '.join(changed)}: not as {SUMS} says; export again"
    if (folder / CONFIG).is_file():
        base = str(_json((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path"))
        if not REPO_ID.fullmatch(base):
            yield f"{CONFIG}: base_model_name_or_path is {base!r}; export with --base NAMESPACE/NAME"


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
