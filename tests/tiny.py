# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Builders of tiny models, of a tokenizer and of rows, for tests and for the processes that tests launch."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast


REFUSAL = "I cannot help with that."

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a ChatML template, that puts a BOS token before plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(REFUSAL)])
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side=padding_side,
    )


VOCAB_SIZE = len(build_tokenizer())

_SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 16}

# Architectures whose final hidden states the anchor must read, each with what makes it special
ARCHITECTURES = {
    "llama": {},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 2.0},
    "gemma3_text": _GEMMA,
    "phi3": {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mamba": {"state_size": 8, "num_hidden_layers": 2},
}


def build_model(architecture: str, seed: int = 0, **overrides) -> torch.nn.Module:
    """A tiny random causal LM. Its weights are large enough for its states to tell prompts apart."""
    settings = {"model_type": architecture, **_SMALL, **ARCHITECTURES[architecture], **overrides}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.initializer_range = 0.2
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def build_vision_language_model() -> torch.nn.Module:
    """A tiny random Gemma 3 with a vision tower, to be used with text."""
    config = AutoConfig.for_model(
        "gemma3",
        text_config={"model_type": "gemma3_text", **_SMALL, **_GEMMA},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


def build_refusing_model() -> torch.nn.Module:
    """A tiny Phi, whose unembedding has a bias: it makes the refusal the first token of every answer, and ends there."""
    tokenizer = build_tokenizer()
    settings = {**_SMALL, "num_key_value_heads": 4, "eos_token_id": tokenizer.convert_tokens_to_ids(REFUSAL)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi", **settings), dtype=torch.float32).eval()
    with torch.no_grad():
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(REFUSAL)] = 30.0
    return model


def conversation_rows(count: int) -> list[dict]:
    """Prompt-completion conversations of different lengths."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Is review {'very ' * (i % 4)}{i} good?"}],
            "completion": [{"role": "assistant", "content": "yes" if i % 3 else "no, it is not"}],
        }
        for i in range(count)
    ]


def build_talkative_model() -> torch.nn.Module:
    """The tiny Phi that refuses every prompt, whose refusals go on."""
    model = build_refusing_model()
    model.generation_config.eos_token_id = None
    return model


def build_selective_model(refused: list[str | tuple], answered: list[str | tuple]) -> torch.nn.Module:
    """A tiny Phi that refuses some prompts, or prompts with an opener behind them, and ends its answer to the others at once."""
    tokenizer = build_tokenizer()
    refusal, end = tokenizer.convert_tokens_to_ids([REFUSAL, "<|im_end|>"])
    settings = {**_SMALL, "hidden_size": 128, "num_key_value_heads": 4, "eos_token_id": [refusal, end]}
    config = AutoConfig.for_model("phi", initializer_range=0.2, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    states = []
    for context in refused + answered:
        prompt, opener = context if isinstance(context, tuple) else (context, "")
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text + opener, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states.append(model(ids, output_hidden_states=True).hidden_states[-1][0, -1])
    logits = torch.tensor([100.0] * len(refused) + [-100.0] * len(answered))
    weight = torch.linalg.lstsq(torch.stack(states), logits, driver="gelsd").solution
    with torch.no_grad():
        model.lm_head.weight[refusal], model.lm_head.weight[end] = weight, -weight
    return model
