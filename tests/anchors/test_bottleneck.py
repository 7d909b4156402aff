# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from tests.tiny import ARCHITECTURES, build_model, build_tokenizer
from trl_sbr.anchors.bottleneck import (
    final_hidden_states,
    freeze_unembedding,
    get_unembedding,
    lay_out,
    pad_right,
    relative_errors,
    share_prefix,
)
from trl_sbr.anchors.prompts import DEFAULT_PROMPTS, encode_prompts


INPUT_IDS = encode_prompts(build_tokenizer(), list(DEFAULT_PROMPTS))
# Prompts, openers behind them, and refusals behind both
TREE = [ids + opener + [9, 10] for ids in INPUT_IDS[:3] for opener in ([], [20, 21, 22], [20, 23])]
TREE_POINTS = [[len(ids) - 3, len(ids) - 2, len(ids) - 1] for ids in TREE]
# No attention mask to share a row by, none of this form, or a window shorter than the row
NEED_ROWS_OF_THEIR_OWN = {"mistral", "gemma2", "gemma3_text", "bloom", "mamba"}


class TestSharePrefix:
    def test_no_token_stands_twice(self):
        batch = share_prefix([[5, 6, 7], [5, 6, 8, 9], [5, 6, 7, 9]], "cpu")
        assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 9]]
        assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 2, 3, 3]]
        assert batch.rows.tolist() == [0, 0, 0]
        assert batch.columns.tolist() == [2, 4, 5]
        assert batch.inputs["attention_mask"][0, 0].int().tolist() == [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 0, 1, 0, 0],
            [1, 1, 0, 1, 1, 0],
            [1, 1, 1, 0, 0, 1],
        ]

    def test_a_prompt_that_another_begins_with(self):
        batch = share_prefix([[5, 6, 7], [5, 6], [5, 6]], "cpu", positions=[[1, 2], [1], [0, 1]])
        assert batch.inputs["input_ids"].tolist() == [[5, 6, 7]]
        assert batch.columns.tolist() == [1, 2, 1, 0, 1]

    def test_nothing_in_common(self):
        batch = share_prefix([[1, 2], [3]], "cpu")
        assert batch.inputs["input_ids"].tolist() == [[1, 2, 3]]
        assert batch.inputs["attention_mask"][0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]

    def test_points_in_the_shared_part_and_behind_it(self):
        batch = share_prefix([[5, 6, 7], [5, 6, 8, 9]], "cpu", positions=[[0, 1, 2], [1, 2, 3]])
        assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
        assert batch.rows.tolist() == [0] * 6
        assert batch.columns.tolist() == [0, 1, 2, 1, 3, 4]


class TestPadRight:
    def test_points(self):
        batch = pad_right([[5, 6, 7], [5, 6, 8, 9]], "cpu", positions=[[0, 2], [1, 2, 3]])
        assert batch.rows.tolist() == [0, 0, 1, 1, 1]
        assert batch.columns.tolist() == [0, 2, 1, 2, 3]


class TestLayOut:
    @pytest.mark.parametrize(
        ("input_ids", "positions"), [(INPUT_IDS, None), (TREE, TREE_POINTS)], ids=["last", "tree"]
    )
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_states_and_gradients_are_those_of_padded_rows(self, architecture, input_ids, positions):
        model = build_model(architecture)
        freeze_unembedding(model)
        batches = [
            pad_right(input_ids, "cpu", positions),
            lay_out(model, input_ids, tolerance=1e-4, positions=positions),
        ]
        states, gradients = [], []
        for batch in batches:
            model.zero_grad()
            states.append(final_hidden_states(model, get_unembedding(model), batch))
            states[-1].pow(2).mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert relative_errors(states[1], states[0]).max() < 1e-5
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * gradients[0].abs().max().item())
        assert (len(batches[1].inputs["input_ids"]) == 1) is (architecture not in NEED_ROWS_OF_THEIR_OWN)

    def test_points_are_those_of_unpadded_forwards(self):
        model, positions = build_model("llama"), [[0, 5, len(ids) - 2] for ids in INPUT_IDS]
        with torch.no_grad():
            expected = [
                model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, points]
                for ids, points in zip(INPUT_IDS, positions, strict=True)
            ]
            batch = lay_out(model, INPUT_IDS, tolerance=1e-4, positions=positions)
            found = final_hidden_states(model, get_unembedding(model), batch)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)

    def test_a_single_prompt_is_a_row(self):
        assert "position_ids" not in lay_out(build_model("llama"), INPUT_IDS[:1], tolerance=1e-4).inputs

    def test_other_attention_than_sdpa_gets_padded_rows(self):
        model = build_model("llama")
        model.set_attn_implementation("eager")
        assert "position_ids" not in lay_out(model, INPUT_IDS, tolerance=1e-4).inputs
