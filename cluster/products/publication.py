"""Upload an examined folder to the hub.

The token comes from the environment (HF_TOKEN) or the hub's own login, never from an argument.
"""

from __future__ import annotations

from typing import Any

from cluster.products.checks import Publication
from engine.errors import KumiteError, PublishError

REPLACED = ("data/*", "*.safetensors", "*.safetensors.index.json")
"""Files of an earlier export that an update deletes where the folder no longer has them. They would be mixed with the
new ones: a data set reads every file in data/."""


def upload(publication: Publication, public: bool, update: bool) -> str:
    """Create the repository and upload the folder in one commit; return the commit's address.

    public: else the new repository is private. update: the repository exists and gets another commit. Raises
    PublishError where the hub refuses, where there is no token, and where an existing repository would show the files
    to more people than `public` says.
    """
    from huggingface_hub import DatasetCard, HfApi, ModelCard, get_token

    if get_token() is None:
        raise PublishError("no token of the hub: set HF_TOKEN, or log in with `hf auth login`; nothing was sent")
    api, kind, repo = HfApi(), publication.kind, publication.repo
    card = {"model": ModelCard, "dataset": DatasetCard}[kind].load(publication.folder / "README.md")
    try:
        _check_visibility(api, publication, public, update)
        card.validate()
        if not update:
            api.create_repo(repo, repo_type=kind, private=not public)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            folder_path=publication.folder,
            commit_message="Export of a run of Kumite",
            delete_patterns=list(REPLACED) if update else None,
        )
    except KumiteError:
        raise
    except Exception as error:  # the hub's client, its HTTP library and the card's validation each raise their own
        raise PublishError(
            f"{repo} was not published: {type(error).__name__}: {error}. If the repository was created, run the same "
            f"command again with --update"
        ) from error
    return str(commit.commit_url)


def _check_visibility(api: Any, publication: Publication, public: bool, update: bool) -> None:
    repo = publication.repo
    if not api.repo_exists(repo, repo_type=publication.kind):
        if update:
            raise PublishError(f"{repo} does not exist yet; publish it without --update")
        return
    if not update:
        raise PublishError(f"{repo} exists already; add a commit to it with --update, or name another one")
    private = bool(api.repo_info(repo, repo_type=publication.kind).private)
    if private == public:
        what, advice = ("private", "leave out --public") if private else ("public", "say so with --public")
        raise PublishError(f"{repo} is {what}, which an update does not change; {advice}, or change it on the hub")
