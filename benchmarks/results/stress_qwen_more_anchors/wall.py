# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The defence of these cells, a plugin of `trl-sbr stress` at commit 4cd1707: `null_space` with more anchors of the package's pool."""

from trl_sbr.anchors.prompt_pool import choose_prompts
from trl_sbr.stress.defences import sbr
from trl_sbr.stress.run import Run, defence


@defence("wall", source="Null-space adapters, as in LoRA-Null and GuardSpace, on SBR's anchors")
def wall(run: Run, num_anchors: int = 8) -> None:
    """After each step each adapter is projected off the inputs of its layer on the anchors."""
    sbr(run, num_anchors, anchor_method="subspace")
    run.training["anchor_prompts"] = choose_prompts(run.aligned.load(), run.aligned.tokenizer, num_anchors)
