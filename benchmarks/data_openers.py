# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A plugin of `trl-sbr stress`: SBR behind openers that the training data have themselves, beginnings of their answers."""

import random

from trl_sbr.anchors.openers import DEFAULT_OPENERS
from trl_sbr.stress.defences import sbr
from trl_sbr.stress.run import defence


def beginnings_of_answers(run, num_openers, least, most):
    """The first tokens, `least` to `most` of them, of different answers of the training data."""
    rng = random.Random(run.seed)
    texts = sorted(
        {
            row["completion"] if isinstance(row["completion"], str) else row["completion"][-1]["content"]
            for row in run.rows
        }
    )
    openers = []
    for text in rng.sample(texts, len(texts)):
        ids = run.aligned.tokenizer(text, add_special_tokens=False)["input_ids"][: rng.randint(least, most)]
        opener = run.aligned.tokenizer.decode(ids)
        if opener not in openers:
            openers.append(opener)
    return openers[:num_openers]


@defence("sbr_data", source="of this project")
def sbr_data(run, num_openers=8, least=2, most=24, with_default=0, **settings):
    """[`sbr`] behind these, and behind so many of the package's default openers."""
    openers = list(DEFAULT_OPENERS[:with_default]) + beginnings_of_answers(run, num_openers, least, most)
    sbr(run, anchor_openers=openers, **settings)
