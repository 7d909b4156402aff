# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from datetime import datetime

import pytest
from jinja2 import TemplateError

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.clock import CLOCK, pin_clock
from trl_sbr.anchors.prompts import encode_prompts, record_clock

from ..tiny import CHAT_TEMPLATE, build_tokenizer


# To the microsecond: what tomorrow is to a date, the next call is to it
DATED = "{{ 'Now it is ' + strftime_now('%d %b %Y %H:%M:%S.%f') + '\n' }}" + CHAT_TEMPLATE
DATED_UNLESS_TOLD = (
    "{% if date is not defined %}{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date = '26 Jul 2024' %}{% endif %}{% endif %}{{ 'Today is ' + date + '\n' }}" + CHAT_TEMPLATE
)


def dated_tokenizer(template=DATED):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def render(template, **kwargs):
    return build_tokenizer().apply_chat_template(
        [{"role": "user", "content": "Hi"}], chat_template=template, tokenize=False, **kwargs
    )


class TestPinClock:
    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ strftime_now('%d %b %Y') }}", "05 Jul 2026"),
            (
                "{{ strftime_now(format='%-d %B %Y, %A, %H:%M:%S.%f, %j') }}",
                "5 July 2026, Sunday, 00:00:00.000000, 186",
            ),
            ("{{ strftime_now('100%% on %F, not %%d') }}", "100% on 2026-07-05, not %d"),
            ("{{ strftime_now('%Y') | int + 1 }}", "2027"),
            # White space is the template's own
            ("\n\n  {{ strftime_now('%Y') }}\n  {% if true %}\n x\n  {% endif %}\n", "\n\n  2026\n x\n"),
            ("  {% if true %}{{ strftime_now('%Y') }}{% endif %}", "2026"),
            # From within a macro, and of another module's name
            ("{% macro date() %}{{ strftime_now('%Y') }}{% endmacro %}{{ date() }}", "2026"),
            ("{% for m in messages %}{{ m.content + strftime_now('%Y') }}{% endfor %}", "Hi2026"),
            ("{% if strftime_now is defined %}yes{% endif %}", "yes"),
            ("{% generation %}{{ strftime_now('%e %b') }}{% endgeneration %}", " 5 Jul"),
        ],
    )
    def test_renders_as_of_that_time(self, template, text):
        assert render(pin_clock(template, "2026-07-05")) == text

    def test_renders_now_as_transformers_does(self):
        template = "{{ strftime_now('%a %A %b %B %c %C %d %D %e %F %g %G %h %I %j %m %p %u %U %V %w %W %x %y %Y') }}"
        before, now = render(template), datetime.now().isoformat()
        assert render(pin_clock(template, now)) in (before, render(template))  # a second may begin meanwhile

    def test_what_cannot_be_pinned_raises(self):
        with pytest.raises(TemplateError, match="asked for %Q, which cannot be pinned"):
            render(pin_clock("{{ strftime_now('%Q') }}", "2026-07-05"))

    @pytest.mark.parametrize("time", ["today", "", "26 Jul 2026", 20260726.5, None])
    def test_what_is_no_time_raises(self, time):
        with pytest.raises(ValueError, match="Expected `strftime_now` in `chat_template_kwargs` to be a time"):
            pin_clock(DATED, time)


class TestRecordClock:
    def test_is_recorded_where_the_prompts_depend_on_it(self):
        recorded = record_clock(dated_tokenizer(), ["Hi"], {"x": 1})
        assert recorded["x"] == 1
        assert abs((datetime.now() - datetime.fromisoformat(recorded[CLOCK])).total_seconds()) < 60
        assert encode_prompts(dated_tokenizer(), ["Hi"], recorded) == encode_prompts(
            dated_tokenizer(), ["Hi"], recorded
        )
        assert encode_prompts(dated_tokenizer(), ["Hi"]) != encode_prompts(dated_tokenizer(), ["Hi"])

    @pytest.mark.parametrize(
        ("template", "kwargs"),
        [
            (CHAT_TEMPLATE, {}),
            (CHAT_TEMPLATE + "{# no strftime_now here #}", {}),
            (DATED_UNLESS_TOLD, {"date": "1 May 2026"}),
            (DATED, {CLOCK: "2026-07-26"}),
        ],
    )
    def test_is_left_out_elsewhere(self, template, kwargs):
        assert record_clock(dated_tokenizer(template), ["Hi"], kwargs) == kwargs

    def test_within_a_date(self):
        assert CLOCK in record_clock(dated_tokenizer(DATED_UNLESS_TOLD), ["Hi"])


class TestAnchor:
    def test_is_verified_at_any_later_time(self, refusing_model, tmp_path):
        tokenizer = dated_tokenizer()
        SafetyAnchor.capture(refusing_model, tokenizer).save_pretrained(tmp_path)
        anchor = SafetyAnchor.from_pretrained(tmp_path)
        assert anchor.verify(refusing_model, tokenizer).all_refused

    def test_as_of_a_time_that_was_asked_for(self, refusing_model):
        anchor = SafetyAnchor.capture(
            refusing_model, dated_tokenizer(), chat_template_kwargs={CLOCK: "2026-07-26T08:00"}
        )
        text = build_tokenizer().decode(anchor.input_ids[0])
        assert text.startswith("Now it is 26 Jul 2026 08:00:00.000000\n")
        assert anchor.verify(refusing_model, dated_tokenizer()).all_refused
