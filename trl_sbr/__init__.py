# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Safety Bottleneck Regularization for TRL. Public names load on first use: `import trl_sbr` imports nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

_PUBLIC = {
    "AnchorReport": "anchors.anchor_report",
    "HardeningConfig": "trainers.hardening_config",
    "HardeningTrainer": "trainers.hardening_trainer",
    "SBRConfig": "trainers.sbr_config",
    "SBRDPOConfig": "trainers.sbr_dpo_config",
    "SBRDPOTrainer": "trainers.sbr_dpo_trainer",
    "SBRGRPOConfig": "trainers.sbr_grpo_config",
    "SBRGRPOTrainer": "trainers.sbr_grpo_trainer",
    "SBRSFTTrainer": "trainers.sbr_sft_trainer",
    "SafetyAnchor": "anchors.safety_anchor",
    "SafetyMonitor": "trainers.safety_monitor",
    "generate_answers": "anchors.generation",
    "harmful_score_path": "metrics",
    "is_refusal": "metrics.harmful_score.refusal",
    "protect": "trainers.protect",
}

__all__ = [
    "AnchorReport",
    "HardeningConfig",
    "HardeningTrainer",
    "SBRConfig",
    "SBRDPOConfig",
    "SBRDPOTrainer",
    "SBRGRPOConfig",
    "SBRGRPOTrainer",
    "SBRSFTTrainer",
    "SafetyAnchor",
    "SafetyMonitor",
    "generate_answers",
    "harmful_score_path",
    "is_refusal",
    "protect",
]

if TYPE_CHECKING:
    from .anchors.anchor_report import AnchorReport
    from .anchors.generation import generate_answers
    from .anchors.safety_anchor import SafetyAnchor
    from .metrics import harmful_score_path
    from .metrics.harmful_score.refusal import is_refusal
    from .trainers.hardening_config import HardeningConfig
    from .trainers.hardening_trainer import HardeningTrainer
    from .trainers.protect import protect
    from .trainers.safety_monitor import SafetyMonitor
    from .trainers.sbr_config import SBRConfig
    from .trainers.sbr_dpo_config import SBRDPOConfig
    from .trainers.sbr_dpo_trainer import SBRDPOTrainer
    from .trainers.sbr_grpo_config import SBRGRPOConfig
    from .trainers.sbr_grpo_trainer import SBRGRPOTrainer
    from .trainers.sbr_sft_trainer import SBRSFTTrainer


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__():
    return [*globals(), *__all__]
