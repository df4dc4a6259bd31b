"""A version of the policy as a folder for other tools: a whole model in transformers' layout, or an adapter in PEFT's.

Files are copied after their hashes agreed with the run. Paths on this machine are replaced: an adapter names its base
by hub id. What is exported has a digest of its own in SHA256SUMS; the card states that of the run's version.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ruamel.yaml import YAML

from cluster.products.cards import Statement, base_model
from cluster.products.model_card import model_card
from cluster.products.model_index import Product, leaderboard_entries
from cluster.run.whole_models import merge_into
from engine.config.run import RunConfig
from engine.errors import StoreError, WeightsError
from engine.evaluation.gate import best_version
from engine.store.reader import Policy, RunReader
from engine.store.weights import CONFIG, check_base, file_digests, is_adapter, write_checksums

TEMPLATES = "additional_chat_templates"
PATH_KEYS = ("_name_or_path", "name_or_path")
"""Keys of config.json and tokenizer_config.json that may hold the folder from which a model was loaded."""


def choose_version(store: RunReader, wanted: str) -> tuple[int, str]:
    """The version that "best", "last" or a number names, and why. Raises StoreError where the run has no such one."""
    last = max(store.versions, default=0)
    if wanted == "best":
        version, reason = best_version(store)
    else:
        version, reason = (last, "the last one") if wanted == "last" else (int(wanted), "as asked")
    if version not in store.versions or last == 0:
        known = ", ".join(map(str, store.versions)) or "none"
        raise StoreError(f"{store.folder} has no version {version or 'that was trained'}; versions: {known}")
    if version == 0:
        raise StoreError(
            f"version 0 is the start model, which the run did not make ({reason}); name another one with --version"
        )
    return version, reason


def intact_policy(store: RunReader, version: int) -> Policy:
    """The version, every file confirmed by its hash. Raises WeightsError if one was changed."""
    policy = store.policy(version)
    if policy is None:
        raise WeightsError(f"weights version {version} of {store.folder} are not what was committed; run it again")
    return policy


def write_model(
    store: RunReader, config: RunConfig, version: int, target: Path, statement: Statement, merged: bool
) -> None:
    """Write version `version` with its card to the new folder `target`.

    merged: write a whole model also where the version is an adapter.
    """
    policy, start = intact_policy(store, version), intact_policy(store, 0)
    if policy.base is None:
        _copy(policy.folder, target)
    elif merged:
        check_base(policy.folder, start.digest)
        merge_into(config, start.folder, policy.folder, target)
    else:
        _copy(policy.folder, target)
        _name_base(target, base_model(config, start, statement), config)
    for name in ("config.json", "tokenizer_config.json"):
        _forget_paths(target / name)
    if not is_adapter(target):
        _write_chat_template(store, config, target)
    write_checksums(target)
    _write_cards(Product(store, config, policy, start, target, statement))


def _copy(source: Path, target: Path) -> None:
    """Copy what decides what the model computes, and nothing else that may lie in the folder."""
    target.mkdir(parents=True)
    for name in file_digests(source):
        shutil.copyfile(source / name, target / name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, target / TEMPLATES)


def _name_base(folder: Path, base: str | None, config: RunConfig) -> None:
    if base is None:
        raise StoreError(
            f"the adapter's base is the local model {config.model.path}, which nobody else can load; name it as it is "
            f"called on the hub with --base, or write a whole model with --what model"
        )
    path = folder / CONFIG
    description = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _forget_paths(path: Path) -> None:
    """Remove from a JSON file the keys by which transformers remembers where a model was loaded from."""
    if not path.is_file():
        return
    values = json.loads(path.read_text(encoding="utf-8"))
    if any(key in values for key in PATH_KEYS):
        kept = {key: value for key, value in values.items() if key not in PATH_KEYS}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_chat_template(store: RunReader, config: RunConfig, folder: Path) -> None:
    """Put the template that the run was given beside the tokenizer; it must still be the one that trained."""
    if config.model.chat_template in (None, "none"):
        return
    from actors.chat import Chat

    chat = Chat(config.model.model_copy(update={"path": str(folder)}))
    pinned = store.recorded("pinned tokenizer and chat template")
    if pinned is not None and pinned["identity"] != chat.digest:
        raise StoreError(f"model.chat_template = {config.model.chat_template} has changed since the run; restore it")
    (folder / "chat_template.jinja").write_text(chat.template or "", encoding="utf-8")


def _write_cards(product: Product) -> None:
    (product.folder / "README.md").write_text(model_card(product), encoding="utf-8")
    if entries := leaderboard_entries(product):
        folder = product.folder / ".eval_results"
        folder.mkdir()
        with (folder / "kumite.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(entries, file)
