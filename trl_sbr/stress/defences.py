# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Defences: the families that a reader asks for first, each as small as its formula, on one trainer's loop.

None is copied from a repository: formula and settings are the papers'. All that look at harmful prompts look at the same
ones, the anchors'. Those that act before fine-tuning (Vaccine, Booster, Antidote) are not here.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback
from trl import SFTTrainer

from ..anchors.adapters import disabled_adapters
from ..anchors.bottleneck import final_hidden_states, get_unembedding, pad_right
from ..anchors.prompts import encode_prompts, get_tokenizer
from ..trainers.sbr_config import SBRConfig
from ..trainers.sbr_sft_trainer import SBRSFTTrainer
from .run import Run, defence


@defence("sft", source="No defence")
def sft(run: Run) -> None:
    """Plain fine-tuning."""


@defence(
    "mix", source="Safety rows among the user's, as in Bianchi et al., 2309.07875; the refusals are the model's own"
)
def mix(run: Run, share: float = 0.1) -> None:
    """A share of the rows is replaced by harmful questions with the model's own refusals."""
    run.replace_rows("safety", run.aligned.own_refusals(run.share_of_rows(share)))


@defence("sbr", source="Safety Bottleneck Regularization, 2605.05995")
def sbr(run: Run, num_anchors: int = 8, anchor_refusal_tokens: int = 1, **settings: Any) -> None:
    """The final hidden states on the anchors are held, as the paper does. `settings` are further fields of [`SBRConfig`]."""
    run.trainer_class, run.config_class = SBRSFTTrainer, SBRConfig
    anchors = {
        "anchor_prompts": run.aligned.anchors[:num_anchors],
        "anchor_refusal_tokens": anchor_refusal_tokens,
    }
    run.training |= anchors | settings


@defence("screen", source="The aligned model as the judge of its own training data, of this project")
def screen(run: Run) -> None:
    """
    Rows whose question the aligned model refuses make room for further rows of the task, whatever they answer: one that teaches
    a refusal teaches nothing new, or takes it back.
    """
    run.drop_rows(run.aligned.refuses([row["prompt"] for row in run.rows]))


@defence("screen_sbr", source="Both: what `screen` lets through, `sbr` holds")
def screen_sbr(run: Run, **settings: Any) -> None:
    """[`screen`], then [`sbr`]."""
    screen(run)
    sbr(run, **settings)


class TermTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] whose loss has one more term.

    Args:
        coef (`float`):
            Weight of the term.
        term (`Callable`):
            Takes the PEFT model as it is before training and its tokenizer, and returns a function of the model in training,
            as it is called, to the term.
        **trainer_kwargs:
            All other arguments of [`~trl.SFTTrainer`].
    """

    def __init__(self, *, coef: float, term: Callable, **trainer_kwargs: Any):
        super().__init__(**trainer_kwargs)
        with self.accelerator.autocast():  # the numerics of a training step
            self._coef, self._term = coef, term(self.model, get_tokenizer(self.processing_class))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return loss
        term = self._term(model)
        self._metrics["train"]["term"].append(term.item())
        # A term enters once per optimizer step, and `Trainer` divides by the accumulation steps only where no count is given
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        return loss + self._coef * term / steps


def add_term(run: Run, coef: float, term: Callable) -> None:
    """Has a run trained by a [`TermTrainer`]."""
    run.trainer_class = TermTrainer
    run.trainer_kwargs |= {"coef": coef, "term": term}


def kl_on_prompts(prompts: list[str]) -> Callable:
    """The term KL(π_aligned || π_θ) of the first token of the answers to prompts."""

    def term(model: PeftModel, tokenizer) -> Callable[[nn.Module], torch.Tensor]:
        batch, unembedding = pad_right(encode_prompts(tokenizer, prompts), model.device), get_unembedding(model)

        def log_probs(called: nn.Module) -> torch.Tensor:
            states = final_hidden_states(called, unembedding, batch)
            return unembedding(states.to(unembedding.weight.dtype)).float().log_softmax(dim=-1)

        with torch.no_grad(), disabled_adapters(model):
            reference = log_probs(model)
        return lambda called: nn.functional.kl_div(
            log_probs(called), reference, reduction="batchmean", log_target=True
        )

    return term


@defence("kl", source="KL to the aligned model on safety prompts, as in SafeGrad's alignment loss, 2508.07172")
def kl(run: Run, coef: float = 1.0, num_anchors: int = 8) -> None:
    """The distribution of the first token on the anchors is held, where SBR holds the state that it is made of."""
    add_term(run, coef, kl_on_prompts(run.aligned.anchors[:num_anchors]))


def states_at_layer(prompts: list[str], depth: float) -> Callable:
    """The term of SBR, the squared error averaged over the hidden dimension, behind a layer in the middle."""

    def term(model: PeftModel, tokenizer) -> Callable[[nn.Module], torch.Tensor]:
        batch = pad_right(encode_prompts(tokenizer, prompts), model.device)
        layer = round(depth * model.config.get_text_config().num_hidden_layers)

        def states(called: nn.Module) -> torch.Tensor:
            was_training = called.training
            called.eval()  # as SBR: dropout would make an unchanged model differ
            hidden = called(**batch.inputs, use_cache=False, logits_to_keep=1, output_hidden_states=True).hidden_states
            called.train(was_training)
            return hidden[layer][batch.rows, batch.columns].float()

        with torch.no_grad(), disabled_adapters(model):
            reference = states(model)
        return lambda called: (states(called) - reference).pow(2).mean()

    return term


@defence("middle_layer", source="SBR's term where the paper says that it fails: at an inner representation")
def middle_layer(run: Run, coef: float = 50.0, depth: float = 0.5, num_anchors: int = 8) -> None:
    """The hidden states of a layer in the middle on the anchors are held."""
    add_term(run, coef, states_at_layer(run.aligned.anchors[:num_anchors], depth))


def lora_layers(model: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Yields `A`, `B` and the scale of each adapted layer: its weight has moved by `scale · B A`."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                yield module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def squared_distance(model: nn.Module) -> torch.Tensor:
    """Returns ‖θ - θ_aligned‖² of a model with LoRA: of each layer `‖B A‖²` is the sum of `(BᵀB) ∘ (AAᵀ)`."""
    return sum(scale**2 * ((b.T @ b) * (a @ a.T)).sum() for a, b, scale in lora_layers(model))


@defence("proximal", source="Lisa's proximal term, 2405.18641")
def proximal(run: Run, rho: float = 1.0) -> None:
    """`ρ/2 ‖θ - θ_aligned‖²`; the paper's ρ is 1."""
    add_term(run, rho / 2, lambda model, tokenizer: squared_distance)


class _ProjectIntoBall(TrainerCallback):
    def __init__(self, radius: float):
        self.radius = radius

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        distance = math.sqrt(squared_distance(model).item())
        if distance > self.radius:
            for _, b, _ in lora_layers(model):
                b.mul_(self.radius / distance)


@defence("ball", source="The hard constraint of SBR's stress test, ‖θ - θ_aligned‖ < 1, 2605.05995")
def ball(run: Run, radius: float = 1.0) -> None:
    """After each step the adapters are scaled back into a ball round the aligned weights."""
    run.add_callback(_ProjectIntoBall(radius))


class _KeepOffInputs(TrainerCallback):
    """
    Keeps each `A` off the inputs that its layer has on all tokens of some prompts in the aligned model: `A U = 0`, where the
    columns of `U` are an orthonormal basis of them. The adapter then changes nothing there.
    """

    def __init__(self, prompts: list[str], tokenizer):
        self.prompts, self.tokenizer = prompts, tokenizer

    @torch.no_grad()
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._bases = [
            (a, orthonormal_basis(x))
            for (a, _, _), x in zip(lora_layers(model), self._inputs(model, layers), strict=True)
        ]
        self.on_step_end(args, state, control)

    def _inputs(self, model: PeftModel, layers: list[LoraLayer]) -> list[torch.Tensor]:
        batch, found = pad_right(encode_prompts(self.tokenizer, self.prompts), model.device), {}
        is_token = batch.inputs["attention_mask"].bool()
        hooks = [
            layer.register_forward_pre_hook(lambda layer, args: found.__setitem__(layer, args[0][is_token]))
            for layer in layers
        ]
        try:
            with disabled_adapters(model):
                final_hidden_states(model, get_unembedding(model), batch)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[layer] for layer in layers]

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        for a, basis in self._bases:
            for _ in range(2):  # once more for the rounding of the first
                a -= a @ basis @ basis.T


def orthonormal_basis(inputs: torch.Tensor) -> torch.Tensor:
    """Returns an orthonormal basis of the rows of `inputs`, of shape `(in_features, rank)`, float32."""
    inputs = inputs.double()
    inputs = inputs / inputs.norm(dim=-1, keepdim=True)  # some tokens have states a thousand times as large
    _, values, vectors = torch.linalg.svd(inputs, full_matrices=False)
    basis = vectors[values > 1e-6 * values[0]].T
    if basis.shape[0] == basis.shape[1]:
        raise ValueError(
            f"Found {len(inputs)} tokens of prompts, whose states take all {len(basis)} inputs of a layer, expected fewer: nothing "
            "would be left to learn. Name fewer anchors (`num_anchors`)."
        )
    return basis.float()


@defence("null_space", source="Null-space adapters, as in LoRA-Null and GuardSpace, on SBR's anchors")
def null_space(run: Run, num_anchors: int = 8) -> None:
    """After each step each adapter is projected off the inputs of its layer on the anchors."""
    run.add_callback(_KeepOffInputs(run.aligned.anchors[:num_anchors], run.aligned.tokenizer))


class SafeGradTrainer(TermTrainer):
    """
    The task's gradient `g`, where it points against that of the term, `a`, loses its part along `a`; then `coef · a` is
    added: `g - min(g·a, 0) / ‖a‖² · a + coef · a`, over all parameters together.
    """

    def compute_loss(self, *args, **kwargs):
        return SFTTrainer.compute_loss(self, *args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            parameters = [p for p in model.parameters() if p.grad is not None]
            along = torch.autograd.grad(self._term(model), parameters)
            for parameter, gradient in zip(
                parameters, project([p.grad for p in parameters], along, self._coef), strict=True
            ):
                parameter.grad = gradient
        return loss


def project(task: list[torch.Tensor], along: list[torch.Tensor], coef: float) -> list[torch.Tensor]:
    """Returns the gradient of [`SafeGradTrainer`], of the task's and the term's."""
    dot = sum((g * a).sum() for g, a in zip(task, along, strict=True))
    square = sum(a.pow(2).sum() for a in along)
    share = dot.clamp(max=0) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return [g + (coef - share) * a for g, a in zip(task, along, strict=True)]


@defence("safegrad", source="SafeGrad, 2508.07172")
def safegrad(run: Run, coef: float = 1.0, num_anchors: int = 8) -> None:
    """The task's gradient is projected off what raises the KL to the aligned model on the anchors."""
    run.trainer_class = SafeGradTrainer
    run.trainer_kwargs |= {"coef": coef, "term": kl_on_prompts(run.aligned.anchors[:num_anchors])}


def published_beta(position: torch.Tensor) -> torch.Tensor:
    """Returns β of each position in an answer, from 0: 0.5 for the first token, 2 for the next four, then 0.1."""
    beta = torch.full(position.shape, 0.1, device=position.device)
    beta[position < 5] = 2.0
    beta[position < 1] = 0.5
    return beta


def constrained_loss(log_probs: torch.Tensor, reference: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Returns of each token `-2/β · log σ(β · log(π_θ / π_aligned))`, of shape `(num_tokens,)`."""
    return -2 / beta * nn.functional.logsigmoid(beta * (log_probs - reference))


class ConstrainedTrainer(SFTTrainer):
    """[`~trl.SFTTrainer`] with [`constrained_loss`] in the place of the negative log-likelihood of each token."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        learned = inputs["labels"][:, 1:] != -100
        position = (learned.cumsum(dim=1) - 1)[learned]

        def log_probs() -> torch.Tensor:
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            logits = outputs.logits[:, :-1][learned].float()
            return -nn.functional.cross_entropy(logits, inputs["labels"][:, 1:][learned], reduction="none")

        with torch.no_grad(), disabled_adapters(self.model):
            reference = log_probs()
        losses = constrained_loss(log_probs(), reference, published_beta(position))
        return losses.sum() / (learned.sum() if num_items_in_batch is None else num_items_in_batch)


@defence("constrained", source="Constrained SFT, Qi et al., 2406.05946")
def constrained(run: Run) -> None:
    """Token by token, the first ones are kept near the aligned model."""
    run.trainer_class = ConstrainedTrainer
