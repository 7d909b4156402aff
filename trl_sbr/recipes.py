# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""Find the recipes that come with the package by name."""

import difflib
from pathlib import Path


def recipes_dir() -> Path:
    """The folder of the recipes: in the package as it is installed, at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of all recipes, such as `"smollm2-135m-instruct/sbr_lora"`, those in `accelerate_configs/` last."""
    folder = recipes_dir()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/*.yaml")]
    return sorted(names, key=lambda name: (name.startswith("accelerate_configs/"), name))


def find_recipe(name: str) -> Path:
    """
    The file of a recipe.

    Args:
        name (`str`):
            A name as [`~trl_sbr.recipes.recipe_names`] lists it; the ending `.yaml` may be there.
    """
    names = recipe_names()
    name = name.removesuffix(".yaml")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise ValueError(f"`{name}` is not a recipe: {hint}`trl-sbr recipes` lists them all.")
    return recipes_dir() / f"{name}.yaml"


def resolve_config(name_or_path: str) -> Path:
    """
    What `--config` means: a file that is there, or else a recipe.

    Args:
        name_or_path (`str`):
            Path of a YAML file, or the name of a recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    try:
        return find_recipe(name_or_path)
    except ValueError as error:
        raise FileNotFoundError(f"`--config {name_or_path}`: there is no such file, and {error}") from None
