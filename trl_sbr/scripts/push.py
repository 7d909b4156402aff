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
from dataclasses import dataclass
from pathlib import Path


@dataclass
class PushArguments:
    """
    What to push where.

    Args:
        output_dir (`str`, *optional*):
            Folder that `trl-sbr sft`, `trl-sbr harden` or `trl-sbr anchor` wrote.
        repo_id (`str`, *optional*):
            Repository of the Hub for it, made if need be.
        metric (`str`, *optional*):
            Space of the Hub for the metric `harmful_score`, instead.
        private (`bool`, *optional*, defaults to `False`):
            Whether a repository that is made is private.
        no_prompts (`bool`, *optional*, defaults to `False`):
            Whether the anchor's prompts and token ids are left out.
        revision (`str`, *optional*):
            Branch to commit to.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead.
        commit_message (`str`, *optional*, defaults to `"Upload with trl_sbr"`):
            Message of the commit.
    """

    output_dir: str | None = None
    repo_id: str | None = None
    metric: str | None = None
    private: bool = False
    no_prompts: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str = "Upload with trl_sbr"


def parse(argv: list[str]) -> PushArguments:
    """Parses the command line without importing anything heavy."""
    parser = argparse.ArgumentParser(
        prog="trl-sbr push",
        description="Push to the Hub, in one commit: adapter or model, tokenizer, anchor, card, report and pictures; or an "
        "anchor alone; or the metric as a Space. Never training arguments, checkpoints or data.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output_dir", metavar="FOLDER", help="what `trl-sbr sft`, `trl-sbr harden` or `trl-sbr anchor` wrote"
    )
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="repository for it, made if need be")
    parser.add_argument("--metric", metavar="ORG/harmful_score", help="Space for the metric, instead")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument(
        "--no_prompts",
        action="store_true",
        help="leave out the anchor's prompts and token ids: nobody can then verify the model against it. What was "
        "pushed before stays in the repository's history",
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--commit_message", default=PushArguments.commit_message, help="default: %(default)s")
    args = PushArguments(**vars(parser.parse_args(argv)))
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
        commit, can_be_checked = push_metric(args, finish=f"trl-sbr push {shlex.join(argv)}"), False
    else:
        from trl_sbr.anchors.anchor_files import CONFIG_NAME
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
        can_be_checked = (folder / CONFIG_NAME).is_file() and not args.no_prompts
    print(f"Pushed: {commit.pr_url or commit.commit_url}")
    if can_be_checked:
        print(f"Anybody who may read it can check it: trl-sbr anchor --verify {args.repo_id}")
    return 0


def push_metric(args: PushArguments, finish: str):
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
