"""The card of a preference set: README.md with the metadata by which `datasets` and the hub open the folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from cluster.products import cards
from cluster.products.cards import Statement
from cluster.products.papers import papers_of
from cluster.products.preference_rows import Layout
from cluster.products.preference_set import PreferenceSet, Split
from cluster.products.results import contamination
from engine.store.reader import Policy

MEANINGS = {
    "prompt_id": "hash of the prompt, with a number for repeated prompts",
    "prompt": "the conversation before the answer",
    "chosen": "the preferred answer",
    "rejected": "the other answer",
    "completion": "the answer",
    "label": "whether it is desirable",
    "chosen_probs": "P(chosen beats rejected)",
    "chosen_probs_win": "mean over j of P(chosen beats answer j), itself at 1/2; of a data set's pair: its label",
    "chosen_probs_lose": "the same of the rejected answer",
    "all_generated_responses": "[K] the sampled answers; in a test split the policy's and the start policy's",
    "finish_reasons": "[K] stop, or length if the length limit cut the answer",
    "seeds": "[K] of the sampling",
    "response_policy_ids": "[K] digest of the policy that gave the answer",
    "temperature": "of the sampling",
    "top_p": "of the sampling",
    "all_rm_scores": "[K] the scorer's scores; of a scorer that compares pairs: rm_scores",
    "rm_scores": "[K] mean over j of M[i][j] - M[j][i], with M the pair logits",
    "probability": "[K][K] P(answer i beats answer j)",
    "pair_logits": '[K][K] M[i][j], the scorer\'s logit of "answer i, shown first, beats answer j"',
    "verdicts": "replies of an LLM judge as they came: indices of the answers, text, value read from it",
    "judge_id": "the scorer: kind, model, prompt version, settings",
    "iteration": "counted from 1",
    "policy_id": "digest of the policy that was trained, or in a test split was measured",
    "seed": "of the run",
}
"""{column: what it holds}"""
READINGS = {
    "pairwise": "sigmoid of (M[i][j] - M[j][i]) / 2",
    "bt_aggregate": "sigmoid of the difference of rm_scores, as in SPPO's scripts",
}
"""{estimator: how it reads pair logits}"""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def dataset_card(source: PreferenceSet, splits: Sequence[Split], start: Policy, statement: Statement) -> str:
    """README.md: metadata and text."""
    from huggingface_hub import DatasetCard

    text = cards.render("dataset_card.md.j2", _content(source, splits, start, statement))
    return str(DatasetCard(f"---\n{_metadata(source, splits, statement).to_yaml()}\n---\n\n{text}"))


def _metadata(source: PreferenceSet, splits: Sequence[Split], statement: Statement) -> Any:
    """What `datasets` writes into a card when it pushes a data set, and what the hub searches by."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    num_rows, config = sum(split.num_rows for split in splits), source.config
    data = DatasetCardData(
        license=statement.license,
        language=list(statement.languages) or None,
        task_categories=["text-generation"],
        size_categories=[next((name for limit, name in SIZES if num_rows < limit), "n>10M")],
        tags=cards.tags(config, "preference", *["synthetic"] * config.algorithm.samples),
        pretty_name=_title(source, statement),
    )
    info = DatasetInfo(
        features=Features.from_arrow_schema(source.layout.schema),
        splits=SplitDict({s.name: SplitInfo(s.name, s.num_bytes, s.num_rows) for s in splits}),
        download_size=sum(split.file_bytes for split in splits),
        dataset_size=sum(split.num_bytes for split in splits),
    )
    DatasetInfosDict(default=info).to_dataset_card_data(data)
    files = [{"split": split.name, "path": f"data/{split.name}-*"} for split in splits]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return data


def _title(source: PreferenceSet, statement: Statement) -> str:
    repo = statement.only_repo
    return repo.partition("/")[2] if repo else f"{source.config.name} preferences"


def _content(source: PreferenceSet, splits: Sequence[Split], start: Policy, statement: Statement) -> dict[str, Any]:
    config, layout = source.config, source.layout
    scored = config.algorithm.needs_scorer and config.scorer is not None
    judge = config.evaluator or config.scorer
    names = list(dict.fromkeys(name for split in splits for name in split.counts))
    return {
        "title": _title(source, statement),
        "paper": papers_of(config)[0],
        "labelled": layout.labelled,
        "sampled": config.algorithm.samples,
        "splits": [(cards.code(split.name), f"{split.num_rows:,}") for split in splits],
        "evaluator": cards.scorer_name(judge) if source.tests and judge else None,
        "has_given": any(split.name == "test" for split in splits),
        "contamination": contamination(source.store, config),
        "repo": Markup(statement.only_repo or "FOLDER"),
        "first_split": Markup(splits[0].name),
        "columns": _columns(layout),
        "sources": Markup("; ").join(cards.source_names(config)),
        "base": cards.model_name(cards.base_model(config, start, statement), config),
        "scorer": cards.scorer_name(config.scorer) if scored and config.scorer else None,
        "reading": READINGS[source.estimator],
        "settings": cards.settings(config),
        "count_headings": ("split", *names),
        "counts": [(cards.code(s.name), *(f"{s.counts.get(name, 0):,}" for name in names)) for s in splits if s.counts],
        "limitations": _limitations(source),
        "citation": cards.citations(config),
    }


def _columns(layout: Layout) -> list[tuple[Markup, Markup, str]]:
    """One row per column; generate_0 ... in one row."""
    rows = []
    for field in layout.schema:
        if field.name.startswith("generate_"):
            continue
        rows.append((cards.code(field.name), _type(field.type), MEANINGS[field.name]))
    if layout.num_answers:
        kind = _type(layout.schema.field("generate_0").type)
        names = cards.code(f"generate_0 ... generate_{layout.num_answers - 1}")
        rows.append(
            (names, kind, "each sampled answer behind its prompt, as a conversation; null where there are fewer")
        )
    return rows


def _type(kind: Any) -> Markup:
    names = {"list<element: ": "list<", "list<item: ": "list<", "double": "float64"}
    text = str(kind)
    for arrow, short in names.items():
        text = text.replace(arrow, short)
    return cards.code(text)


def _limitations(source: PreferenceSet) -> list[str]:
    config = source.config
    sentences = []
    if config.algorithm.samples:
        sentences.append("The answers were sampled by a model and were not checked by people.")
    if config.algorithm.needs_scorer:
        sentences.append(
            "The verdicts are those of one scorer, with its biases; agreement with people was not measured."
        )
    if source.complete != list(range(1, config.iterations + 1)):
        done = ", ".join(map(str, source.complete))
        sentences.append(f"The run was not finished: of {config.iterations} iterations, {done} had all rows.")
    sentences.append(
        "Prompts keep the licence and the contents of their source; personal data in them was not removed."
    )
    return sentences
