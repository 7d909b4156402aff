# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Faults that releases of TRL and its relatives have of their own. A test that meets one is skipped on that release, with the
reason; `benchmarks/compatibility.py` counts them.
"""

import datasets
import peft
import pytest
import trl
from packaging.version import Version
from transformers import Trainer
from trl import DPOTrainer, GRPOTrainer, SFTTrainer


TRL = Version(trl.__version__)
DATASETS = Version(datasets.__version__)

takes_peft_by_itself = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.19.1"), reason="transformers' `add_adapter` takes peft from 0.19.1"
)
trains_in_a_process_of_its_own = pytest.mark.skipif(  # where no test can be skipped from
    TRL.release[:2] == (1, 15), reason="TRL 1.15's fused LM head has no CPU path"
)
names_the_broken_file = pytest.mark.skipif(
    Version("4.7.0") <= DATASETS < Version("4.8.4"),
    reason="datasets before 4.8.4 raises a bare `ValueError` at a broken row",
)


def fault_of_the_loss(trainer: Trainer) -> str | None:
    """Why TRL's own `compute_loss` fails on this release, without an anchor too."""
    if TRL.release[:2] == (1, 15) and trainer.args.use_cpu:
        return "TRL 1.15's fused LM head has no CPU path"
    if TRL < Version("1.15") and trainer.args.label_smoothing_factor != 0:
        return "TRL before 1.15 fails under label smoothing"
    return None


def skip_where_trl_fails() -> None:
    """Skip each test of this process that gets as far as a fault of TRL's own loss."""
    for cls in (SFTTrainer, DPOTrainer, GRPOTrainer) if TRL < Version("1.16") else ():
        cls.compute_loss = _skipping(cls.compute_loss)


def _skipping(original):
    def compute_loss(self, *args, **kwargs):
        if reason := fault_of_the_loss(self):
            pytest.skip(reason)
        return original(self, *args, **kwargs)

    return compute_loss
