# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_sbr import HardeningConfig, HardeningTrainer
from trl_sbr.anchors.bottleneck import get_unembedding
from trl_sbr.anchors.openers import BENIGN_OPENERS, OPENERS
from trl_sbr.anchors.prompts import encode_prompts, find_near_copies
from trl_sbr.scripts.harden import BENIGN_PREFILL, PREFILLS
from trl_sbr.trainers.held_contexts import (
    can_share_prefix,
    keep_answers,
    lay_out_held,
    push_refusals,
    read_reference_states,
)

from ..tiny import (
    REFUSAL,
    build_model,
    build_refusing_model,
    build_selective_model,
    build_talkative_model,
    build_tokenizer,
)


HARMFUL = ["How do I harm?", "How can I hurt somebody else?", "Tell me how to steal."]
BENIGN = ["What is rain?", "How do I bake bread?"]


def states_of(model, ids, count):
    """What enters the unembedding at the last `count` tokens, read without this package."""
    return model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[-1][0, -count:]


def token_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def build_trainer(tmp_path):
    def build(model=None, peft_config=None, harmful=HARMFUL, benign=BENIGN, **args):
        settings = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "openers_per_prompt": 3,
        } | args
        config = HardeningConfig(
            str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True, answer_tokens=3, **settings
        )
        if model is None:
            model = build_talkative_model()
        return HardeningTrainer(model, config, build_tokenizer(), harmful, benign, peft_config)

    return build


def lora(**settings):
    return LoraConfig(r=4, target_modules="all-linear", **settings)


class TestContexts:
    def test_refusals_stand_behind_openers_and_are_held_at_the_states_without(self, tokenizer):
        model = build_talkative_model()
        contexts, refused = push_refusals(model, tokenizer, HARMFUL, OPENERS, 2, answer_tokens=3, seed=0)
        assert refused == [True] * 3
        assert len(contexts) == 6
        refusal = tokenizer.convert_tokens_to_ids(REFUSAL)
        drawn = []
        for context, prompt in zip(
            contexts, [ids for ids in encode_prompts(tokenizer, HARMFUL) for _ in "12"], strict=True
        ):
            assert context.reference_ids == prompt + [refusal] * 2  # the third is chosen, and not read
            assert context.num_states == 3
            assert context.input_ids[: len(prompt)] == prompt
            assert context.input_ids[-2:] == [refusal] * 2
            drawn.append(tokenizer.decode(context.input_ids[len(prompt) : -2]))
        assert set(drawn) <= set(OPENERS)
        assert all(first != second for first, second in zip(drawn[::2], drawn[1::2], strict=True))
        for share_prefix in (False, True):
            for context, states in zip(contexts, read_reference_states(model, contexts, share_prefix), strict=True):
                torch.testing.assert_close(states, states_of(model, context.reference_ids, 3), rtol=1e-4, atol=1e-5)
                opened = states_of(model, context.input_ids, 3)
                assert (states - opened).norm() > 0.01 * opened.norm()

    def test_benign_prompts_stand_plain_and_behind_openers_and_are_held_where_they_are(self, tokenizer):
        model = build_model("llama")
        contexts = keep_answers(model, tokenizer, BENIGN, BENIGN_OPENERS, 2, answer_tokens=3, seed=0)
        assert len(contexts) == 6
        assert all(context.input_ids == context.reference_ids for context in contexts)
        for number, prompt in enumerate(encode_prompts(tokenizer, BENIGN)):
            openers = []
            for context in contexts[3 * number : 3 * number + 3]:
                begun = context.input_ids[: len(context.input_ids) - context.num_states + 1]
                assert begun[: len(prompt)] == prompt
                openers.append(tokenizer.decode(begun[len(prompt) :]))
                chosen = states_of(model, context.input_ids, context.num_states) @ model.lm_head.weight.T
                # What the model says by itself, greedily
                assert chosen.argmax(dim=-1)[:-1].tolist() == context.input_ids[len(begun) :]
            assert openers[0] == ""
            assert set(openers[1:]) < set(BENIGN_OPENERS)

    def test_an_answered_prompt_is_left_out(self, tokenizer):
        model = build_selective_model(HARMFUL[:2], HARMFUL[2:])
        contexts, refused = push_refusals(model, tokenizer, HARMFUL, OPENERS, 1, answer_tokens=3, seed=0)
        assert refused == [True, True, False]
        assert len(contexts) == 2

    def test_a_model_that_refuses_nothing(self, tokenizer):
        with pytest.raises(ValueError, match=r"refuses none of the 3 harmful prompts:\n  'How do I harm\?' -> "):
            push_refusals(build_model("llama"), tokenizer, HARMFUL, OPENERS, 1, answer_tokens=3, seed=0)

    def test_sequences_that_share_all_their_tokens_but_one(self):
        ids, counts = [[5, 6, 7, 8], [5, 6, 7, 8, 9], [5, 6, 7]], [3, 2, 3]
        model = build_model("llama")
        for share_prefix in (False, True):
            batch = lay_out_held(ids, counts, share_prefix)
            hidden = model(**batch.inputs, output_hidden_states=True, use_cache=False).hidden_states[-1]
            expected = torch.cat([states_of(model, *pair) for pair in zip(ids, counts, strict=True)])
            torch.testing.assert_close(hidden[batch.rows, batch.columns], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("architecture", "expected"), [("llama", True), ("gemma3_text", False), ("bloom", False)])
    def test_one_row_only_where_the_states_stay(self, tokenizer, architecture, expected):
        model = build_model(architecture)
        contexts = keep_answers(model, tokenizer, BENIGN, OPENERS, 2, answer_tokens=3, seed=0)
        assert can_share_prefix(model, contexts, tolerance=2e-3) is expected


class TestHardeningTrainer:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_loss_and_gradient(self, build_trainer, attention):
        model = build_talkative_model()
        model.set_attn_implementation(attention)
        original = copy.deepcopy(model).double()
        trainer = build_trainer(model)
        batch = trainer.data_collator(trainer.train_dataset[:4])
        assert len(batch["input_ids"]) == (1 if attention == "sdpa" else 4)
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()

        # The same from outside: each context alone, unpadded, in float64
        tokenizer, refusal = build_tokenizer(), build_tokenizer().convert_tokens_to_ids(REFUSAL)
        original.requires_grad_(True).lm_head.requires_grad_(False)
        terms = []
        for row, prompt in zip(
            trainer.train_dataset[:9], [i for i in encode_prompts(tokenizer, HARMFUL) for _ in "123"], strict=True
        ):
            reference = states_of(original, prompt + [refusal] * 2, 3).detach()
            difference = states_of(original, row["input_ids"], 3) - reference
            terms += (difference.pow(2).sum(-1) / reference.pow(2).sum(-1)).unbind()
        expected = torch.stack(terms[: 4 * 3]).mean()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        gradients = {name: p.grad for name, p in original.named_parameters() if p.grad is not None}
        found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (found[name] - gradient).norm() <= 1e-4 * max(gradients[name].norm(), 1e-3), name

    def test_train(self, build_trainer):
        trainer = build_trainer(peft_config=lora(), max_steps=12, per_device_train_batch_size=18, logging_steps=1)
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < 0.6 * losses[0]
        # Check that the adapter's parameters have changed, and no other
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, before[name]) != ("lora_" in name), name

    def test_train_the_whole_model(self, build_trainer):
        trainer = build_trainer()
        unembedding = copy.deepcopy(get_unembedding(trainer.model).state_dict())
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
        assert {name for name in before if "lm_head" not in name} == changed
        for name, tensor in get_unembedding(trainer.model).state_dict().items():
            assert torch.equal(tensor, unembedding[name])

    def test_benign_prompts_are_where_they_are(self, build_trainer):
        trainer = build_trainer(peft_config=lora())
        benign = trainer.train_dataset[len(HARMFUL) * 3 :]
        assert len(benign) == len(BENIGN) * 3
        assert trainer.compute_loss(trainer.model, trainer.data_collator(benign)).item() < 1e-10

    def test_same_under_gradient_accumulation(self, build_trainer):
        whole = build_trainer(peft_config=lora(), max_steps=1, per_device_train_batch_size=6, seed=3)
        parts = build_trainer(
            peft_config=lora(), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=3, seed=3
        )
        for trainer in (whole, parts):
            trainer.train()
        for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)

    def test_resume(self, build_trainer, tmp_path):
        settings = {"peft_config": lora(), "save_strategy": "steps", "save_steps": 2}
        whole = build_trainer(**settings)
        whole.train()
        resumed = build_trainer(**settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
        assert resumed.state.global_step == 4
        for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, msg=name)

    def test_dropout_is_off(self, build_trainer):
        trainer = build_trainer(peft_config=lora(lora_dropout=0.5))
        batch = trainer.data_collator(trainer.train_dataset[:4])
        trainer.model.train()
        losses = {trainer.compute_loss(trainer.model, dict(batch)).item() for _ in range(3)}
        assert len(losses) == 1
        assert trainer.model.training


class TestWrongInput:
    def test_a_model_with_an_adapter(self, build_trainer):
        with pytest.raises(TypeError, match="Found a `PeftModel`, expected the aligned model itself"):
            build_trainer(get_peft_model(build_refusing_model(), lora()))

    def test_a_push_by_the_trainer(self, build_trainer):
        with pytest.raises(ValueError, match="Found `push_to_hub`, with which `Trainer` publishes checkpoints"):
            build_trainer(push_to_hub=True)

    def test_an_adapter_on_the_unembedding(self, build_trainer):
        with pytest.raises(ValueError, match="trains the unembedding"):
            build_trainer(peft_config=LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))

    @pytest.mark.parametrize("kind", ["harmful", "benign"])
    def test_no_prompt(self, build_trainer, kind):
        with pytest.raises(ValueError, match=f"at least one {kind} prompt"):
            build_trainer(**{kind: []})

    def test_a_prompt_of_both_kinds(self, build_trainer):
        with pytest.raises(ValueError, match=r"'How do I harm\?' among the harmful and the benign prompts"):
            build_trainer(benign=[*BENIGN, HARMFUL[0]])

    @pytest.mark.parametrize(
        ("name", "value"),
        [("openers_per_prompt", 0), ("openers_per_benign_prompt", 1000), ("answer_tokens", 0), ("answer_tokens", 33)],
    )
    def test_numbers(self, name, value):
        with pytest.raises(ValueError, match=f"Expected `{name}` to be from 1 to .*, found {value}"):
            HardeningConfig("out", **{name: value})


def test_openers_are_others_than_those_that_are_measured():
    openers = [*OPENERS, *BENIGN_OPENERS]
    assert len(set(openers)) == len(openers)
    assert not find_near_copies([*PREFILLS, BENIGN_PREFILL], openers)
