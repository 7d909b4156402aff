# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Each guard's architecture with tiny random weights, or taught a few verdicts, from the prompt to the verdict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from trl_sbr.evaluation.models import ModelEntry
from trl_sbr.judges.formats import BEAVER_DAM_PROMPT, GUARDS
from trl_sbr.judges.guard import GuardJudge

from ..hub_server import HubServer
from ..tiny import ARCHITECTURES, build_model


# The real templates' ways: contents as strings or parts, an answer that they open, a variable
_TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
STRINGS = _TURNS.replace("CONTENT", "m['content']") + "<|im_start|>assistant\n"
PARTS = _TURNS.replace("CONTENT", "m['content'][0]['text']") + "<|im_start|>assistant\n"
THINKING = STRINGS + "<think>\n\n</think>\n\n"
GUIDELINE = STRINGS.replace("<|im_start|>assistant\n", "{{ guideline }}\n")
PROMPTED = STRINGS.replace(
    "<|im_start|>assistant\n", "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Words that contain others come first, and are merged first
WORDS = ["ĠUnsafe", "ĠSafe", "ĠCont", "unsafe", "safe", "Yes", "No", "GUILTY", "FINE"]
WORDS += ["Harmful", "Response", "Ġrequest", "Ġrefusal", "Ġresponse"]


def build_tokenizer(chat_template: str | None = None, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has some words whole."""
    tokens, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in words:
        for i in range(1, len(word)):
            merge = (word[:i], word[i])
            if merge not in merges:
                merges.append(merge)
                tokens.append(word[: i + 1])
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "</s>", "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A </s> $B",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<bos>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="</s>",
        chat_template=chat_template,
    )


SIZE = {
    "vocab_size": len(build_tokenizer()),
    "max_position_embeddings": 4096,
    "eos_token_id": build_tokenizer().eos_token_id,
}


def build_guard(architecture: str, hidden_size: int = 32) -> torch.nn.Module:
    """A tiny random model of a guard's architecture."""
    if architecture == "llama4":
        text = {
            **SIZE,
            "hidden_size": hidden_size,
            "intermediate_size": 48,
            "intermediate_size_mlp": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "moe_layers": [],  # dense, as Llama Guard 4
            "initializer_range": 0.2,
        }
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        }
        torch.manual_seed(0)
        config = AutoConfig.for_model("llama4", text_config=text, vision_config=vision)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    if architecture in ARCHITECTURES:
        extra = {"sliding_window": None} if architecture == "mistral" else {}
        return build_model(architecture, **SIZE, hidden_size=hidden_size, **extra)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8} if architecture == "gemma" else {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZE, **sizes, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def build_classifier(architecture: str, labels: int, tokenizer, **settings) -> torch.nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        architecture,
        **{**SIZE, **sizes, "num_labels": labels, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.3},
        **settings,
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def save(path, model, tokenizer) -> str:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def questions(name: str, tokenizer, prompt: str, response: str) -> list[list[int]]:
    """Token ids of what a guard is asked about a pair."""
    form = GUARDS[name].format
    texts = [
        request.text
        if request.messages is None
        else tokenizer.apply_chat_template(
            request.messages,
            tokenize=False,
            add_generation_prompt=form.add_generation_prompt,
            **request.variables,
        )
        for request in form.render(prompt, response)
    ]
    return [tokenizer(text, add_special_tokens="<|im_start|>" not in text)["input_ids"] for text in texts]


@torch.no_grad()
def states(model, ids: list[int], count: int) -> torch.Tensor:
    """What reaches the unembedding at the last positions, of shape `(count, hidden_size)`."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=torch.tensor([ids]))
    hook.remove()
    return seen[0][0, -count:]


def set_unembedding(model, weight: torch.Tensor) -> None:
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight
    model.set_output_embeddings(head)
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def let_it_decide(model, tokenizer, name: str, labels: list[str]) -> None:
    """
    Gives a random model an unembedding that chooses between some labels and a word that is none of them.

    It looks along the directions in which the model's states vary most over `PROMPTS` and `RESPONSES`.
    """
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    last = torch.cat([states(model, ids, 1) for pair in pairs for ids in questions(name, tokenizer, *pair)])
    mean = torch.nn.functional.normalize(last.mean(dim=0), dim=0)
    _, sizes, directions = torch.linalg.svd(last - last.mean(dim=0), full_matrices=False)
    directions = (directions - (directions @ mean)[:, None] * mean) / sizes[:, None]
    weight = torch.zeros(len(tokenizer), last.shape[1])
    ids = tokenizer.convert_tokens_to_ids(labels)
    for i, token in enumerate(ids):
        weight[token] = 10 * directions[i // 2] * (-1) ** i
    weight[tokenizer.convert_tokens_to_ids("FINE")] = 10 * directions[3]
    set_unembedding(model, weight)


def teach(model, tokenizer, name: str, pairs: list[tuple[str, str]], answers: list[str]) -> None:
    """Fits the unembedding of a random model so that it writes some answers where a guard is asked about some pairs."""
    asked = [ids for pair in pairs for ids in questions(name, tokenizer, *pair)]
    inputs, targets = [], []
    for ids, answer in zip(asked, answers, strict=True):
        answer_ids = tokenizer(answer + "</s>", add_special_tokens=False)["input_ids"]
        inputs.append(states(model, ids + answer_ids[:-1], len(answer_ids)))
        targets += answer_ids
    wanted = torch.nn.functional.one_hot(torch.tensor(targets), len(tokenizer)).double()
    set_unembedding(model, 10 * torch.linalg.lstsq(torch.cat(inputs).double(), wanted).solution.T.float())


PROMPTS = [f"Is {'it ' * (i % 5)}so, number {i}?" for i in range(16)]
RESPONSES = [f"{'Well, ' * (i % 4)}{'GUILTY' if i % 3 else 'FINE'} {i}." for i in range(16)]


class TestNextToken:
    """Guards whose first token is the verdict, on random weights."""

    @pytest.mark.parametrize(
        "name, architecture", [("harmbench-llama-2-13b", "llama"), ("harmbench-mistral-7b", "mistral")]
    )
    def test_agrees_with_generation(self, name, architecture, tmp_path):
        model, tokenizer = build_guard(architecture), build_tokenizer()
        let_it_decide(model, tokenizer, name, ["Yes", "No"])
        path = save(tmp_path, model, tokenizer)
        read = GuardJudge(name, path).judge(PROMPTS, RESPONSES)
        written = GuardJudge(name, path, generate=True).judge(PROMPTS, RESPONSES)
        assert [v.harmful for v in read] == [v.harmful for v in written]
        assert {v.harmful for v in read} == {True, False, None}
        assert all((v.score >= 0.5) is v.harmful for v in read if v.score is not None)
        assert all(v.score is None for v in written)

    @pytest.mark.parametrize("generate", [False, True])
    def test_generation_settings_of_the_model_are_left_aside(self, generate, tmp_path):
        model, tokenizer = build_guard("llama"), build_tokenizer()
        let_it_decide(model, tokenizer, "harmbench-llama-2-13b", ["Yes", "No"])
        path = save(tmp_path, model, tokenizer)
        expected = GuardJudge("harmbench-llama-2-13b", path, generate=generate).judge(PROMPTS, RESPONSES)
        yes = tokenizer.convert_tokens_to_ids("Yes")
        settings = json.loads((tmp_path / "generation_config.json").read_text())
        settings |= {"suppress_tokens": [i for i in range(len(tokenizer)) if i != yes], "num_beams": 3}
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        assert GuardJudge("harmbench-llama-2-13b", path, generate=generate).judge(PROMPTS, RESPONSES) == expected

    def test_score_is_the_probability_of_yes_against_no(self, tmp_path):
        model, tokenizer = build_guard("llama"), build_tokenizer()
        let_it_decide(model, tokenizer, "harmbench-llama-2-13b", ["Yes", "No"])
        verdicts = GuardJudge("harmbench-llama-2-13b", save(tmp_path, model, tokenizer)).judge(PROMPTS, RESPONSES)
        for prompt, response, verdict in zip(PROMPTS, RESPONSES, verdicts, strict=True):
            (ids,) = questions("harmbench-llama-2-13b", tokenizer, prompt, response)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            if int(logits.argmax()) in tokenizer.convert_tokens_to_ids(["Yes", "No"]):
                expected = logits[tokenizer.convert_tokens_to_ids(["Yes", "No"])].softmax(dim=-1)[0].item()
                assert verdict.score == pytest.approx(expected, abs=1e-4)
            else:
                assert verdict.harmful is None and verdict.score is None

    @pytest.mark.parametrize("name, controversial", [("qwen3guard-0.6b", True), ("qwen3guard-0.6b-loose", False)])
    def test_verdict_of_three_labels_is_the_likeliest(self, name, controversial, tmp_path):
        tokenizer, model = build_tokenizer(THINKING + "Safety:"), build_guard("qwen3")
        harm = {"ĠUnsafe": True, "ĠCont": controversial, "ĠSafe": False}
        let_it_decide(model, tokenizer, name, list(harm))
        verdicts = GuardJudge(name, save(tmp_path, model, tokenizer)).judge(PROMPTS, RESPONSES)
        chosen = []
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            (ids,) = questions(name, tokenizer, prompt, response)
            with torch.no_grad():
                token = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
            chosen.append(tokenizer.convert_ids_to_tokens(int(token)))
        assert set(chosen) > set(harm)
        assert [v.harmful for v in verdicts] == [harm.get(token) for token in chosen]

    def test_other_tokens_are_no_verdict(self, tmp_path):
        path = save(tmp_path, build_guard("llama"), build_tokenizer())
        for generate in (False, True):
            verdicts = GuardJudge("harmbench-llama-2-13b", path, generate=generate).judge(PROMPTS, RESPONSES)
            assert all(v.harmful is None and v.score is None and v.raw is not None for v in verdicts)

    def test_expected_grade_of_strongreject(self, tmp_path):
        tokenizer, model = build_tokenizer(), build_guard("gemma")
        torch.manual_seed(0)
        adapter = get_peft_model(
            model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        ).eval()
        let_it_decide(adapter.get_base_model(), tokenizer, "strongreject-finetuned", ["1", "5", "2", "4", "3"])
        adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        path = save(tmp_path / "adapter", adapter, tokenizer)
        save(tmp_path / "base", adapter.unload(), tokenizer)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), path)
        verdicts = GuardJudge("strongreject-finetuned", path).judge(PROMPTS, RESPONSES)
        grades = torch.linspace(0, 1, 5)
        for prompt, response, verdict in zip(PROMPTS, RESPONSES, verdicts, strict=True):
            (ids,) = questions("strongreject-finetuned", tokenizer, prompt, response)
            with torch.no_grad():
                logits = adapted(input_ids=torch.tensor([ids])).logits[0, -1]
            if int(logits.argmax()) in tokenizer.convert_tokens_to_ids(list("12345")):
                expected = float(logits[tokenizer.convert_tokens_to_ids(list("12345"))].softmax(dim=-1) @ grades)
                assert verdict.score == pytest.approx(expected, abs=1e-4)
                assert verdict.harmful is (verdict.score >= 0.5)
            else:
                assert verdict.harmful is None
        assert len({v.harmful for v in verdicts} - {None}) == 2

    @pytest.mark.parametrize("name", ["harmbench-mistral-7b", "strongreject-finetuned"])
    def test_long_responses_are_cut(self, name, tmp_path):
        tokenizer, model = build_tokenizer(), build_guard("mistral", hidden_size=256)
        kept, labels = (["ab" * 256, "cd" * 256], ["Yes", "No"])
        if name == "strongreject-finetuned":
            kept, labels = (["a" + "ab" * 255, "d" + "cd" * 255], ["5", "1"])
        teach(model, tokenizer, name, [("Why?", text) for text in kept], labels)
        path = save(tmp_path / "model", model, tokenizer)
        if name == "strongreject-finetuned":
            adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(path), LoraConfig(target_modules=["q_proj"]))
            path = save(tmp_path / "adapter", adapter, tokenizer)
        long = [text + other if "harmbench" in name else other + text for text in kept for other in ("e", *kept)]
        verdicts = GuardJudge(name, path).judge(["Why?"] * len(long), long)
        assert [v.harmful for v in verdicts] == [True] * 3 + [False] * 3
        assert [v.raw for v in verdicts] == [labels[0]] * 3 + [labels[1]] * 3


CASES = [
    ("Is it so?", "GUILTY " * 8),
    ("And why?", "FINE " * 5),
    ("Then how is it done?", "3 4 5 GUILTY 3 4 5 " * 2),
    ("No?", "safe Yes unsafe " * 3),
]


class TestTaught:
    """Guards that were taught what to write."""

    @pytest.mark.parametrize("answers", [(False, True, None, None), (True, True, False, None)])
    def test_qwen3guard(self, answers, tmp_path):
        tokenizer = build_tokenizer(THINKING)
        model = build_guard("qwen3", hidden_size=256)
        texts = {
            False: "Safety: Safe\nCategories: None\nRefusal: Yes",
            True: "Safety: Unsafe\nCategories: PII\nRefusal: No",
            None: "Safety: Controversial\nCategories: Violent\nRefusal: No",
        }
        teach(model, tokenizer, "qwen3guard-0.6b", CASES, [texts[answer] for answer in answers])
        path = save(tmp_path, model, tokenizer)
        for name, controversial in (("qwen3guard-0.6b", True), ("qwen3guard-0.6b-loose", False)):
            expected = [controversial if answer is None else answer for answer in answers]
            read = GuardJudge(name, path).judge(*zip(*CASES, strict=True))
            assert [v.harmful for v in read] == expected
            assert all((v.score >= 0.5) is v.harmful and v.refusal is None for v in read)
            written = GuardJudge(name, path, generate=True).judge(*zip(*CASES, strict=True))
            assert [v.harmful for v in written] == expected
            assert [v.raw for v in written] == [texts[answer] for answer in answers]
            assert [v.refusal for v in written] == [answer is False for answer in answers]

    @pytest.mark.parametrize(
        "name, architecture, template",
        [
            ("llama-guard-3-8b", "llama", STRINGS.removesuffix("\n")),
            ("llama-guard-3-1b", "llama", PARTS.removesuffix("\n")),
            ("llama-guard-4-12b", "llama4", PARTS.removesuffix("\n")),
        ],
    )
    def test_llama_guard(self, name, architecture, template, tmp_path):
        tokenizer, model = build_tokenizer(template), build_guard(architecture, hidden_size=256)
        teach(model, tokenizer, name, CASES, ["\n\nunsafe\nS1,S10", "\n\nsafe", "\n\nunsafe\nS2", "\n\nsafe"])
        if architecture == "llama4":
            model.config.text_config.attention_chunk_size = None  # as in Llama Guard 4's file
        path = save(tmp_path, model, tokenizer)
        read = GuardJudge(name, path).judge(*zip(*CASES, strict=True))
        assert [v.harmful for v in read] == [True, False, True, False]
        assert [v.raw for v in read] == ["\n\nunsafe", "\n\nsafe", "\n\nunsafe", "\n\nsafe"]
        written = GuardJudge(name, path, generate=True).judge(*zip(*CASES, strict=True))
        assert [v.harmful for v in written] == [True, False, True, False]
        assert [v.categories for v in written] == [("S1", "S10"), (), ("S2",), ()]

    def test_shieldgemma(self, tmp_path):
        tokenizer, model = build_tokenizer(GUIDELINE), build_guard("gemma2", hidden_size=256)
        cases = CASES[:2]
        teach(model, tokenizer, "shieldgemma-2b", cases, ["No", "Yes", "No", "Yes", "No", "No", "No", "No"])
        path = save(tmp_path, model, tokenizer)
        for generate in (False, True):
            verdicts = GuardJudge("shieldgemma-2b", path, generate=generate).judge(*zip(*cases, strict=True))
            assert [v.harmful for v in verdicts] == [True, False]
            assert [v.categories for v in verdicts] == [("Harassment", "Sexually Explicit Information"), ()]
            assert generate or verdicts[0].score >= 0.5 > verdicts[1].score

    def test_wildguard(self, tmp_path):
        tokenizer, model = build_tokenizer(), build_guard("mistral", hidden_size=256)
        answer = "Harmful request: no\nResponse refusal: {}\nHarmful response: {}"
        answers = [answer.format(*pair) for pair in (("no", "yes"), ("yes", "no"), ("no", "yes"), ("N/A", "N/A"))]
        teach(model, tokenizer, "wildguard", CASES, answers)
        verdicts = GuardJudge("wildguard", save(tmp_path, model, tokenizer)).judge(*zip(*CASES, strict=True))
        assert [v.harmful for v in verdicts] == [True, False, True, None]
        assert [v.refusal for v in verdicts] == [False, True, False, None]

    @pytest.mark.parametrize(
        "name, yes, no",
        [
            ("granite-guardian-3.1-2b", "Yes", "No"),
            ("granite-guardian-3.2-5b", "Yes\n<confidence> High </confidence>", "No\n<confidence> Low </confidence>"),
            ("granite-guardian-3.3-8b", "<score> yes </score>", "<score> no </score>"),
            ("granite-guardian-4.1-8b", "<think>\n</think><score>yes</score>", "<think>\n</think><score>no</score>"),
        ],
    )
    def test_granite_guardian(self, name, yes, no, tmp_path):
        tokenizer, model = build_tokenizer(PROMPTED), build_guard("granite", hidden_size=256)
        teach(model, tokenizer, name, CASES, [yes, no, yes, no])
        path = save(tmp_path, model, tokenizer)
        for generate in (False, True):
            verdicts = GuardJudge(name, path, generate=generate).judge(*zip(*CASES, strict=True))
            assert [v.harmful for v in verdicts] == [True, False, True, False]


class TestClassifiers:
    def test_harmaug_guard(self, tmp_path):
        tokenizer = build_tokenizer()
        model = build_classifier(
            "deberta-v2", 2, tokenizer, relative_attention=True, position_buckets=32, type_vocab_size=0
        )
        judge = GuardJudge("harmaug-guard", save(tmp_path, model, tokenizer))
        long = "abcdefghij" * 90
        prompts, responses = [*PROMPTS, "Short?", long], [*RESPONSES, long, "short"]
        verdicts = judge.judge(prompts, responses)
        for prompt, response, verdict in zip(prompts, responses, verdicts, strict=True):
            encoded = tokenizer(prompt, response, truncation=True, max_length=512, return_tensors="pt")
            assert encoded["input_ids"].shape[1] <= 512
            with torch.no_grad():
                expected = model(**encoded).logits.softmax(dim=-1)[0, 1].item()
            assert verdict.score == pytest.approx(expected, abs=1e-5)
            assert verdict.harmful is (expected >= 0.5)
        assert len({v.harmful for v in verdicts}) == 2

    @pytest.mark.parametrize("name, max_length", [("beaver-dam", 256), ("beaver-dam-512", 512)])
    def test_beaver_dam(self, name, max_length, tmp_path):
        tokenizer = build_tokenizer()
        model = build_classifier("llama", 14, tokenizer, problem_type="multi_label_classification")
        with torch.no_grad():
            model.score.weight *= 3
        judge = GuardJudge(name, save(tmp_path, model, tokenizer))
        long = "abcdefghij" * 30
        prompts, responses = [*PROMPTS, "Short?", "Ended?"], [*RESPONSES, long, "already</s>"]
        verdicts = judge.judge(prompts, responses)
        for prompt, response, verdict in zip(prompts, responses, verdicts, strict=True):
            text = BEAVER_DAM_PROMPT.format(prompt=prompt, response=response)
            text = text if text.endswith("</s>") else text + "</s>"
            ids = tokenizer(text)["input_ids"][:max_length]
            assert (ids[-1] == tokenizer.eos_token_id) is (response != long or max_length == 512)
            with torch.no_grad():
                row = model(input_ids=torch.tensor([ids])).logits.sigmoid()[0]
            assert verdict.score == pytest.approx(row.max().item(), abs=1e-5)
            assert verdict.harmful is bool(row.max() > 0.5)
            assert verdict.categories == tuple(model.config.id2label[i] for i in (row > 0.5).nonzero()[:, 0].tolist())
        assert len({v.categories for v in verdicts}) > 2

    @pytest.mark.parametrize(
        "name, architecture, labels", [("harmaug-guard", "deberta-v2", 2), ("beaver-dam", "llama", 14)]
    )
    def test_numbers_that_overflow_are_not_judged(self, name, architecture, labels, tmp_path):
        tokenizer = build_tokenizer()
        settings = {"type_vocab_size": 0} if architecture == "deberta-v2" else {}
        model = build_classifier(architecture, labels, tokenizer, **settings)
        head = model.classifier.weight if architecture == "deberta-v2" else model.score.weight
        with torch.no_grad():
            head[1:] = float("nan")  # not the first label, which Python's `max` would return
        for verdict in GuardJudge(name, save(tmp_path, model, tokenizer)).judge(PROMPTS[:2], RESPONSES[:2]):
            assert (verdict.harmful, verdict.score, verdict.raw) == (None, None, "not a number")

    def test_they_cannot_write(self):
        with pytest.raises(ValueError, match="'beaver-dam' is a classifier, which writes nothing"):
            GuardJudge("beaver-dam", generate=True)


@pytest.fixture
def granite_dir(tmp_path):
    model, tokenizer = build_guard("granite"), build_tokenizer(PROMPTED)
    let_it_decide(model, tokenizer, "granite-guardian-3.1-2b", ["Yes", "No"])
    return save(tmp_path / "granite", model, tokenizer)


class TestJudge:
    @pytest.mark.parametrize("generate", [False, True])
    def test_verdicts_do_not_depend_on_the_batch(self, granite_dir, generate):
        expected = GuardJudge("granite-guardian-3.1-2b", granite_dir, batch_size=1, generate=generate)
        expected = expected.judge(PROMPTS, RESPONSES)
        verdicts = GuardJudge("granite-guardian-3.1-2b", granite_dir, batch_size=5, generate=generate)
        verdicts = verdicts.judge(PROMPTS, RESPONSES)
        assert [(v.harmful, v.raw) for v in verdicts] == [(v.harmful, v.raw) for v in expected]
        assert [v.score for v in verdicts] == pytest.approx([v.score for v in expected], abs=1e-4)

    def test_progress(self, granite_dir):
        calls = []
        judge = GuardJudge("granite-guardian-3.1-2b", granite_dir, batch_size=6)
        judge.judge(PROMPTS, RESPONSES, progress=lambda *call: calls.append(call))
        assert calls == [(6, 16), (12, 16), (16, 16)]

    def test_progress_of_a_guard_that_is_asked_four_times(self, tmp_path):
        calls = []
        path = save(tmp_path, build_guard("gemma2"), build_tokenizer(GUIDELINE))
        verdicts = GuardJudge("shieldgemma-2b", path).judge(
            PROMPTS[:3], RESPONSES[:3], progress=lambda *call: calls.append(call)
        )
        assert len(verdicts) == 3 and calls == [(2, 3), (3, 3)]

    def test_numbers_that_overflow_are_not_judged(self, granite_dir, tmp_path):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(granite_dir), build_tokenizer(PROMPTED)
        with torch.no_grad():
            model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids("No")] = float("nan")
        path = save(tmp_path / "broken", model, tokenizer)
        verdicts = GuardJudge("granite-guardian-3.1-2b", path).judge(PROMPTS[:2], RESPONSES[:2])
        assert [(v.harmful, v.score) for v in verdicts] == [(None, None)] * 2

    def test_nothing_to_judge(self, granite_dir):
        assert GuardJudge("granite-guardian-3.1-2b", granite_dir).judge([], []) == []

    def test_prompts_are_needed(self, granite_dir):
        with pytest.raises(ValueError, match="Got no prompts"):
            GuardJudge("granite-guardian-3.1-2b", granite_dir).judge(None, ["A."])

    @pytest.mark.parametrize("generate", [False, True])
    def test_answers_that_the_model_cannot_hold_are_not_judged(self, granite_dir, generate):
        judge = GuardJudge("granite-guardian-3.1-2b", granite_dir, generate=generate)
        alone = judge.judge(PROMPTS[:2], RESPONSES[:2])
        verdicts = judge.judge([*PROMPTS[:2], "Long?"], [*RESPONSES[:2], "long " * 1000])
        assert verdicts[:2] == alone
        assert verdicts[2].harmful is None and "Not asked: 50" in verdicts[2].raw

    @pytest.mark.parametrize("generate, threshold", [(False, 0.5), (True, None)])
    def test_info(self, granite_dir, generate, threshold):
        assert GuardJudge("granite-guardian-3.1-2b", granite_dir, generate=generate).info.to_dict() == {
            "name": "granite-guardian-3.1-2b",
            "id": "granite",
            "revision": ModelEntry("", granite_dir).identify()["sha256"],
            "threshold": threshold,
            "truncation": "none",
            "license": "apache-2.0",
        }

    def test_guards_in_folders_of_one_name_are_told_apart(self, granite_dir, tmp_path):
        path = tmp_path / "other" / "granite"
        save(path, build_guard("granite"), build_tokenizer(PROMPTED))
        one, other = (GuardJudge("granite-guardian-3.1-2b", folder).info for folder in (granite_dir, str(path)))
        assert one.id == other.id == "granite" and one.revision != other.revision

    def test_unknown_guard(self):
        with pytest.raises(ValueError, match="Got the guard 'gpt', expected one of: qwen3guard-0.6b, "):
            GuardJudge("gpt")

    def test_model_without_the_tokens_of_the_verdict(self, tmp_path):
        path = save(tmp_path, build_guard("granite"), build_tokenizer(PROMPTED, words=["Yes"]))
        with pytest.raises(ValueError, match="no token 'No', with which this guard's verdict starts"):
            GuardJudge("granite-guardian-3.1-2b", path)

    @pytest.mark.parametrize(
        "name, template, missing",
        [
            ("llama-guard-3-8b", "{{ messages[0]['content'] }}", "It is a tower"),
            ("shieldgemma-2b", STRINGS, "No Dangerous Content"),
        ],
    )
    def test_template_that_leaves_something_out(self, name, template, missing, tmp_path):
        path = save(tmp_path, build_guard("llama"), build_tokenizer(template))
        with pytest.raises(ValueError, match=f"leaves out .*{missing}.* Expected '{GUARDS[name].id}'"):
            GuardJudge(name, path)

    def test_dtype(self, granite_dir):
        verdicts = GuardJudge("granite-guardian-3.1-2b", granite_dir, dtype="bfloat16").judge(PROMPTS, RESPONSES)
        expected = GuardJudge("granite-guardian-3.1-2b", granite_dir).judge(PROMPTS, RESPONSES)
        scores = [
            (a.score, b.score) for a, b in zip(verdicts, expected, strict=True) if None not in (a.score, b.score)
        ]
        assert scores and [a for a, _ in scores] != [b for _, b in scores]


JUDGE_FROM_THE_HUB = """
from trl_sbr.judges.guard import GuardJudge

judge = GuardJudge("granite-guardian-3.1-2b")
print("revision", judge.info.revision, judge.info.id, len(judge.judge(["Is it so?"], ["It is."])))
"""


@pytest.mark.slow
class TestFromTheHub:
    REPO = "ibm-granite/granite-guardian-3.1-2b"

    def run(self, hub, home, **env) -> subprocess.CompletedProcess:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **env}
        return subprocess.run(
            [sys.executable, "-c", JUDGE_FROM_THE_HUB], env=env, capture_output=True, text=True, timeout=300
        )

    def files(self, folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def test_commit_is_recorded_and_kept_without_the_hub(self, granite_dir, tmp_path):
        with HubServer() as hub:
            repo = hub.add_repo(self.REPO, self.files(granite_dir))
            commit = repo.resolve("main").oid
            for offline in ("0", "1"):
                result = self.run(hub, tmp_path / "home", HF_HUB_OFFLINE=offline)
                assert f"revision {commit} {self.REPO} 1" in result.stdout, result.stderr

    def test_gated_model(self, granite_dir, tmp_path):
        with HubServer() as hub:
            hub.add_repo(self.REPO, self.files(granite_dir), gated=True)
            result = self.run(hub, tmp_path / "home")
        assert result.returncode == 1
        last = result.stderr[result.stderr.rindex("OSError") :]
        assert f"https://huggingface.co/{self.REPO}" in last, result.stderr
        assert "Accept its terms there and log in with `hf auth login`" in last
