# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
List, show or copy the recipes that come with the package.

```bash
trl-sbr recipes
trl-sbr recipes show smollm2-135m-instruct/sbr_lora
trl-sbr recipes copy smollm2-135m-instruct/sbr_lora my_recipe.yaml
```
"""

import argparse
import re
import sys
from pathlib import Path

from trl_sbr.recipes import find_recipe, recipe_names


METHODS = {
    "harden_lora": "LoRA",
    "sbr_lora": "LoRA",
    "sbr_qlora": "QLoRA",
    "sbr_full": "full",
    "sbr_dpo_lora": "DPO, LoRA",
    "sbr_grpo_lora": "GRPO, LoRA",
}


def print_table():
    """Prints every recipe: its name, the model, the method and the first line of the file."""
    rows = [("RECIPE", "MODEL", "METHOD", "")]
    for name in recipe_names():
        text = find_recipe(name).read_text(encoding="utf-8")
        model = re.search(r"^model_name_or_path: *(\S+)", text, re.MULTILINE)
        method = METHODS.get(name.split("/")[1], "-")
        rows.append((name, model[1] if model else "-", method, text.splitlines()[0].removeprefix("# ")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[3]]).rstrip())


def copy_recipe(name: str, destination: str | None):
    """Writes a recipe to a new file, which is never an old one."""
    source = find_recipe(name)
    path = Path(destination or ".")
    if path.suffix not in (".yaml", ".yml"):
        path = path / source.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:  # "x": never over an existing file
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise FileExistsError(f"`{path}` is there already and was left as it is: name another file.") from None
    print(f"Wrote {path}.")
    if name.startswith("accelerate_configs/"):
        print(f"Next: trl-sbr sft --accelerate_config {path} --config RECIPE --dataset_name DATASET")
    elif "/harden_" in name:
        print(f"Next: trl-sbr harden --config {path}")
    elif name.startswith("stress/"):
        print(f"Next: trl-sbr stress --config {path} --output_dir OUTPUT_DIR")
    else:
        command = next((command for command in ("dpo", "grpo") if f"/sbr_{command}_" in name), "sft")
        rewards = " --reward_funcs REWARD" if command == "grpo" else ""
        print(f"Next: trl-sbr {command} --config {path} --dataset_name DATASET{rewards}")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="trl-sbr recipes", description="List (without a word after it), show or copy the recipes of the package."
    )
    commands = parser.add_subparsers(dest="command", metavar="{show,copy}")
    show = commands.add_parser("show", help="print a recipe", description="Print a recipe.")
    show.add_argument("name", metavar="NAME", help="a name that `trl-sbr recipes` lists")
    copy = commands.add_parser(
        "copy", help="write a recipe to a new file", description="Write a recipe to a new file, to change it."
    )
    copy.add_argument("name", metavar="NAME", help="a name that `trl-sbr recipes` lists")
    copy.add_argument("destination", metavar="DEST", nargs="?", help="a .yaml file, or a folder (default: here)")
    args = parser.parse_args(argv)

    if args.command == "show":
        print(find_recipe(args.name).read_text(encoding="utf-8"), end="")
    elif args.command == "copy":
        copy_recipe(args.name, args.destination)
    else:
        print_table()
        print("\nNext: trl-sbr sft --config RECIPE --dataset_name DATASET, or `trl-sbr recipes show RECIPE` first")


if __name__ == "__main__":
    from trl_sbr.cli import main as cli

    sys.exit(cli(["recipes", *sys.argv[1:]]))
