# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Anchors and training rows are rendered alike, in the run that captures them and in those that go on from it."""

import json
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from trl_sbr import SafetyAnchor, SBRConfig, SBRDPOConfig, SBRDPOTrainer, SBRSFTTrainer
from trl_sbr.anchors.anchor_files import CONFIG_NAME
from trl_sbr.anchors.clock import CLOCK

from ..anchors.test_clock import dated_tokenizer
from ..tiny import (
    CHAT_TEMPLATE,
    build_refusing_model,
    build_tokenizer,
    build_vision_language_model,
    conversation_rows,
)
from .any_trainer import KINDS, SETTINGS, build, preference_rows
from .test_sbr_sft_trainer import make_trainer


MOODS = "{{ 'mood ' + mood | default('none') + ', tone ' + tone | default('none') + '\n' }}" + CHAT_TEMPLATE
SAVE = {"save_strategy": "steps", "save_steps": 2}


def texts(trainer):
    return [build_tokenizer().decode(ids) for ids in trainer.train_dataset["input_ids"]]


def anchors(trainer):
    return [build_tokenizer().decode(ids) for ids in trainer.anchor.input_ids]


def dated(folder, **kwargs):
    """A trainer whose chat template writes the time, to the microsecond: what the next day is to a date."""
    tokenizer = dated_tokenizer()
    return make_trainer(folder, build_refusing_model(), processing_class=tokenizer, **SAVE, **kwargs)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Folder of a run that captured its own anchor under such a template."""
    folder = tmp_path_factory.mktemp("begun")
    dated(folder).train()
    return folder


def recorded_time(folder):
    return json.loads((folder / CONFIG_NAME).read_text())["chat_template_kwargs"][CLOCK]


class TestClock:
    def test_rows_and_anchors_are_of_one_moment(self, tmp_path):
        trainer = dated(tmp_path)
        (moment,) = {text.split("\n")[0] for text in texts(trainer) + anchors(trainer)}
        assert moment.endswith(".000000")
        assert dated(tmp_path / "other", anchor=trainer.anchor).train_dataset["input_ids"] == list(
            trainer.train_dataset["input_ids"]
        )

    @pytest.mark.parametrize("resume", [True, "checkpoint-4", "named, from elsewhere"])
    def test_run_that_captured_its_anchor_goes_on_later(self, begun, tmp_path, caplog, resume):
        checkpoint = begun / "checkpoint-2" if resume != "checkpoint-4" else begun / "checkpoint-4"
        if resume == "named, from elsewhere":
            trainer = dated(tmp_path, resume_from_checkpoint=str(checkpoint))
            resume = str(checkpoint)
        else:
            trainer = dated(begun, max_steps=5)
            resume = resume is True or str(checkpoint)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.anchor.config.chat_template_kwargs[CLOCK] == recorded_time(begun / "checkpoint-2")
        (moment,) = {text.split("\n")[0] for text in texts(trainer) + anchors(trainer)}
        assert "was rendered as of" in caplog.text

    def test_checkpoint_of_another_moment_says_so_and_its_advice_works(self, begun, tmp_path):
        with pytest.raises(
            ValueError, match="its `chat_template_kwargs` is .'strftime_now': '20.*anchor_name_or_path"
        ):
            dated(tmp_path).train(resume_from_checkpoint=str(begun / "checkpoint-2"))
        trainer = dated(tmp_path, anchor_name_or_path=str(begun / "checkpoint-2"))
        trainer.train(resume_from_checkpoint=str(begun / "checkpoint-2"))
        assert trainer.state.global_step == 4

    def test_template_that_writes_the_time_behind_a_system_prompt(self, tmp_path):
        template = (
            "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%H:%M:%S.%f') }}{% endif %}" + CHAT_TEMPLATE
        )

        def make(**kwargs):
            settings = {"processing_class": dated_tokenizer(template), "anchor_system_prompts": ["Be kind."], **SAVE}
            return make_trainer(tmp_path, build_refusing_model(), **settings, **kwargs)

        make(max_steps=2).train()
        trainer = make(max_steps=3)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.anchor.config.chat_template_kwargs[CLOCK] == recorded_time(tmp_path / "checkpoint-2")

    def test_unprotected_run_is_rendered_as_by_sfttrainer(self, tmp_path):
        trainer = dated(tmp_path, anchor_loss_coef=0.0)
        assert len({text.split("\n")[0] for text in texts(trainer)}) > 1
        trainer = dated(tmp_path, anchor_loss_coef=0.0, chat_template_kwargs={CLOCK: "2026-07-26"})
        assert {text.split("\n")[0] for text in texts(trainer)} == {"Now it is 26 Jul 2026 00:00:00.000000"}

    def test_rows_of_which_the_answers_alone_are_learned(self, tmp_path):
        answer = "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
        template = (
            "{{ 'Now it is ' + strftime_now('%H:%M:%S.%f') + '\n' }}{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
            + answer
            + "{% else %}"
            "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        tokenizer = dated_tokenizer(template)
        trainer = make_trainer(tmp_path, build_refusing_model(), processing_class=tokenizer, assistant_only_loss=True)
        assert len({text.split("\n")[0] for text in texts(trainer) + anchors(trainer)}) == 1
        learned = [token for token in trainer.train_dataset["labels"][1] if token != -100]
        assert build_tokenizer().decode(learned) == "yes<|im_end|>\n"


class TestVariables:
    def trainer(self, folder, rows=None, **kwargs):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = MOODS
        rows = Dataset.from_list(rows or conversation_rows(4))
        return make_trainer(folder, build_refusing_model(), processing_class=tokenizer, train_dataset=rows, **kwargs)

    def test_are_of_anchors_and_rows(self, tmp_path):
        trainer = self.trainer(tmp_path, chat_template_kwargs={"mood": "calm"}, **SAVE)
        assert all(text.startswith("mood calm, tone none\n") for text in texts(trainer) + anchors(trainer))
        trainer.train()
        anchor = SafetyAnchor.from_pretrained(tmp_path / "checkpoint-2")
        assert anchor.config.chat_template_kwargs == {"mood": "calm"}
        # Also those of an anchor that is given
        trainer = self.trainer(tmp_path / "other", anchor=anchor)
        assert all(text.startswith("mood calm, tone none\n") for text in texts(trainer) + anchors(trainer))

    def test_of_evaluation_rows_too(self, tmp_path):
        rows = Dataset.from_list(conversation_rows(2))
        trainer = self.trainer(tmp_path, chat_template_kwargs={"mood": "calm"}, eval_dataset=rows)
        assert build_tokenizer().decode(trainer.eval_dataset["input_ids"][0]).startswith("mood calm")

    def test_own_ones_of_a_row_come_first(self, tmp_path):
        rows = conversation_rows(2)
        rows[0]["chat_template_kwargs"] = {"mood": "gay"}
        trainer = self.trainer(tmp_path, rows, chat_template_kwargs={"mood": "calm", "tone": "low"})
        assert [text.split("\n")[0] for text in texts(trainer)] == ["mood gay, tone low", "mood calm, tone low"]

    def test_without_an_anchor(self, tmp_path):
        trainer = self.trainer(tmp_path, chat_template_kwargs={"mood": "calm"}, anchor_loss_coef=0.0)
        assert all(text.startswith("mood calm") for text in texts(trainer))

    @pytest.mark.parametrize("asked", [{"mood": "gay"}, {"mood": "calm", "tone": "low"}])
    def test_others_than_the_anchors_raise(self, tmp_path, asked):
        anchor = self.trainer(tmp_path, chat_template_kwargs={"mood": "calm"}).anchor
        with pytest.raises(ValueError, match="captured with `chat_template_kwargs` .'mood': 'calm'., found"):
            self.trainer(tmp_path, anchor=anchor, chat_template_kwargs=asked)

    def test_others_than_the_checkpoints_raise(self, tmp_path):
        self.trainer(tmp_path, chat_template_kwargs={"mood": "calm"}, **SAVE).train()
        trainer = self.trainer(tmp_path, chat_template_kwargs={"mood": "gay"})
        with pytest.raises(
            ValueError, match="its `chat_template_kwargs` is .'mood': 'calm'., this run's .'mood': 'gay'"
        ):
            trainer.train(resume_from_checkpoint=True)

    def test_another_template_than_the_checkpoints_shows_the_prompts(self, tmp_path):
        self.trainer(tmp_path, **SAVE).train()
        trainer = make_trainer(tmp_path, build_refusing_model())
        with pytest.raises(ValueError, match=r"make 'mood none, tone none\\n<.*' of a prompt .*, this run's '<"):
            trainer.train(resume_from_checkpoint=True)

    def test_are_the_same_bits_as_rows_that_name_them(self, tmp_path):
        rows = [{**row, "chat_template_kwargs": {"mood": "calm"}} for row in conversation_rows(4)]
        weights = []
        for name, given in (("ours", None), ("rows", rows)):
            kwargs = {"mood": "calm"} if given is None else None
            trainer = self.trainer(tmp_path / name, given, anchor_loss_coef=0.0, chat_template_kwargs=kwargs)
            trainer.train()
            weights.append(trainer.model.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class TestImages:
    """Rows with images, which TRL renders when they are trained on."""

    def trainer(self, folder, cls, config, template, **settings):
        tokenizer = build_tokenizer()
        images = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
        tokenizer.add_special_tokens({"extra_special_tokens": list(images.values())})
        for name, token in images.items():
            setattr(tokenizer, name, token)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
        image_processor = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
        processor = Gemma3Processor(image_processor, tokenizer, chat_template=template, image_seq_length=4)
        row = {**preference_rows(1)[0], "images": [Image.new("RGB", (28, 28))]}
        if cls is SBRSFTTrainer:
            row["completion"] = row.pop("chosen")
            del row["rejected"]
        args = config(folder, **{**SETTINGS, "max_length": None, "anchor_require_refusal": False, **settings})
        rows, peft_config = Dataset.from_list([row] * 2), LoraConfig(r=2, target_modules=["q_proj"])
        model = build_vision_language_model()
        return cls(model, args=args, train_dataset=rows, processing_class=processor, peft_config=peft_config)

    @pytest.mark.parametrize(
        ("cls", "config"), [(SBRSFTTrainer, SBRConfig), (SBRDPOTrainer, SBRDPOConfig)], ids=["sft", "dpo"]
    )
    def test_variables_that_would_reach_the_anchors_alone_raise(self, tmp_path, cls, config):
        parts = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}{{ mood | default('none') }}"
        make = partial(self.trainer, tmp_path, cls, config, anchor_prompts=["How?"])
        with pytest.raises(
            ValueError, match="rows with images, .* and {'mood': 'calm'}.* Write them into the chat temp"
        ):
            make(parts, chat_template_kwargs={"mood": "calm"})
        with pytest.raises(ValueError, match="rows with images, .* and {'strftime_now': '20"):
            make("{{ strftime_now('%Y') }}" + parts)
        trainer = make("{% set mood = 'calm' %}" + parts)
        assert trainer.anchor.config.chat_template_kwargs == {}


@pytest.mark.parametrize("kind", ["SBRDPOTrainer", "SBRGRPOTrainer"])
class TestOtherMethods:
    def prompts(self, tmp_path, kind, processing_class, **settings):
        """What begins the prompts that are trained on, and the anchors."""
        tokenizer, seen = build_tokenizer(), set()

        class Spy(KINDS[kind][0]):
            def compute_loss(self, model, inputs, *args, **kwargs):
                ids = inputs["prompt_ids" if "prompt_ids" in inputs else "input_ids"]
                seen.update(tokenizer.decode(row).replace("<pad>", "").split("\n")[0] for row in ids)
                return super().compute_loss(model, inputs, *args, **kwargs)

        trainer = build(
            kind, tmp_path, build_refusing_model(), cls=Spy, processing_class=processing_class, max_steps=2, **settings
        )
        trainer.train()
        return seen, {text.split("\n")[0] for text in anchors(trainer)}

    def test_rows_and_anchors_are_of_one_moment(self, tmp_path, kind):
        rows, held = self.prompts(tmp_path, kind, dated_tokenizer())
        assert len(rows) == 1 and rows == held

    def test_variables_are_of_anchors_and_rows(self, tmp_path, kind):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = MOODS
        rows, held = self.prompts(tmp_path, kind, tokenizer, chat_template_kwargs={"mood": "calm"})
        assert rows == held == {"mood calm, tone none"}
