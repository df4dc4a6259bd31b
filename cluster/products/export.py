"""Write the products of a run to one folder, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster.products.cards import Statement
from cluster.products.dataset_card import dataset_card
from cluster.products.model_folder import choose_version, intact_policy, write_model
from cluster.products.preference_set import PreferenceSet
from cluster.run.whole_models import read_config
from engine.config.run import RunConfig
from engine.errors import StoreError
from engine.evaluation.gate import best_version
from engine.store.disk import TEMPORARY, Disk
from engine.store.reader import RunReader
from engine.store.weights import is_adapter

What = Literal["all", "preferences", "model", "adapter"]


def export(
    run: Path,
    output: Path,
    what: What,
    statement: Statement,
    version: str = "best",
    iterations: Sequence[int] | None = None,
    estimator: str | None = None,
) -> list[str]:
    """Write to `output`, which must not exist; return a line for people about each product.

    Raises StoreError or WeightsError, and leaves nothing behind, where something is missing or was changed.
    """
    statement.check()
    if output.exists():
        raise StoreError(f"nothing was exported: {output} exists already; name a new folder")
    store = RunReader(run)
    config, disk = read_config(run), Disk()
    part = output.with_name(output.name + TEMPORARY)
    disk.remove(part)
    try:
        lines = []
        if what in ("all", "preferences"):
            source = PreferenceSet(store, config, iterations, estimator)
            folder = part / "preferences" if what == "all" else part
            lines.append(f"{_shown(folder, part, output)}: {_write_preferences(store, source, folder, statement)}")
        if what == "all" and version == "best" and max(store.versions, default=0) and best_version(store)[0] == 0:
            lines.append(f"no model: {best_version(store)[1]}; name another version with --version")
        elif what != "preferences":
            lines.append(_write_model(store, config, version, what, part, output, statement))
        disk.publish(part, output)
    finally:
        disk.remove(part)
    return lines


def _write_preferences(store: RunReader, source: PreferenceSet, folder: Path, statement: Statement) -> str:
    splits = source.write(folder)
    card = dataset_card(source, splits, intact_policy(store, 0), statement)
    (folder / "README.md").write_text(card, encoding="utf-8")
    listed = ", ".join(f"{split.name} {split.num_rows:,} rows" for split in splits)
    unfinished = source.config.iterations - len(source.complete)
    return listed + (f"; {unfinished} of {source.config.iterations} iterations are not complete" if unfinished else "")


def _write_model(
    store: RunReader, config: RunConfig, wanted: str, what: What, part: Path, output: Path, statement: Statement
) -> str:
    version, reason = choose_version(store, wanted)
    adapter = is_adapter(intact_policy(store, version).folder)
    if what == "adapter" and not adapter:
        raise StoreError(f"nothing was exported: version {version} is a whole model; use --what model")
    kind = "adapter" if adapter and what != "model" else "model"
    folder = part / kind if what == "all" else part
    write_model(store, config, version, folder, statement, merged=what == "model")
    return f"{_shown(folder, part, output)}: {kind} of version {version}, {reason}"


def _shown(folder: Path, part: Path, output: Path) -> Path:
    """The path that a folder below `part` will have."""
    return output / folder.relative_to(part)
