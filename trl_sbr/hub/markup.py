# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Text of others in a model card: escaped for where it stands, so that it is read and never acted upon.

Markdown has no escape that all renderers share: an entity that stands for a character of a bare address becomes a link after
all. What is not plain words stands as code, in which nothing is markup.
"""

import json
import re
import shlex
import unicodedata
from typing import Any

import jinja2


MAX_CHARACTERS = 1000  # of one text: more is no name and no setting

# Words and numbers, with the punctuation that means nothing to Markdown and HTML ...
_PLAIN = re.compile(r"[^\W_][\w .,;%/()?'\"+–-]*")
# ... but for underscores around a word, and what could be a link: an address need not begin with https
_MARKUP = re.compile(r"(?<![^\W_])_|_(?![^\W_])|//|\.[^\W\d_]")


class Markup(str):
    """Markdown that this package wrote. All other text is escaped."""


def escape(value: Any) -> Markup:
    """
    Escape a value for a line of Markdown, or for a cell of a table.

    Args:
        value (`Any`):
            What is shown. Plain words stay as they are, as does [`Markup`].
    """
    if isinstance(value, Markup):
        return value
    text = one_line(value)
    if not text or (_PLAIN.fullmatch(text) and not _MARKUP.search(text)):
        return Markup(text)
    return code(text)


def code(value: Any, in_table: bool = True) -> Markup:
    """
    Makes a value code in a line of Markdown.

    Args:
        value (`Any`):
            What is shown.
        in_table (`bool`, *optional*, defaults to `True`):
            Whether it may stand in a table, whose cells a bar would end.
    """
    text = one_line(value)
    text = text.replace("|", "¦") if in_table else text  # renderers do not agree on how a bar in code is escaped
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}" if text else "")


def one_line(value: Any) -> str:
    """
    Brings a text on one line and to at most [`MAX_CHARACTERS`]. What is not seen, such as a mark that turns the direction of
    reading, is replaced.
    """
    text = " ".join(str(value).split())
    text = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
    return "".join(char if _is_shown(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


def _is_shown(char: str) -> bool:
    # Joiners are part of how some languages are written
    return char in "\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def render(template: str, **variables: Any) -> str:
    """
    Renders a template in which each expression is escaped, unless it is [`Markup`].

    Args:
        template (`str`):
            The Jinja template. Its filters `code`, `python` and `shell` are for values in code.
        **variables:
            Its variables.
    """
    environment = jinja2.Environment(finalize=escape, keep_trailing_newline=False)
    environment.filters |= {
        "code": code,
        "python": lambda value: Markup(json.dumps(one_line(value), ensure_ascii=False)),
        "shell": lambda value: Markup(shlex.quote(one_line(value))),
    }
    return environment.from_string(template).render(**variables)
