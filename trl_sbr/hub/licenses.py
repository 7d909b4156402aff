# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The licence of a base model, which what is made of it inherits."""

import functools
import os
import re
from pathlib import Path

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HTTPError

from ..anchors.untrusted_files import MAX_JSON_BYTES, read_text


# What the Hub takes for the licence of a card. Of a base model's card, nothing else is believed
_LICENSE_FIELDS = {
    "license": re.compile(r"[\w.+-]+", re.ASCII),
    "license_name": re.compile(r"[\w.+ -]+", re.ASCII),
    "license_link": re.compile(r"https?://[\w./%#?=&+~-]+|LICENSE(\.\w+)?", re.ASCII),
}


@functools.cache
def base_model_license(model_name_or_path: str) -> dict[str, str]:
    """
    The licence that a model's card states.

    Args:
        model_name_or_path (`str`):
            Folder or Hub id of the model.

    Returns:
        `dict[str, str]`: `license`, and `license_name` and `license_link` where they are stated. Empty if the card cannot
        be read, or states none.
    """
    try:
        if os.path.isdir(model_name_or_path):
            text = read_text(Path(model_name_or_path, "README.md"), MAX_JSON_BYTES)
            data = ModelCard(text, ignore_metadata_errors=True).data
        else:
            data = HfApi().model_info(model_name_or_path, timeout=10).card_data
    except (HTTPError, OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):  # no card that could be read
        return {}
    stated = {key: data.get(key) for key in _LICENSE_FIELDS} if data else {}
    return {
        key: value
        for key, value in stated.items()
        if isinstance(value, str) and len(value) < 300 and _LICENSE_FIELDS[key].fullmatch(value)
    }
