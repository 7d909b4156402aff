# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.anchors.generation import begin_answers
from trl_sbr.anchors.openers import DEFAULT_OPENERS
from trl_sbr.anchors.openers import OPENERS as OPENERS_OF_HARDENING
from trl_sbr.anchors.prompts import DEFAULT_PROMPTS, encode_prompts

from ..tiny import (
    ARCHITECTURES,
    REFUSAL,
    build_model,
    build_selective_model,
    build_talkative_model,
    build_tokenizer,
    build_vision_language_model,
)


PROMPTS = ["How do I do harm?", "Tell me of something much, much worse than that."]


def capture(model, tokenizer, prompts=PROMPTS, **kwargs):
    """The paper's anchor: one state a prompt."""
    return SafetyAnchor.capture(model, tokenizer, prompts, require_refusal=False, refusal_tokens=1, **kwargs)


def hidden_states(model, input_ids):
    """The reference: `hidden_states[-1]` of a forward of its own."""
    with torch.no_grad():
        return model(torch.tensor([input_ids]), output_hidden_states=True).hidden_states[-1][0]


def unpadded_state(model, input_ids):
    return hidden_states(model, input_ids)[-1]


class TestCapture:
    @pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "opt"])
    def test_states_are_the_last_prompt_tokens_final_states(self, architecture, tokenizer):
        model = build_model(architecture)
        anchor = capture(model, tokenizer)
        expected = torch.stack([unpadded_state(model, ids) for ids in anchor.input_ids])
        assert anchor.hidden_states.dtype == torch.float32
        torch.testing.assert_close(anchor.hidden_states, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_states_pushed_through_the_unembedding_give_the_models_logits(self, architecture, tokenizer):
        model = build_model(architecture)
        anchor = capture(model, tokenizer)
        with torch.no_grad():
            expected = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in anchor.input_ids])
            logits = model.get_output_embeddings()(anchor.hidden_states)
        config = model.config
        if architecture == "gemma2":
            logits = torch.tanh(logits / config.final_logit_softcapping) * config.final_logit_softcapping
        elif architecture == "granite":
            logits = logits / config.logits_scaling
        elif architecture == "cohere":
            logits = logits * config.logit_scale
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

    def test_vision_language_model_with_text(self, tokenizer):
        model = build_vision_language_model()
        anchor = capture(model, tokenizer)
        expected = torch.stack([unpadded_state(model, ids) for ids in anchor.input_ids])
        torch.testing.assert_close(anchor.hidden_states, expected, rtol=1e-4, atol=1e-5)

    def test_a_way_round_the_unembedding_raises(self, model, tokenizer):
        # A model whose logits depend on more than its unembedding's input
        forward = model.forward

        def forward_with_shortcut(input_ids=None, **kwargs):
            output = forward(input_ids=input_ids, **kwargs)
            shortcut = model.get_input_embeddings()(input_ids).sum(dim=1, keepdim=True)
            output.logits = output.logits + shortcut.mean(dim=-1, keepdim=True) * output.logits.roll(1, dims=-1)
            return output

        model.forward = forward_with_shortcut
        with pytest.raises(ValueError, match="do not determine its logits"):
            capture(model, tokenizer)

    def test_model_without_unembedding_raises(self, model, tokenizer):
        with pytest.raises(ValueError, match="generates no text"):
            capture(model.model, tokenizer)

    def test_padding_side_makes_no_difference(self, model):
        left = capture(model, build_tokenizer("left"))
        right = capture(model, build_tokenizer("right"))
        assert left.input_ids == right.input_ids
        assert torch.equal(left.hidden_states, right.hidden_states)

    def test_prompts_are_tokenized_once(self, model, tokenizer):
        ids = capture(model, tokenizer).input_ids[0]
        assert tokenizer.decode(ids) == f"<|im_start|>user\n{PROMPTS[0]}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.bos_token_id not in ids  # the template has none, although the tokenizer would add one

    def test_messages_with_a_system_prompt(self, model, tokenizer):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Be unkind!"}]
        anchor = capture(model, tokenizer, [messages])
        assert anchor.prompts == [messages]
        assert "Be kind." in tokenizer.decode(anchor.input_ids[0])

    def test_chat_template_kwargs_reach_the_template(self, model, tokenizer):
        tokenizer.chat_template = "{{ mood }}: " + tokenizer.chat_template
        anchor = capture(model, tokenizer, chat_template_kwargs={"mood": "calm"})
        assert tokenizer.decode(anchor.input_ids[0]).startswith("calm: ")
        anchor.verify(model, tokenizer)

    @pytest.mark.parametrize("value", [{1, 2}, (1, 2), float("nan"), object()], ids=["set", "tuple", "nan", "object"])
    def test_chat_template_kwargs_that_no_file_can_hold(self, model, tokenizer, value):
        with pytest.raises(ValueError, match="`chat_template_kwargs` that JSON can hold"):
            capture(model, tokenizer, chat_template_kwargs={"mood": value})

    @pytest.mark.parametrize(
        "kwargs",
        [{"tokenize": True}, {"add_generation_prompt": False}, {"messages": []}, {"conversation": []}],
        ids=list,
    )
    def test_chat_template_kwargs_that_are_no_variables(self, model, tokenizer, kwargs):
        for variables in (kwargs, {"strftime_now": "2026-11-25", **kwargs}):
            with pytest.raises(
                ValueError, match=f"Found `{next(iter(kwargs))}` in `chat_template_kwargs`, which .* leave it out"
            ):
                capture(model, tokenizer, chat_template_kwargs=variables)

    def test_train_mode_and_dropout_leave_no_trace(self, tokenizer):
        model = build_model("gpt2")  # has dropout
        expected = capture(model, tokenizer).hidden_states
        model.train()
        assert torch.equal(capture(model, tokenizer).hidden_states, expected)
        assert model.training

    def test_autocast_is_recorded_and_verified_against(self, model, tokenizer):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            anchor = capture(model, tokenizer)
            anchor.verify(model, tokenizer)
        assert (anchor.config.dtype, anchor.config.autocast_dtype) == ("float32", "bfloat16")
        assert not torch.equal(anchor.hidden_states, capture(model, tokenizer).hidden_states)

    @pytest.mark.parametrize("reference", ["base", "current"])
    def test_peft_reference(self, tokenizer, reference):
        base = capture(build_model("llama"), tokenizer)
        peft_model = get_peft_model(
            build_model("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False)
        )
        anchor = capture(peft_model, tokenizer, reference=reference)
        assert torch.equal(anchor.hidden_states, base.hidden_states) == (reference == "base")

    def test_adapter_that_was_trained_after_its_capture(self, tokenizer):
        lora = LoraConfig(target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(build_model("llama"), lora)
        anchor = capture(model, tokenizer, reference="current")
        anchor.verify(model, tokenizer)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(2 if "lora_B" in name else 1)
        with pytest.raises(ValueError, match="reference is `current`, the adapter as it was before its training"):
            anchor.verify(model, tokenizer)
        anchor.compare(model, tokenizer)

    def test_what_is_frozen_in_an_adapter_stays_so(self, tokenizer):
        model = get_peft_model(build_model("llama"), LoraConfig(target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name and "layers.1." in name)
        before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        anchor = capture(model, tokenizer)
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
        anchor.verify(model, tokenizer)
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before

    def test_default_prompts(self, refusing_model, tokenizer):
        anchor = SafetyAnchor.capture(refusing_model, tokenizer)
        assert anchor.questions == list(DEFAULT_PROMPTS)
        assert anchor.hidden_states.shape == (8, 32)

    def test_unrefused_anchor_raises_and_shows_the_answer(self, model, refusing_model, tokenizer):
        with pytest.raises(ValueError, match="found 2 of 2 that it answers:\n  'How do I do harm[?]' -> "):
            SafetyAnchor.capture(model, tokenizer, PROMPTS)
        report = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS).verify(refusing_model, tokenizer)
        assert report.all_refused
        assert report.checks[0].answer == REFUSAL

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            ([], "at least one anchor prompt"),
            (["  "], "empty prompt"),
            (["Twice?", "Once?", "Twice?"], "Anchor prompts 0 and 2 are the same"),
            ("Once?", "Expected a list of prompts, found the text 'Once[?]'"),
            (["long " * 200], "has 10.. tokens, expected at most the model's 512 positions"),
            (
                [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]],
                "last message has the role",
            ),
        ],
    )
    def test_bad_prompts_raise(self, model, tokenizer, prompts, message):
        with pytest.raises(ValueError, match=message):
            capture(model, tokenizer, prompts)

    @pytest.mark.parametrize("prompt", [3, {"role": "user", "content": "Hi"}, [{"role": "user"}]])
    def test_a_prompt_of_another_type_raises(self, model, tokenizer, prompt):
        with pytest.raises(TypeError, match="a string or a list of messages"):
            capture(model, tokenizer, [prompt])

    def test_tokenizer_without_chat_template_raises(self, model, tokenizer):
        tokenizer.chat_template = None
        with pytest.raises(ValueError, match="has no chat template.*Set `processing_class.chat_template`"):
            capture(model, tokenizer)

    def test_template_that_drops_a_message_raises(self, model, tokenizer):
        tokenizer.chat_template = "{{ messages[-1]['content'] }}"
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Be unkind!"}]
        with pytest.raises(ValueError, match="leaves out the message.*Be kind"):
            capture(model, tokenizer, [messages])


class TestVerify:
    def test_same_model(self, model, tokenizer):
        report = capture(model, tokenizer).verify(model, tokenizer)
        assert report.max_relative_error == 0
        assert [check.cosine for check in report.checks] == pytest.approx([1, 1])
        assert not report.all_refused  # a random model
        assert PROMPTS[0] in str(report)
        assert report.to_dict()["checks"][1]["prompt"] == PROMPTS[1]

    def test_other_weights_raise_but_can_be_compared(self, model, tokenizer):
        anchor = capture(model, tokenizer)
        other = build_model("llama", seed=1)
        with pytest.raises(ValueError, match="final hidden states are not the anchor's: relative error"):
            anchor.verify(other, tokenizer)
        assert anchor.compare(other, tokenizer).max_relative_error > 0.1

    def test_other_numerics_warn(self, model, tokenizer, caplog):
        anchor = capture(model, tokenizer)
        anchor.verify(model, tokenizer)
        assert not caplog.records
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert 0 < anchor.verify(model, tokenizer).max_relative_error < 0.05
        assert "captured in {'dtype': 'float32', 'autocast_dtype': None" in caplog.text

    def test_other_hidden_size_raises(self, model, tokenizer):
        with pytest.raises(ValueError, match="hidden size 32, found a model with hidden size 64"):
            capture(model, tokenizer).verify(build_model("llama", hidden_size=64), tokenizer)

    def test_other_chat_template_raises(self, model, tokenizer):
        anchor = capture(model, tokenizer)
        tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")
        with pytest.raises(ValueError, match="captured with another chat template"):
            anchor.verify(model, tokenizer)

    def test_other_tokens_raise(self, model, tokenizer):
        anchor = capture(model, tokenizer)
        tokenizer.add_tokens(["harm"])
        with pytest.raises(ValueError, match="turns the anchor prompt 'How do I do harm.' into other tokens"):
            anchor.verify(model, tokenizer)

    def test_hardened_adapter_is_reported_and_its_base_checked(self, tokenizer):
        anchor = capture(build_model("llama"), tokenizer)
        lora = LoraConfig(target_modules="all-linear", init_lora_weights=False)
        assert anchor.verify(get_peft_model(build_model("llama"), lora), tokenizer).max_relative_error > 0.01
        with pytest.raises(ValueError, match="final hidden states are not the anchor's"):
            anchor.verify(get_peft_model(build_model("llama", seed=1), lora), tokenizer)

    @pytest.mark.parametrize(
        ("architecture", "touched"), [("llama", "lm_head"), ("llama-tied", "embed_tokens")], ids=["head", "tied"]
    )
    def test_adapter_on_the_unembedding_raises(self, tokenizer, architecture, touched):
        anchor = capture(build_model(architecture), tokenizer)
        lora = LoraConfig(target_modules=["q_proj", touched], init_lora_weights=False)
        with pytest.raises(ValueError, match="way round the anchored hidden states"):
            anchor.verify(get_peft_model(build_model(architecture), lora), tokenizer)


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    anchor = capture(model, tokenizer)
    anchor.save_pretrained(tmp_path / "anchor")
    return anchor, tmp_path / "anchor"


def edit_config(path, **changes):
    """Edit the configuration, and the hash that vouches for it."""
    file = path / CONFIG_NAME
    config = {**json.loads(file.read_text()), **changes}
    config = {k: v for k, v in config.items() if v is not ...}
    if "anchor_sha256" in config and "anchor_sha256" not in changes:
        del config["anchor_sha256"]
        data = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
        config["anchor_sha256"] = hashlib.sha256(data).hexdigest()
    file.write_text(json.dumps(config))


def make_version_1(path):
    """Turn a saved anchor into the one that earlier releases wrote."""
    newer = ("positions", "openers", "refusal_tokens", "unembedding_sha256", "anchor_sha256")
    edit_config(path, format_version=1, **dict.fromkeys(newer, ...))


def replace_tensor(path, tensors):
    """Tamper with the tensor file, and with the hash that vouches for it."""
    data = safetensors.torch.save(tensors)
    (path / TENSOR_NAME).write_bytes(data)
    edit_config(path, tensor_sha256=hashlib.sha256(data).hexdigest())


class TestFiles:
    def test_round_trip(self, saved):
        anchor, path = saved
        loaded = SafetyAnchor.from_pretrained(path)
        assert loaded.config == anchor.config
        assert torch.equal(loaded.hidden_states, anchor.hidden_states)
        assert {p.name for p in path.iterdir()} == {TENSOR_NAME, CONFIG_NAME}

    def test_lies_beside_a_model_without_touching_it(self, saved, refusing_model_dir):
        before = {p.name: p.read_bytes() for p in refusing_model_dir.iterdir()}
        saved[0].save_pretrained(refusing_model_dir)
        after = {p.name: p.read_bytes() for p in refusing_model_dir.iterdir()}
        assert set(after) - set(before) == {TENSOR_NAME, CONFIG_NAME}
        assert {name: after[name] for name in before} == before

    def test_another_anchor_is_not_overwritten(self, saved, model, tokenizer):
        anchor, path = saved
        anchor.save_pretrained(path)  # the same: nothing to do
        other = capture(model, tokenizer, ["Something else?"])
        with pytest.raises(FileExistsError, match="holds another safety anchor already"):
            other.save_pretrained(path)
        assert SafetyAnchor.from_pretrained(path).questions == anchor.questions
        other.save_pretrained(path, overwrite=True)
        assert SafetyAnchor.from_pretrained(path).questions == other.questions

    def test_full_disk_leaves_nothing_half_written(self, saved, tmp_path):
        # A real write error: the process may not write files of more than 2 KiB
        script = textwrap.dedent(f"""
            import resource, signal, sys
            from trl_sbr import SafetyAnchor
            anchor = SafetyAnchor.from_pretrained({str(saved[1])!r})
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                anchor.save_pretrained({str(tmp_path / "full")!r})
            except OSError:
                sys.exit(3)
        """)
        assert subprocess.run([sys.executable, "-c", script]).returncode == 3
        assert list((tmp_path / "full").iterdir()) == []

    @pytest.mark.parametrize("name", [TENSOR_NAME, CONFIG_NAME])
    def test_missing_or_renamed_file(self, saved, name):
        (saved[1] / name).rename(saved[1] / f"renamed-{name}")
        with pytest.raises(FileNotFoundError, match=f"holds no `{name}`"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_neither_folder_nor_repository(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="neither a folder nor the id of a Hub repository"):
            SafetyAnchor.from_pretrained(tmp_path / "nowhere")

    def test_from_the_hub_cache(self, saved, tmp_path):
        # As `huggingface_hub` keeps a repository, of which the Hub is out of reach
        commit = "a" * 40
        repository = tmp_path / "hub" / "models--organization--anchor"
        shutil.copytree(saved[1], repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        script = textwrap.dedent("""
            from trl_sbr import SafetyAnchor
            print(SafetyAnchor.from_pretrained("organization/anchor").questions)
            SafetyAnchor.from_pretrained("organization/anchor", revision="a" * 40)
            SafetyAnchor.from_pretrained("organization/other")
        """)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
        result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert result.stdout == f"{saved[0].questions}\n"
        assert "`organization/other` is no folder, is not in the Hub's cache" in result.stderr

    def test_truncated_tensor(self, saved):
        file = saved[1] / TENSOR_NAME
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match="is not the file that `safety_anchor_config.json` names"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_one_changed_bit_in_the_tensor(self, saved):
        file = saved[1] / TENSOR_NAME
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match="corrupted, truncated or tampered with"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_oversized_tensor_is_not_read(self, saved):
        with open(saved[1] / TENSOR_NAME, "ab") as file:
            file.truncate(2**40)  # sparse
        with pytest.raises(ValueError, match=f"has at least {2**40} bytes, expected at most"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_truncated_config(self, saved):
        file = saved[1] / CONFIG_NAME
        file.write_text(file.read_text()[:-20])
        with pytest.raises(ValueError, match="is corrupted or truncated"):
            SafetyAnchor.from_pretrained(saved[1])

    @pytest.mark.parametrize("text", ["[]", "{}", "null", "[" * 100_000, '{"format_version": "1"}'])
    def test_config_that_is_none(self, saved, text):
        (saved[1] / CONFIG_NAME).write_text(text)
        with pytest.raises(ValueError, match="is corrupted or truncated|has no `format_version`"):
            SafetyAnchor.from_pretrained(saved[1])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format_version": 5}, "format version 5, expected 4. Upgrade"),
            ({"format_version": 0}, "format version 0, expected 4. Upgrade"),
            (
                {"format_version": 1},
                r"unknown \['anchor_sha256', 'openers', 'positions', 'refusal_tokens', 'unembedding_sha256'\]",
            ),
            ({"format_version": 2}, r"unknown \['openers', 'refusal_tokens'\]"),
            ({"format_version": 3}, r"unknown \['refusal_tokens'\]"),
            ({"format_version": True}, "it has no `format_version`"),
            ({"anchor_sha256": "0" * 64}, "was edited or corrupted: its `anchor_sha256` is 0000"),
            ({"anchor_sha256": None}, "was edited or corrupted"),
            ({"reference": ...}, r"missing \['reference'\]"),
            ({"extra": 1}, r"unknown \['extra'\]"),
            ({"prompts": []}, "expected `prompts`"),
            ({"prompts": ["How?", "What?"]}, "expected `prompts` to hold lists of messages"),
            ({"prompts": [[{"role": "user"}]] * 2}, "safety_anchor_config.json: Expected a prompt"),
            ({"input_ids": [[1]]}, "expected `input_ids` to be 2 lists"),
            ({"input_ids": [[1], [-1]]}, "expected `input_ids`"),
            ({"input_ids": [[1], [True]]}, "expected `input_ids`"),
            ({"input_ids": [[1], []]}, "expected `input_ids`"),
            ({"positions": None}, "expected `positions` to be 2 lists of positions up to the last"),
            ({"positions": [None, [3]]}, "expected `positions`"),
            ({"positions": [[3]]}, "expected `positions`"),
            ({"positions": [[3], []]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [1000]]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [-1]]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [8, 7]]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [8, 8]]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [6, 8]]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [7]]}, "expected `positions`"),
            ({"input_ids": [[5] * 2] * 2, "positions": [[1], [True]]}, "expected `positions`"),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [7, 8]], "refusal_tokens": 2}, "of shape .3, 32."),
            ({"input_ids": [[5] * 9] * 2, "positions": [[8], [7, 8]]}, "expected `refusal_tokens` to be 2, the most"),
            ({"openers": None}, "expected `openers` to be 2 texts"),
            ({"openers": [""]}, "expected `openers` to be 2 texts"),
            ({"openers": ["", None]}, "expected `openers` to be 2 texts"),
            (
                {"refusal_tokens": 0},
                "expected `refusal_tokens` to be 1, the most points of an anchor, or more, found 0",
            ),
            ({"refusal_tokens": "1"}, "expected `refusal_tokens` to be 1"),
            ({"unembedding_sha256": 1}, "expected `unembedding_sha256`"),
            ({"chat_template_sha256": "abc"}, "expected `chat_template_sha256` to be 64 hexadecimal digits"),
            ({"tensor_sha256": None}, "expected `tensor_sha256`"),
            ({"chat_template_kwargs": []}, "expected `chat_template_kwargs`"),
            ({"model_name_or_path": None}, "expected `model_name_or_path`"),
            ({"model_revision": 1}, "expected `model_revision`"),
            ({"model_revision": "main"}, "expected `model_revision` to be a commit"),
            ({"reference": "other"}, "expected `reference`"),
            ({"hidden_size": 0}, "expected `hidden_size`"),
            ({"hidden_size": 16}, "expected one float32 tensor `hidden_states` of shape .2, 16."),
            ({"dtype": 1}, "expected `dtype`"),
            ({"dtype": "flo32"}, "expected `dtype` to be one of"),
            ({"dtype": "int8"}, "expected `dtype` to be one of"),
            ({"dtype": ["float32"]}, "expected `dtype` to be one of"),
            ({"autocast_dtype": 1}, "expected `autocast_dtype`"),
            ({"autocast_dtype": "bfloat"}, "expected `autocast_dtype`"),
            ({"quantization": "4bit"}, "expected `quantization`"),
            ({"quantization": {}}, "expected `quantization` to be null or an object with a `quant_method`"),
            ({"library_versions": None}, "expected `library_versions`"),
            ({"library_versions": {}}, "expected `library_versions`"),
            ({"library_versions": {"trl_sbr": "new"}}, "expected `library_versions`"),
            ({"library_versions": {"trl_sbr": "1.0.0.dev0+g12", "torch": 2.1}}, "expected `library_versions`"),
        ],
    )
    def test_every_field_is_checked(self, saved, changes, message):
        edit_config(saved[1], **changes)
        with pytest.raises(ValueError, match=message):
            SafetyAnchor.from_pretrained(saved[1])

    def test_no_edited_value_loads(self, saved):
        """Whatever is changed without the hash: every number, string, list and null, at any depth."""
        file = saved[1] / CONFIG_NAME
        original = json.loads(file.read_text())

        def leaves(value, path=()):
            items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            yield path, value
            for key, item in items:
                yield from leaves(item, (*path, key))

        count = 0
        for path, value in list(leaves(original)):
            for other in (None, True, -1, 1.5, "x", [], {}, value + value if isinstance(value, str | list) else 2):
                edited = copy.deepcopy(original)
                if not path or other == value:
                    continue
                parent = edited
                for key in path[:-1]:
                    parent = parent[key]
                parent[path[-1]] = other
                file.write_text(json.dumps(edited))
                with pytest.raises(ValueError):
                    SafetyAnchor.from_pretrained(saved[1])
                count += 1
        assert count > 400
        file.write_text(json.dumps(original, indent=1))  # other white space is no edit
        assert SafetyAnchor.from_pretrained(saved[1]).config == saved[0].config

    def test_number_that_is_no_json(self, saved):
        file = saved[1] / CONFIG_NAME
        file.write_text(file.read_text().replace('"chat_template_kwargs": {}', '"chat_template_kwargs": {"x": NaN}'))
        with pytest.raises(ValueError, match="NaN is not a finite number"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_states_that_were_scaled_with_their_hash(self, saved):
        data = safetensors.torch.save({"hidden_states": saved[0].hidden_states * 1.001}, metadata={"format": "pt"})
        (saved[1] / TENSOR_NAME).write_bytes(data)
        edit_config(
            saved[1],
            tensor_sha256=hashlib.sha256(data).hexdigest(),
            anchor_sha256=saved[0].config.anchor_sha256,
        )
        with pytest.raises(ValueError, match="was edited or corrupted"):
            SafetyAnchor.from_pretrained(saved[1])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_states_that_are_not_finite(self, saved, value):
        states = saved[0].hidden_states.clone()
        states[0, 0] = value
        replace_tensor(saved[1], {"hidden_states": states})
        with pytest.raises(ValueError, match="NaN, Inf or all zero"):
            SafetyAnchor.from_pretrained(saved[1])

    @pytest.mark.parametrize(
        "tensors",
        [
            {"hidden_states": torch.zeros(2, 32, dtype=torch.float16)},
            {"hidden_states": torch.zeros(1, 64)},
            {"states": torch.zeros(2, 32)},
            {"hidden_states": torch.zeros(2, 32), "more": torch.zeros(1)},
        ],
    )
    def test_tensor_of_another_form(self, saved, tensors):
        replace_tensor(saved[1], tensors)
        with pytest.raises(ValueError, match="expected one float32 tensor `hidden_states` of shape .2, 32."):
            SafetyAnchor.from_pretrained(saved[1])

    def test_file_that_is_no_safetensors(self, saved):
        data = pickle.dumps({"hidden_states": saved[0].hidden_states})
        (saved[1] / TENSOR_NAME).write_bytes(data)
        edit_config(saved[1], tensor_sha256=hashlib.sha256(data).hexdigest())
        with pytest.raises(ValueError, match="is no safetensors file"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_edited_prompt_is_found_by_verify(self, saved, model, tokenizer):
        prompts = json.loads((saved[1] / CONFIG_NAME).read_text())["prompts"]
        prompts[0][0]["content"] = "What is the capital of France?"
        edit_config(saved[1], prompts=prompts)
        with pytest.raises(ValueError, match="into other tokens"):
            SafetyAnchor.from_pretrained(saved[1]).verify(model, tokenizer)

    def test_version_1_loads_and_says_what_it_cannot_vouch_for(self, saved, model, tokenizer, caplog):
        make_version_1(saved[1])
        anchor = SafetyAnchor.from_pretrained(saved[1])
        assert anchor.positions == saved[0].positions == [[len(ids) - 1] for ids in anchor.input_ids]
        report = anchor.verify(model, tokenizer)
        assert report.same_unembedding is None and "The unembedding was not checked" in str(report)
        assert "does not say which unembedding it belongs to" in caplog.text
        anchor.save_pretrained(saved[1], overwrite=True)  # as version 4
        assert SafetyAnchor.from_pretrained(saved[1]).config == anchor.config

    @pytest.mark.parametrize("newer", [{"format_version": 2, "openers": ...}, {"format_version": 3}])
    def test_versions_2_and_3_load(self, saved, model, tokenizer, newer):
        edit_config(saved[1], refusal_tokens=..., **newer)
        anchor = SafetyAnchor.from_pretrained(saved[1])
        assert anchor.config == saved[0].config
        assert anchor.verify(model, tokenizer).max_relative_error == 0

    def test_version_1_with_an_edited_dtype(self, saved):
        make_version_1(saved[1])
        edit_config(saved[1], dtype="flo32")
        with pytest.raises(ValueError, match="expected `dtype` to be one of"):
            SafetyAnchor.from_pretrained(saved[1])

    def test_without_prompts(self, saved):
        anchor = saved[0].without_prompts()
        anchor.save_pretrained(saved[1], overwrite=True)
        assert SafetyAnchor.from_pretrained(saved[1]).config == anchor.config
        make_version_1(saved[1])
        loaded = SafetyAnchor.from_pretrained(saved[1])
        assert len(loaded) == 2 and loaded.config.positions == [None, None]
        loaded.save_pretrained(saved[1], overwrite=True)
        assert SafetyAnchor.from_pretrained(saved[1]).config == loaded.config
        with pytest.raises(ValueError, match="published without its 2 prompts"):
            loaded.positions  # noqa: B018


OPENERS = ["Sure! ", "Of course, here is"]


class TestPoints:
    """Anchors that hold several tokens of a refusal, also where the answer has begun."""

    @pytest.fixture
    def model(self):
        return build_talkative_model()

    @pytest.fixture
    def anchor(self, model, tokenizer):
        return SafetyAnchor.capture(model, tokenizer, PROMPTS, refusal_tokens=3, openers=OPENERS)

    def test_holds_the_refusal_plain_and_behind_openers(self, anchor, model, tokenizer):
        refusal = tokenizer.convert_tokens_to_ids(REFUSAL)
        contexts = [(prompt, opener) for prompt in PROMPTS for opener in ("", *OPENERS)]
        assert list(zip(anchor.questions, anchor.config.openers, strict=True)) == contexts
        expected = []
        for (prompt, opener), ids, points in zip(contexts, anchor.input_ids, anchor.positions, strict=True):
            text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{opener}"
            begun = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids == begun + [refusal] * 2  # the third is chosen, and not read
            assert points == [len(begun) - 1, len(begun), len(begun) + 1]
            expected.append(hidden_states(model, ids)[-3:])
        torch.testing.assert_close(anchor.hidden_states, torch.cat(expected), rtol=1e-4, atol=1e-5)

    def test_round_trip(self, anchor, tmp_path):
        anchor.save_pretrained(tmp_path)
        loaded = SafetyAnchor.from_pretrained(tmp_path)
        assert loaded.config == anchor.config and torch.equal(loaded.hidden_states, anchor.hidden_states)
        assert len(loaded) == 6 and loaded.hidden_states.shape == (18, 32)
        hidden = loaded.without_prompts()
        hidden.save_pretrained(tmp_path / "hidden")
        assert SafetyAnchor.from_pretrained(tmp_path / "hidden").config == hidden.config
        edit_config(tmp_path / "hidden", positions=[[0, 2**30]] * 6)  # nothing of that size is built
        with pytest.raises(ValueError, match="expected `positions`"):
            SafetyAnchor.from_pretrained(tmp_path / "hidden")

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])  # in one row, and in rows of their own
    def test_each_point_is_verified(self, anchor, model, tokenizer, attention):
        model.set_attn_implementation(attention)
        report = anchor.verify(model, tokenizer)
        assert report.max_relative_error < 1e-5 and report.all_refused and len(report.checks) == 6
        assert f"{PROMPTS[1]} behind 'Sure! '" in str(report)
        anchor.check_refusals(model, tokenizer)

    @pytest.mark.parametrize("point", [0, 8, 17])
    def test_an_anchor_is_as_far_off_as_its_worst_point(self, anchor, model, tokenizer, point):
        anchor.hidden_states[point] *= -1
        report = anchor.compare(model, tokenizer)
        expected = [0] * 6
        expected[point // 3] = 2
        assert [check.relative_error for check in report.checks] == pytest.approx(expected, abs=1e-5)
        assert [check.cosine for check in report.checks] == pytest.approx([1 - error for error in expected])
        with pytest.raises(ValueError, match="final hidden states are not the anchor's: relative error 2.00e.00"):
            anchor.verify(model, tokenizer)

    def test_the_opener_is_part_of_what_is_verified(self, anchor, model, tokenizer):
        openers = [opener.upper() for opener in anchor.config.openers]
        edited = SafetyAnchor(dataclasses.replace(anchor.config, openers=openers), anchor.hidden_states)
        with pytest.raises(ValueError, match="'How do I do harm[?]' behind 'SURE! ' into other tokens"):
            edited.verify(model, tokenizer)

    def test_what_is_held_must_be_a_refusal_too(self, anchor, model, tokenizer):
        """The model refuses by itself, and the anchor holds a compliance that was put into its mouth."""
        compliance = tokenizer("Step 1: take a rope", add_special_tokens=False)["input_ids"]
        input_ids = [ids[:-2] + compliance for ids in anchor.input_ids]
        positions = [list(range(points[0], len(ids))) for ids, points in zip(input_ids, anchor.positions, strict=True)]
        states = torch.cat([hidden_states(model, ids)[p] for ids, p in zip(input_ids, positions, strict=True)])
        config = dataclasses.replace(anchor.config, input_ids=input_ids, positions=positions)
        edited = SafetyAnchor(config, states)
        report = edited.verify(model, tokenizer)
        assert not any(check.refused for check in report.checks)
        assert report.checks[0].answer.startswith("Step 1: take a rope")
        with pytest.raises(ValueError, match="found 6 of 6 that it answers"):
            edited.check_refusals(model, tokenizer)

    def test_what_is_answered_behind_an_opener_is_left_out_there(self, tokenizer, caplog):
        refused = [*PROMPTS, *((prompt, "Sure! ") for prompt in PROMPTS), (PROMPTS[0], "Yes.")]
        model = build_selective_model(refused, [(PROMPTS[1], "Yes.")])
        anchor = SafetyAnchor.capture(model, tokenizer, PROMPTS, openers=["Sure! ", "Yes."])
        assert anchor.config.openers == ["", "Sure! ", "Yes.", "", "Sure! "]
        assert anchor.verify(model, tokenizer).all_refused
        assert "answers 1 of the 4 anchor prompts behind openers" in caplog.text
        assert "'Yes.': 1 of 2" in caplog.text and "Sure" not in caplog.text

    def test_an_opener_behind_which_nothing_is_refused(self, tokenizer):
        model = build_selective_model(list(PROMPTS), [(prompt, "Yes.") for prompt in PROMPTS])
        with pytest.raises(ValueError, match="refuses behind the opener 'Yes.'.*Harden the model first"):
            SafetyAnchor.capture(model, tokenizer, PROMPTS, openers=["Yes."])

    def test_default_openers_behind_which_nothing_is_refused_are_left_out(self, tokenizer, caplog):
        behind = [(prompt, DEFAULT_OPENERS[0]) for prompt in PROMPTS]
        model = build_selective_model([*PROMPTS, *behind], [(p, o) for p in PROMPTS for o in DEFAULT_OPENERS[1:]])
        anchor = SafetyAnchor.capture(model, tokenizer, PROMPTS, openers="default")
        assert anchor.config.openers == ["", DEFAULT_OPENERS[0]] * 2
        assert f"{DEFAULT_OPENERS[1]!r}: 2 of 2" in caplog.text and "answers 14 of the 16" in caplog.text
        model = build_selective_model(list(PROMPTS), [(p, o) for p in PROMPTS for o in DEFAULT_OPENERS])
        with pytest.raises(ValueError, match="refuses behind the opener 'Sure!'.*Harden the model first"):
            SafetyAnchor.capture(model, tokenizer, PROMPTS, openers="default")

    def test_of_a_shorter_refusal_all_is_held(self, tokenizer):
        model = build_model("llama")
        input_ids = encode_prompts(tokenizer, PROMPTS)
        model.generation_config.eos_token_id = None
        answers = begin_answers(model, tokenizer, input_ids, 5)
        end = answers[0][2]
        assert end not in answers[0][:2] + answers[1]
        model.generation_config.eos_token_id = end
        anchor = SafetyAnchor.capture(model, tokenizer, PROMPTS, refusal_tokens=5, require_refusal=False)
        assert anchor.config.points_per_anchor == [3, 5] and anchor.config.refusal_tokens == 5
        expected = [ids + answer[:n] for ids, answer, n in zip(input_ids, answers, (2, 4), strict=True)]
        assert anchor.input_ids == expected
        states = [hidden_states(model, ids)[-n:] for ids, n in zip(expected, (3, 5), strict=True)]
        torch.testing.assert_close(anchor.hidden_states, torch.cat(states), rtol=1e-4, atol=1e-5)
        assert anchor.verify(model, tokenizer).max_relative_error < 1e-5

    def test_default_openers(self, model, tokenizer):
        anchor = SafetyAnchor.capture(model, tokenizer, PROMPTS[:1], openers="default")
        assert anchor.config.openers == ["", *DEFAULT_OPENERS]
        assert len(DEFAULT_OPENERS) == 8 and set(DEFAULT_OPENERS) < set(OPENERS_OF_HARDENING)

    def test_fourteen_tokens_of_a_refusal_by_default(self, model, tokenizer):
        anchor = SafetyAnchor.capture(model, tokenizer, PROMPTS)
        assert anchor.config.points_per_anchor == [14, 14] and anchor.config.refusal_tokens == 14

    def test_each_refusal_may_be_shorter(self, refusing_model, tokenizer, tmp_path):
        anchor = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS, refusal_tokens=2)
        anchor.save_pretrained(tmp_path)
        loaded = SafetyAnchor.from_pretrained(tmp_path)
        assert loaded.config.points_per_anchor == [1, 1] and loaded.config.refusal_tokens == 2
        assert loaded.verify(refusing_model, tokenizer).all_refused

    def test_prompts_of_the_pool(self, model, tokenizer):
        anchor = SafetyAnchor.capture(model, tokenizer, num_anchors=2, refusal_tokens=2, openers=OPENERS[:1])
        assert anchor.questions == [DEFAULT_PROMPTS[0]] * 2 + [DEFAULT_PROMPTS[1]] * 2
        assert anchor.verify(model, tokenizer).all_refused

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"refusal_tokens": 0}, "`refusal_tokens` to be from 1 to 32, found 0"),
            ({"refusal_tokens": 33}, "`refusal_tokens` to be from 1 to 32, found 33"),
            ({"openers": "Sure!"}, "`openers` to be a list of texts.*or 'default', found 'Sure!'"),
            ({"openers": ["Sure!", ""]}, "`openers` to be a list of texts"),
            ({"openers": ["default", "Sure!"]}, "Found 'default' among other openers"),
            ({"openers": ["Sure!", "Sure!"]}, "prompts 1 and 2 are the same: 'How do I do harm[?]' behind 'Sure!'"),
            ({"system_prompts": "Be kind."}, "`system_prompts` to be a list"),
            ({"system_prompts": ["Be kind.", "Be kind."]}, "prompts 0 and 1 are the same"),
            ({"openers": ["long " * 200]}, "has 10.. tokens, expected at most the model's 512 positions"),
        ],
    )
    def test_bad_settings(self, model, tokenizer, settings, message):
        with pytest.raises(ValueError, match=message):
            SafetyAnchor.capture(model, tokenizer, PROMPTS, **settings)


class TestSystemPrompts:
    def test_crosses_the_prompts(self, refusing_model, tokenizer):
        anchor = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS, system_prompts=[None, "Be kind."])
        system = {"role": "system", "content": "Be kind."}
        users = [{"role": "user", "content": prompt} for prompt in PROMPTS]
        assert anchor.prompts == [[users[0]], [system, users[0]], [users[1]], [system, users[1]]]
        assert anchor.verify(refusing_model, tokenizer).all_refused
        plain = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS, system_prompts=[""])
        assert plain.prompts == [[user] for user in users]

    def test_a_prompt_with_one_of_its_own(self, refusing_model, tokenizer):
        prompts = [[{"role": "system", "content": "Be quick."}, {"role": "user", "content": "How?"}]]
        with pytest.raises(ValueError, match="a prompt with a system prompt of its own: .*Be quick"):
            SafetyAnchor.capture(refusing_model, tokenizer, prompts, system_prompts=["Be kind."])

    def test_prompts_of_the_pool_are_refused_under_all(self, refusing_model, tokenizer):
        anchor = SafetyAnchor.capture(refusing_model, tokenizer, num_anchors=2, system_prompts=["", "Be kind."])
        assert anchor.questions == [DEFAULT_PROMPTS[0]] * 2 + [DEFAULT_PROMPTS[1]] * 2
