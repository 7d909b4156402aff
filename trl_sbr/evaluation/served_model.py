# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Asking a model behind an OpenAI-compatible server, which formats the prompts with its own chat template."""

from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..judges.endpoint_client import Completion, EndpointClient, EndpointError
from .models import ModelEntry
from .responses import ResponseFile, Series, conversation, row_of


_ANSWER_SECONDS = 600.0  # for a whole answer of some hundred tokens, also of a slow server


def ask_served_model(
    entry: ModelEntry, series: Series, responses: ResponseFile, progress: Callable[[int, int], None]
) -> None:
    """
    Answer a series, as far as its answers are not there already. One process asks, and the others are told.

    Args:
        entry ([`ModelEntry`]):
            The model, with its `endpoint`.
        series ([`Series`]):
            What to ask.
        responses ([`ResponseFile`]):
            Where the answers are kept, as they come.
        progress (`Callable[[int, int], None]`):
            Called with the number of prompts answered, and of all.

    Raises:
        EndpointError: If a question gets no answer, or its text is kept back, or the server cannot go on with an answer that is
            begun for the model.
    """
    known = responses.of(entry.name, series.kind, series.name)
    progress(len(known), len(series.prompts))
    if PartialState().is_main_process:
        client = EndpointClient(entry.model_name_or_path, entry.endpoint, timeout=_ANSWER_SECONDS)
        bodies = {i: _body(client, series, i) for i in range(len(series.prompts)) if i not in known}
        begun = next((body for i, body in bodies.items() if series.prefill_of(i)), None)
        if begun is not None:
            _check_goes_on(client, begun)

        def keep(i: int, completion: Completion) -> None:
            if completion.text is None:  # nobody can judge what he does not see; an empty answer is the model's own
                raise EndpointError(
                    f"{client.base_url} answered with no text (`content: null`), expected one, to "
                    f"{series.prompts[i]!r:.200}. If the model thinks longer than {series.max_new_tokens} tokens, raise "
                    "`--max_new_tokens`, or turn thinking off with `--chat_template_kwargs`; if a filter keeps the answer back, turn "
                    "it off, or leave the prompt out."
                )
            answer = completion.text.strip()
            responses.append([row_of(entry.name, series, i, answer)])
            known[i] = answer
            progress(len(known), len(series.prompts))

        client.ask(bodies, keep)
    known.update(broadcast_object_list([known])[0])


def _body(client: EndpointClient, series: Series, index: int) -> dict:
    messages = conversation(series, series.prompts[index])
    prefill = series.prefill_of(index)
    if not prefill:
        return client.body(series.max_new_tokens, series.chat_template_kwargs, messages=messages)
    return client.body(
        series.max_new_tokens,
        series.chat_template_kwargs,
        messages=[*messages, {"role": "assistant", "content": prefill}],
        add_generation_prompt=False,
        continue_final_message=True,
    )


def _check_goes_on(client: EndpointClient, body: dict) -> None:
    """
    Make sure that the server lets the model go on with the last message: a server that passes over what it does not know ends
    that message and begins another, which makes its prompt longer than one that is left open.
    """
    begun = {**body, "max_tokens": 1}
    ended = {
        name: value for name, value in begun.items() if name not in ("add_generation_prompt", "continue_final_message")
    }
    lengths = {}
    try:
        client.ask({"begun": begun, "ended": ended}, lambda key, found: lengths.update({key: found.prompt_tokens}))
    except EndpointError as error:
        raise EndpointError(
            f"The server does not take a question with an answer that is begun for the model. {error}"
        ) from error
    if None in lengths.values() or lengths["begun"] >= lengths["ended"]:
        raise EndpointError(
            f"{client.base_url} does not show that it goes on with an answer that is begun for the model: with "
            f"`continue_final_message` its prompt has {lengths['begun']} tokens and without it {lengths['ended']} "
            "(`usage.prompt_tokens`), expected fewer with it, as of vLLM. Leave out `--prefill`, or load the model here, with "
            "`--model_name_or_path`."
        )
