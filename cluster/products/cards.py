"""What the cards of models and of data sets share: what a user states, templates, and a run's settings in words.

Values from configs, data sets and models are escaped in the templates, so none of them is markup. A path on this
machine never reaches a card: a local file or folder is called by its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cluster.products.papers import papers_of
from engine.config.judge import JudgeConfig
from engine.config.run import RunConfig
from engine.config.scorer import ScorerConfig
from engine.errors import StoreError
from engine.store.reader import Policy
from engine.text import markdown, markdown_block

HUB = "https://huggingface.co/"
TEMPLATES = Path(__file__).parent / "templates"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".gz")


@dataclass(frozen=True)
class Statement:
    """What only the user can say about a product."""

    repo: str | None = None
    """Hub id under which it will be published; "{version}" in it stands for the version, so that siblings are links."""
    base: str | None = None
    """Hub id of the model that the run started from; None: model.path, where that is a hub id."""
    license: str | None = None
    """As the hub names it, e.g. "apache-2.0"."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes."""
    evaluations: tuple[Path, ...] = ()
    """Folders of `kumite eval` with more results of the run's versions."""

    def repo_of(self, version: int) -> str | None:
        """The hub id of a version; None if it is not known."""
        if self.repo is None or "{version}" not in self.repo:
            return None
        return self.repo.replace("{version}", str(version))

    @property
    def only_repo(self) -> str | None:
        """The hub id, where it is the same for all versions."""
        return None if self.repo and "{version}" in self.repo else self.repo

    def check(self) -> None:
        """Raise StoreError for ids that the hub would not accept."""
        named = {"--repo": self.repo_of(1) or self.repo, "--base": self.base}
        wrong = [f"{option} {value}" for option, value in named.items() if value and not REPO_ID.fullmatch(value)]
        if wrong:
            raise StoreError(f"{', '.join(wrong)}: not a hub id; expected NAMESPACE/NAME")


def render(template: str, content: dict[str, Any]) -> str:
    """The template with `content`; every value is shown as itself, except Markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(markdown(str(value))),
    )
    environment.filters["block"] = lambda text: Markup(markdown_block(text))
    environment.globals |= {"link": link, "code": code}
    return environment.get_template(template).render(content)


def link(text: str, url: str) -> Markup:
    """A Markdown link. url: made of a repo id or an arXiv number, which hold no markup."""
    return Markup(f"[{markdown(text)}]({url})")


def code(text: str) -> Markup:
    """`text` as inline code; as escaped text where it holds a backtick or a line end."""
    return (
        Markup(f"`{text}`") if re.fullmatch(r"[^`\x00-\x1f|]+", text) and text.isprintable() else Markup(markdown(text))
    )


def is_hub_data(source: str) -> bool:
    """Whether a source of prompts is a data set of the hub."""
    return bool(REPO_ID.fullmatch(source)) and not source.endswith(_FILES) and not Path(source).exists()


def source_names(config: RunConfig) -> list[Markup]:
    """The sources of the training prompts: links to the hub, or names of local files."""
    sources = [config.prompts.source] if isinstance(config.prompts.source, str) else config.prompts.source
    return [
        link(source, f"{HUB}datasets/{source}")
        if is_hub_data(source)
        else Markup(f"{code(Path(source).name)}, a local file")
        for source in dict.fromkeys(sources)
    ]


def hub_data_sets(config: RunConfig) -> list[str]:
    """The hub ids among the sources of the training prompts."""
    sources = [config.prompts.source] if isinstance(config.prompts.source, str) else config.prompts.source
    return [source for source in dict.fromkeys(sources) if is_hub_data(source)]


def base_model(config: RunConfig, start: Policy, statement: Statement) -> str | None:
    """Hub id of the start model: the stated one, or model.path unless that was a folder; None if it is not known.

    A folder's path is recorded with the run, and ends as model.path does; a downloaded snapshot's does not.
    """
    path = Path(config.model.path).expanduser()
    is_folder = path.is_absolute() or start.folder.parts[-len(path.parts) :] == path.parts
    named = config.model.path if REPO_ID.fullmatch(config.model.path) and not is_folder else None
    return statement.base or named


def model_name(base: str | None, config: RunConfig) -> Markup:
    """The start model as a link, or as the name of a local folder."""
    if base:
        return link(base, HUB + base)
    return Markup(f"{code(Path(config.model.path).name)}, a local model")


def scorer_name(scorer: ScorerConfig) -> str:
    """Kind and model or function of a scorer; of an LLM judge its mode too."""
    values = scorer.model_dump() | scorer.model_dump().get("server", {})
    name = str(values.get("path") or values.get("model") or values.get("function") or "the policy itself")
    short = name if REPO_ID.fullmatch(name) and not Path(name).exists() else Path(name).name
    return (
        f"{scorer.kind} ({values['mode']}, {short})" if isinstance(scorer, JudgeConfig) else f"{scorer.kind} ({short})"
    )


def settings(config: RunConfig) -> list[tuple[Markup, str]]:
    """How the answers were sampled and compared, and by which rules they were selected."""
    facts = config.algorithm.model_dump(exclude_none=True)
    algorithm = [(code(f"algorithm.{key}"), _value(value)) for key, value in facts.items()]
    if not config.algorithm.samples:
        return algorithm
    sampling = config.sampling.model_dump()
    return [*((code(f"sampling.{key}"), _value(value)) for key, value in sampling.items()), *algorithm]


def citations(config: RunConfig) -> Markup:
    """BibTeX of the papers that the run builds on, as a code block."""
    return Markup("```bibtex\n" + "\n\n".join(paper.bibtex for paper in papers_of(config)) + "\n```")


def tags(config: RunConfig, *more: str) -> list[str]:
    """Tags for the hub: what people search for."""
    return list(dict.fromkeys(["kumite", config.algorithm.name.replace("_", "-"), *more]))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
