# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The time that a chat template is told: a prompt that bears today's date is another one tomorrow."""

import json
from datetime import datetime
from typing import Any


# The function by which a chat template asks for the time; among the variables that it is rendered with, the answer
CLOCK = "strftime_now"

# No two of what `strftime` can write are the same at both
INSTANTS = ("1970-01-01T00:00:00", "2001-12-31T23:59:58")

_DIRECTIVES = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRSstTuUVwWxXyYzZf"]


def now() -> str:
    """The time as it is recorded: ISO 8601, local, to the second."""
    return datetime.now().isoformat(timespec="seconds")


def pin_clock(template: str, time: str) -> str:
    """
    Let a chat template see the time stand still.

    Transformers makes plain data of whatever a template is rendered with, so that no function can be handed to it: it
    gets one in its own language, a macro before its first line.

    Args:
        template (`str`):
            The chat template.
        time (`str`):
            What `strftime_now` shall take for now, in ISO 8601: `"2026-11-25"`, `"2026-11-25T16:13:04"`.

    Returns:
        `str`: The template, in which `strftime_now` is told that time.

    Raises:
        ValueError: If `time` is no such time.
    """
    try:
        instant = datetime.fromisoformat(time)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected `{CLOCK}` in `chat_template_kwargs` to be a time in ISO 8601, e.g. '2026-11-25', found {time!r}."
        ) from error
    written = {directive: instant.strftime(directive) for directive in _DIRECTIVES}
    known = {directive: text for directive, text in written.items() if not text.startswith("%")}  # by this system
    return (
        f"{{% macro {CLOCK}(format) %}}"
        "{% set text = namespace(value=format.replace('%%', '\\0')) %}"
        f"{{% for directive, written in {json.dumps(known)}.items() %}}"
        "{% set text.value = text.value.replace(directive, written) %}"
        "{% endfor %}"
        "{% if '%' in text.value %}"
        "{{ raise_exception('strftime_now is asked for ' ~ format ~ ', which cannot be pinned') }}"
        "{% endif %}"
        "{{ text.value.replace('\\0', '%') }}"
        "{% endmacro %}\n"  # which Jinja takes away
    ) + template


def template_arguments(template: str, chat_template_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """
    What `apply_chat_template` is called with, so that it renders a template with these variables.

    Args:
        template (`str`):
            The chat template in use.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Variables of the template, and the time under [`CLOCK`].
    """
    variables = dict(chat_template_kwargs or {})
    if CLOCK in variables:
        return {"chat_template": pin_clock(template, variables.pop(CLOCK)), **variables}
    return variables
