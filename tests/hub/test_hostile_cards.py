# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Cards of what a stranger wrote: whatever it says is read, and never acted upon."""

import copy
import re

import pytest
import yaml
from markdown_it import MarkdownIt

from trl_sbr.hub.cards import eval_results_yaml, render_anchor_card, render_model_card
from trl_sbr.hub.licenses import base_model_license
from trl_sbr.hub.markup import code, escape, one_line

from ..hub_server import check_metadata
from .test_cards import DEMO_REPORT, RUN, anchor_config
from .test_cards import REPORT as FULL_REPORT


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")

HOSTILE = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "image": "![x](https://evil.example/x.png)",
    "link": "[click](https://evil.example)",
    "address": "see https://evil.example/x or www.evil.example or evil.example or a@evil.example",
    "backtick": "`<b>x</b>`",
    "backticks": "``` <b>x</b> ``",
    "line break": "x\n\n# Verified\n\n<b>x</b>\n\n",
    "other line breaks": "x\r\n\r\n<b>x</b>\x0b\x85\u2028\u2029<i>",
    "fence": "x\n```\n<b>x</b>\n```\n",
    "metadata": "x\n---\nlicense: mit\n---\n",
    "cell": "a | <b>b</b> | c \\| d \\\\| e",
    "emphasis": "**x** __y__ _z_ *w* ~~v~~",
    "comment": "<!-- trl_sbr: your notes begin -->x<!-- trl_sbr: your notes end -->",
    "details": "</details></td></table><h1>x</h1>",
    "entity": "&lt;b&gt; &#60;b&#62; &amp;",
    "jinja": "{{ 7 * 7 }}{% for x in y %}{# z #}",
    "backslash": "\\`<b>x</b>\\",
    "reading direction": "\u202egnp.x\u2066",
    "yaml": "'\"}: [&a *a] !!python/object:os.system",
    "heading": "# x",
    "list": "- x",
    "mathematics": "$$x$$ \\(x\\)",
    "long": "<b>" * 10**5,
}


def skeleton(card):
    """The elements of a card in order, with the targets of its links, but for code: what a reader's browser acts on."""
    html = MARKDOWN.render(card.split("\n---\n", 1)[1])
    html = re.sub(r"<code>[^<]*</code>", "", html)  # a value in plain words, or as code
    html = re.sub(r"<!--.*?-->", "<!-->", html, flags=re.DOTALL)
    html = re.sub(r"<p>The base model is a folder.*?</p>", "", html, flags=re.DOTALL)
    return re.findall(r"<[^>]*>", html)


def text_of(card):
    """What stands outside of code."""
    return re.sub(r"<code[^>]*>[^<]*</code>|<[^>]*>", "", MARKDOWN.render(card.split("\n---\n", 1)[1]))


def paths(value, at=()):
    """The places of all strings in a record, and of the keys that are not the record's own."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from paths(item, (*at, i))
    elif isinstance(value, str):
        yield at


def replaced(record, path, text):
    record = copy.deepcopy(record)
    part = record
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = text
    return record


def renamed(record, path, text):
    """With another key in the place of the last of a path."""
    record = copy.deepcopy(record)
    part = record
    for key in path[:-1]:
        part = part[key]
    items = list(part.items())
    part.clear()
    part.update((text if key == path[-1] else key, item) for key, item in items)
    return record


RECORD = {**RUN, "base_model": {"name_or_path": "base", "revision": "main"}, "anchor": {"repo_id": "a", "commit": "b"}}
RECORD["datasets"] = [{"id": "data", "revision": "c"}]
REPORT = copy.deepcopy(FULL_REPORT)
del REPORT["models"]["sft"]["tasks"]["sst2"]  # measured on one model, so that another name makes no row more
KEYS = [("models", "sft"), ("models", "sbr", "tasks", "sst2"), ("judge", "name"), ("decoding", "strategy")]
ANCHOR = (
    "chat_template_sha256",
    "model_name_or_path",
    "model_revision",
    "reference",
    "dtype",
    "tensor_sha256",
    "prompts",
)
ANCHOR += ("autocast_dtype", "library_versions", "hidden_size")

ALL = "\n\n".join(text for name, text in HOSTILE.items() if name != "long")


def model_card(run=RECORD, config=None, report=REPORT, repo_id="org/adapter", pictures=("report.png",)):
    return render_model_card(run, repo_id, config or anchor_config(), report, "sbr", pictures)


def change_anchor(text, *fields):
    values = {"prompts": [[{"role": "user", "content": text}]], "library_versions": {text: text}}
    return anchor_config(**{"model_name_or_path": "base", **{field: values.get(field, text) for field in fields}})


def check(card, expected):
    assert skeleton(card) == skeleton(expected)
    assert check_metadata(card, "models") == ([], [])
    shown = text_of(card)
    for part in ("evil.example", "alert", "{{", "7 * 7", "\u202e", "$$"):
        assert part not in shown
    assert len(card) < 60_000


class TestEachField:
    """With all that is hostile at once."""

    @pytest.mark.parametrize("path", list(paths(RECORD)), ids=str)
    def test_record(self, path):
        check(model_card(run=replaced(RECORD, path, ALL)), model_card())

    @pytest.mark.parametrize("path", [*paths(REPORT), *KEYS], ids=str)
    def test_report(self, path):
        report = (renamed if path in KEYS else replaced)(REPORT, path, ALL)
        check(model_card(report=report), model_card())
        yaml.safe_load(eval_results_yaml(report, "sbr"))

    @pytest.mark.parametrize("told_by", [ALL, {ALL: [ALL]}])
    def test_who_told_refusals(self, told_by):
        path = ("models", "sbr", "over_refusal", "xstest")
        report = replaced(REPORT, path, {**REPORT["models"]["sbr"]["over_refusal"]["xstest"], "refusals_by": told_by})
        check(model_card(report=report), model_card())

    @pytest.mark.parametrize("key", ["judge", "decoding"])
    def test_demos_report(self, key):
        check(model_card(report={**DEMO_REPORT, key: ALL}), model_card(report=DEMO_REPORT))

    @pytest.mark.parametrize("field", ANCHOR)
    def test_anchor(self, field):
        config = change_anchor(ALL, field)
        check(model_card(config=config), model_card())
        check(render_anchor_card(config, "org/a"), render_anchor_card(change_anchor("x"), "org/a"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
class TestAllFields:
    """With one thing that is hostile, in all places at once."""

    def test_record(self, text):
        run = RECORD
        for path in paths(RECORD):
            run = replaced(run, path, text)
        check(model_card(run=run), model_card())

    def test_report(self, text):
        report = REPORT
        for path in paths(REPORT):
            report = replaced(report, path, text)
        for path in KEYS:
            report = renamed(report, path, text)
        check(model_card(report=report), model_card())
        assert eval_results_yaml(report, "sbr") is None

    def test_anchor(self, text):
        config = change_anchor(text, *ANCHOR)
        check(model_card(config=config), model_card())
        check(render_anchor_card(config, "org/a"), render_anchor_card(change_anchor("x"), "org/a"))

    def test_names(self, text):
        name = text.replace("/", "")
        card = model_card(repo_id=name, pictures=(name,))
        images = [tag for tag in skeleton(card) if tag.startswith("<img")]
        assert len(images) == 1 and 'alt="The figures above, as bars with their intervals"' in images[0]
        assert [tag for tag in skeleton(card) if tag not in images] == [
            tag for tag in skeleton(model_card()) if not tag.startswith("<img")
        ]

    def test_licence_of_the_base_model(self, text, tmp_path):
        fields = {"license": text, "license_name": text, "license_link": text}
        (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(fields)}---\n", encoding="utf-8")
        card = model_card(run=replaced(RECORD, ("base_model", "name_or_path"), str(tmp_path)))
        check(card, model_card())
        assert "license" not in yaml.safe_load(card.split("\n---\n")[0])

    def test_code_and_escape(self, text):
        for markup in (escape(text), code(text), code(text, in_table=False)):
            assert re.fullmatch(r"<code>[^<]*</code>", MARKDOWN.renderInline(markup))
            assert "\n" not in markup
        assert "|" not in escape(text)


class TestMarkup:
    @pytest.mark.parametrize(
        "text", ["a_b", "org/base", "1e-05", "steps 200, r 16", "5.23.0", "naïve 日本 50 %", "", "I'm (not)?"]
    )
    def test_plain_words_stay(self, text):
        assert escape(text) == text
        assert MARKDOWN.renderInline(text).replace("&quot;", '"') == text

    def test_joiners_of_a_language_stay(self):
        assert one_line("می\u200cخواهم") == "می\u200cخواهم"

    def test_code_is_what_it_was(self):
        for text in ("`a`", "a``b`c", "`", "``` x", "a | b"):
            assert MARKDOWN.renderInline(code(text, in_table=False)) == f"<code>{text}</code>"


class TestLicence:
    @pytest.mark.parametrize(
        "text",
        [
            "---\n\tlicense: mit\n---\n",
            "---\n- a\n---\n",
            "---\n1: 2\nlicense: [mit]\n---\n",
            "---\n" + "[" * 5000 + "\n---\n",
        ]
        + [
            "---\nlicense: &a mit\nx: *b\n---\n",
            "---\nmodel-index: 5\n---\n",
            "---\nlicense: !!python/object:os.x {}\n---\n",
        ],
    )
    def test_card_that_cannot_be_read(self, tmp_path, text):
        (tmp_path / "README.md").write_text(text)
        assert base_model_license(str(tmp_path)) == {}

    @pytest.mark.parametrize("link", ["https://example.org/a-b_c?d=e#f", "LICENSE", "LICENSE.md"])
    def test_stated(self, tmp_path, link):
        (tmp_path / "README.md").write_text(f"---\nlicense: other\nlicense_name: my-1.0\nlicense_link: {link}\n---\n")
        expected = {"license": "other", "license_name": "my-1.0", "license_link": link}
        assert base_model_license(str(tmp_path)) == expected
