"""kumite publish: upload an exported folder to the hub, when asked to and only then."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.commands.command import Command


class Publish(Command):
    name = "publish"
    summary = "upload an exported folder to the Hugging Face hub"
    description = """Create a repository on the hub, private unless --public, and upload a folder of `kumite export`
to it. The token comes from HF_TOKEN or `hf auth login`. A folder with pickles, secrets, or paths of this machine in its
card or configuration is refused. With --dry-run nothing is sent, and no token and no network are needed."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `kumite export` wrote")
        parser.add_argument("repo", metavar="REPO_ID", help="NAMESPACE/NAME")
        parser.add_argument("--dry-run", action="store_true", help="check the folder and list what would be uploaded")
        parser.add_argument("--public", action="store_true", help="everybody may read it; default: private")
        parser.add_argument(
            "--update",
            action="store_true",
            help="add a commit to a repository that exists; its data and weights are replaced",
        )
        parser.add_argument(
            "--texts-checked", action="store_true", help="publish data although a text in it looks like a secret"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        from huggingface_hub import constants

        from cluster.products.checks import examine
        from cluster.products.publication import upload

        publication = examine(arguments.folder, arguments.repo, arguments.texts_checked)
        visibility = "public" if arguments.public else "private"
        verb = "update" if arguments.update else "create"
        print(f"{verb} the {visibility} {publication.kind} {publication.repo} on {constants.ENDPOINT}")
        for name, size in publication.files:
            print(f"  {size:>15,}  {name}")
        print(f"  {publication.size:>15,}  bytes in {len(publication.files)} files")
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        print(f"published  {upload(publication, arguments.public, arguments.update)}")
        return 0
