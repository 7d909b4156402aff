# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Each defence against its formula, computed without this package."""

import math
import shutil
from collections import Counter

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn

from trl_sbr import is_refusal
from trl_sbr.stress import defences
from trl_sbr.stress.aligned import Aligned
from trl_sbr.stress.run import attack, defence

from ..tiny import build_model, build_selective_model, build_tokenizer, conversation_rows


PROMPTS = ["How do I harm?", "Tell me how to steal a car."]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def trained():
    """A tiny Llama whose adapter has moved."""
    model = get_peft_model(build_model("llama"), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def read(model, tokenizer, layer):
    """The last token's states of a layer and log-probabilities, prompt by prompt."""
    states, log_probs = [], []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        output = model(ids, output_hidden_states=True)
        states.append(output.hidden_states[layer][0, -1])
        log_probs.append(output.logits[0, -1].log_softmax(-1))
    return torch.stack(states), torch.stack(log_probs)


def kl_formula(model, tokenizer):
    _, now = read(model, tokenizer, -1)
    with torch.no_grad(), model.disable_adapter():
        _, before = read(model, tokenizer, -1)
    return (before.exp() * (before - now)).sum(-1).mean()


def middle_formula(model, tokenizer):
    now, _ = read(model, tokenizer, 1)
    with torch.no_grad(), model.disable_adapter():
        before, _ = read(model, tokenizer, 1)
    return ((now - before) ** 2).mean(-1).mean()


def distance_formula(model, tokenizer):
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    return sum((m.get_delta_weight("default") ** 2).sum() for m in layers)


class TestTerms:
    @pytest.mark.parametrize(
        ("term", "formula"),
        [
            (defences.kl_on_prompts(PROMPTS), kl_formula),
            (defences.states_at_layer(PROMPTS, 0.5), middle_formula),
            (lambda model, tokenizer: defences.squared_distance, distance_formula),
        ],
        ids=["kl", "middle_layer", "distance"],
    )
    def test_value_and_gradient(self, trained, tokenizer, term, formula):
        parameters = [p for p in trained.parameters() if p.requires_grad]
        found, expected = term(trained, tokenizer)(trained), formula(trained, tokenizer)
        assert expected > 1e-4
        torch.testing.assert_close(found, expected)
        found, expected = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (found, expected))
        assert any(g is not None and g.abs().max() > 0 for g in found)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e)

    def test_ball_scales_back_along_the_way(self, trained):
        before = [m.get_delta_weight("default") for m in trained.modules() if hasattr(m, "get_delta_weight")]
        distance = distance_formula(trained, None).sqrt()
        assert distance > 1
        ball = defences._ProjectIntoBall(radius=1.0)
        ball.on_step_end(None, None, None, model=trained)
        after = [m.get_delta_weight("default") for m in trained.modules() if hasattr(m, "get_delta_weight")]
        assert distance_formula(trained, None).item() == pytest.approx(1.0, rel=1e-4)
        for b, a in zip(before, after, strict=True):
            torch.testing.assert_close(a, b / distance)
        ball.on_step_end(None, None, None, model=trained)  # inside, nothing is done
        torch.testing.assert_close(distance_formula(trained, None), torch.tensor(1.0))

    def test_null_space_changes_nothing_on_its_prompts(self, trained, tokenizer):
        def logits(text):
            messages = [{"role": "user", "content": text}]
            return trained(**tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)).logits

        with torch.no_grad(), trained.disable_adapter():
            before = logits("Hi")
        keep = defences._KeepOffInputs(["Hi"], tokenizer)
        keep.on_train_begin(None, None, None, model=trained)
        for _ in range(2):  # whatever is learned
            torch.testing.assert_close(logits("Hi"), before, rtol=0, atol=1e-4)
            with torch.no_grad(), trained.disable_adapter():
                elsewhere = logits("You there?")
            assert (logits("You there?") - elsewhere).abs().max() > 0.1
            torch.manual_seed(3)
            for name, parameter in trained.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(parameter, std=0.3)
            assert (logits("Hi") - before).abs().max() > 0.1
            keep.on_step_end(None, None, None)

    def test_null_space_that_is_empty_is_an_error(self, trained, tokenizer):
        keep = defences._KeepOffInputs(PROMPTS, tokenizer)
        with pytest.raises(ValueError, match="take all 32 inputs"):
            keep.on_train_begin(None, None, None, model=trained)

    def test_projection(self):
        torch.manual_seed(0)
        along = [torch.randn(3, 2), torch.randn(4)]
        flat = torch.cat([a.flatten() for a in along])
        for sign in (-1, 1):
            task = [torch.randn(3, 2) + sign * along[0], torch.randn(4) + sign * along[1]]
            g = torch.cat([t.flatten() for t in task])
            found = torch.cat([t.flatten() for t in defences.project(task, along, coef=0.0)])
            if sign == 1:
                torch.testing.assert_close(found, g)  # no conflict
            else:
                torch.testing.assert_close(found, g - (g @ flat) / (flat @ flat) * flat)
                assert (found @ flat).abs() < 1e-4
            added = torch.cat([t.flatten() for t in defences.project(task, along, coef=0.5)])
            torch.testing.assert_close(added, found + 0.5 * flat)
        assert all(t.isfinite().all() for t in defences.project(task, [0 * a for a in along], coef=1.0))

    def test_constrained_loss(self):
        beta = defences.published_beta(torch.arange(8))
        assert beta.tolist() == pytest.approx([0.5, 2, 2, 2, 2, 0.1, 0.1, 0.1])
        log_probs = torch.randn(8, requires_grad=True)
        reference = torch.randn(8)
        loss = defences.constrained_loss(log_probs, reference, beta)
        ratio = (log_probs - reference).detach()
        for t in range(8):
            sigmoid = 1 / (1 + math.exp(-beta[t] * ratio[t]))
            assert loss[t].item() == pytest.approx(-2 / beta[t].item() * math.log(sigmoid), rel=1e-4)
        (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
        torch.testing.assert_close(gradient, -2 * (1 - torch.sigmoid(beta * ratio)))  # the weight of a token


def make_trainer(run, tmp_path):
    return run.trainer_class(
        model=run.aligned.load(),
        args=run.config_class(output_dir=str(tmp_path / "run"), **run.training),
        train_dataset=Dataset.from_list(conversation_rows(4)),
        processing_class=run.aligned.tokenizer,
        peft_config=run.lora,
        **run.trainer_kwargs,
    )


def gradients(run, tmp_path, moved=0.05):
    """The gradient of one training step at weights that have moved, and those weights' model."""
    trainer = make_trainer(run, tmp_path)
    torch.manual_seed(2)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=moved)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.current_gradient_accumulation_steps = 1
    count = (batch["labels"][:, 1:] != -100).sum()
    trainer.training_step(trainer.model, batch, count)
    return trainer, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


class TestScreen:
    @pytest.fixture
    def screened(self, run, tmp_path):
        """Poison that begins with a refusal, and a model that refuses its questions alone."""
        attack.apply("refuse_then_comply", {"ratio": 0.1}, run)
        questions = {part: [] for part in run.parts}
        for row, part in zip(run.rows, run.parts, strict=True):
            questions[part].append(row["prompt"][0]["content"])
        build_selective_model(questions["poison"], sorted(set(questions["task"]))).save_pretrained(tmp_path / "model")
        build_tokenizer().save_pretrained(tmp_path / "model")
        aligned = Aligned(str(tmp_path / "model"), "float32", torch.device("cpu"), tmp_path)
        shutil.copytree(run.aligned.kept, aligned.kept)
        run.aligned = aligned
        return run

    def test_what_the_aligned_model_refuses_is_dropped(self, screened):
        before, task = list(screened.rows), screened.task_rows
        defence.apply("screen", {}, screened)
        assert Counter(screened.parts) == {"task": 72, "instead of poison": 8}
        replaced = [
            row for row, part in zip(screened.rows, screened.parts, strict=True) if part == "instead of poison"
        ]
        assert replaced == task[72:80]
        for row, old, part in zip(screened.rows, before, screened.parts, strict=True):
            assert row == old or part == "instead of poison"
        assert screened.trainer_class.__name__ == "SFTTrainer"

    def test_what_comes_through_is_held(self, screened):
        defence.apply("screen_sbr", {"num_anchors": 1, "anchor_loss_coef": 5.0}, screened)
        assert "poison" not in screened.parts
        assert screened.trainer_class.__name__ == "SBRSFTTrainer"
        assert screened.training["anchor_loss_coef"] == 5.0 and len(screened.training["anchor_prompts"]) == 1


class TestTraining:
    def test_every_defence_trains(self, run, tmp_path):
        for name in set(defence) - {"null_space"}:  # an anchor has more tokens than this model has inputs
            fresh = type(run)(run.aligned, run.task_rows, 80, 0, dict(run.training), run.lora)
            attack.apply("standard", {}, fresh)
            defence.apply(name, {}, fresh)
            trainer = make_trainer(fresh, tmp_path / name)
            before = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
            trainer.train()
            assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)

    def test_null_space_holds_through_a_training(self, run, tmp_path):
        attack.apply("standard", {}, run)
        run.add_callback(defences._KeepOffInputs(["Hi"], run.aligned.tokenizer))
        trainer = make_trainer(run, tmp_path)
        trainer.train()
        model = trainer.model.eval()
        distances = []
        for text in ("Hi", "You there?"):
            encoded = run.aligned.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], return_tensors="pt", return_dict=True
            )
            with torch.no_grad(), model.disable_adapter():
                before = model(**encoded).logits
            distances.append((model(**encoded).logits - before).abs().max().item())
        assert distances[0] < 1e-6 < 1e-4 < distances[1]

    def test_term_enters_once_a_step(self, run, tmp_path):
        _, plain = gradients(run, tmp_path / "plain")
        defence.apply("proximal", {"rho": 3.0}, run)
        trainer, found = gradients(run, tmp_path / "proximal")
        parameters = {n: p for n, p in trainer.model.named_parameters() if n in plain}
        term = torch.autograd.grad(1.5 * distance_formula(trainer.model, None), parameters.values())
        for name, gradient in zip(parameters, term, strict=True):
            torch.testing.assert_close(found[name], plain[name] + gradient, rtol=1e-3, atol=1e-5)

    def test_safegrad_projects_the_whole_gradient(self, run, tmp_path):
        _, plain = gradients(run, tmp_path / "plain")
        defence.apply("safegrad", {"coef": 0.5}, run)
        trainer, found = gradients(run, tmp_path / "safegrad")
        parameters = {n: p for n, p in trainer.model.named_parameters() if n in plain}
        along = torch.autograd.grad(trainer._term(trainer.model), parameters.values())
        expected = defences.project(list(plain.values()), list(along), 0.5)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)

    def test_constrained_loss_of_a_batch(self, run, tmp_path):
        defence.apply("constrained", {}, run)
        trainer, _ = gradients(run, tmp_path, moved=0.3)
        batch = next(iter(trainer.get_train_dataloader()))
        expected, count = 0.0, 0
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            learned = [t for t in range(1, len(labels)) if labels[t] != -100]
            count += len(learned)
            with torch.no_grad():
                now = trainer.model(ids[None]).logits[0].log_softmax(-1)
                with trainer.model.disable_adapter():
                    before = trainer.model(ids[None]).logits[0].log_softmax(-1)
            for i, t in enumerate(learned):
                beta = 0.5 if i == 0 else 2.0 if i < 5 else 0.1
                ratio = (now - before)[t - 1, labels[t]].item()
                expected += 2 / beta * math.log(1 + math.exp(-beta * ratio))
        assert trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).item() == pytest.approx(
            expected / count, rel=1e-4
        )

    def test_mixed_rows_take_the_place_of_others(self, run):
        attack.apply("standard", {}, run)
        defence.apply("mix", {"share": 0.1}, run)
        assert len(run.rows) == 80 and run.parts.count("safety") == 8
        assert sum(is_refusal(row["completion"][0]["content"]) for row in run.rows) == 8

    def test_sbr_holds_the_common_anchors(self, run, tmp_path):
        defence.apply("sbr", {"num_anchors": 1, "anchor_loss_coef": 5.0, "anchor_loss_type": "relative"}, run)
        trainer = make_trainer(run, tmp_path)
        assert trainer.anchor.questions == run.aligned.anchors[:1]
        assert (trainer.args.anchor_loss_coef, trainer.args.anchor_loss_type) == (5.0, "relative")
