# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Push to the Hub, in one commit: what a training, a hardening or a capture left, or the metric as a Space.

```bash
trl-sbr push --output_dir my-adapter --repo_id org/my-adapter
trl-sbr push --output_dir my-aligned --repo_id org/my-aligned
trl-sbr push --output_dir my-anchor --repo_id org/my-anchor --private
trl-sbr push --metric org/harmful_score
```
"""

import argparse
import shlex
import sys
from pathlib import Path

from trl_sbr.scripts.common import spellings


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the command line without importing anything heavy."""
    parser = argparse.ArgumentParser(
        prog="trl-sbr push",
        description="Push to the Hub, in one commit: adapter or model, tokenizer, anchor, card, report and pictures; or an "
        "anchor alone; or the metric as a Space. Never training arguments, checkpoints or data.",
        allow_abbrev=False,
    )
    parser.add_argument(
        *spellings("output_dir"),
        metavar="FOLDER",
        help="what `trl-sbr sft`, `trl-sbr harden` or `trl-sbr anchor` wrote",
    )
    parser.add_argument(*spellings("repo_id"), metavar="ORG/NAME", help="repository for it, made if need be")
    parser.add_argument("--metric", metavar="ORG/harmful_score", help="Space for the metric, instead")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument(
        *spellings("no_prompts"),
        action="store_true",
        help="leave out the anchor's prompts and token ids: nobody can then verify the model against it. What was "
        "pushed before stays in the repository's history",
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument(*spellings("create_pr"), action="store_true", help="open a pull request instead")
    parser.add_argument(*spellings("commit_message"), default="Upload with trl_sbr", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.metric is not None and (args.output_dir or args.repo_id or args.no_prompts):
        raise ValueError(
            "`--metric` pushes the metric alone: leave out `--output_dir`, `--repo_id` and `--no_prompts`."
        )
    if args.metric is None and not (args.output_dir and args.repo_id):
        raise ValueError(
            "What shall go where? Give `--output_dir FOLDER --repo_id ORG/NAME`, or `--metric ORG/harmful_score`."
        )
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.metric is not None:
        commit, check = push_metric(args, finish=f"trl-sbr push {shlex.join(argv)}"), None
    else:
        from trl_sbr.hub.folder import push_folder

        folder = Path(args.output_dir)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder `{args.output_dir}` (looked from {Path.cwd()}).")
        commit = push_folder(
            folder,
            args.repo_id,
            args.commit_message,
            with_prompts=not args.no_prompts,
            private=args.private or None,
            revision=args.revision,
            create_pr=args.create_pr,
        )
        check = None if args.no_prompts else flags_of_check(folder, args.repo_id)
    print(f"Pushed: {commit.pr_url or commit.commit_url}")
    if check is not None:
        print(f"Anybody who may read it can check it: trl-sbr anchor {check}")
    return 0


def flags_of_check(folder: Path, repo_id: str) -> str | None:
    """The flags of `trl-sbr anchor` that check what was pushed from a folder; `None` if nothing can be checked."""
    from trl_sbr.anchors.adapters import ADAPTER_CONFIG_NAME
    from trl_sbr.anchors.anchor_files import CONFIG_NAME, read_config

    if not (folder / CONFIG_NAME).is_file():
        return None
    if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG_NAME).is_file():  # fully fine-tuned
        return f"--compare {repo_id} --model_name_or_path {repo_id}"
    # A reference of `current` is the adapter before its training, which nobody can have again
    return f"--verify {repo_id}" if read_config(folder / CONFIG_NAME).reference == "base" else None


def push_metric(args: argparse.Namespace, finish: str):
    """Pushes the folder of the metric as it is."""
    from trl_sbr.hub.repository import push_files

    name = "harmful_score"
    if args.metric.split("/")[-1] != name:
        raise ValueError(
            f"`evaluate.load` looks for a script of the Space's name: expected a Space `ORG/{name}`, found `{args.metric}`."
        )
    folder = Path(__file__).parents[1] / "metrics" / name
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return push_files(
        args.metric,
        files,
        commit_message=args.commit_message,
        finish=finish,
        repo_type="space",
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
    )


if __name__ == "__main__":
    from trl_sbr.cli import main as cli

    sys.exit(cli(["push", *sys.argv[1:]]))
