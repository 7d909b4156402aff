# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import dataclass

from trl import DPOConfig

from .anchor_arguments import SBRArguments


@dataclass
class SBRDPOConfig(SBRArguments, DPOConfig):
    r"""
    Configuration class for the [`SBRDPOTrainer`].

    It is [`~trl.DPOConfig`] with the parameters of the anchor term, see [`AnchorArguments`] and [`SBRArguments`]. Using
    [`~transformers.HfArgumentParser`] this class can be turned into
    [argparse](https://docs.python.org/3/library/argparse#module-argparse) arguments that can be specified on the command
    line.
    """

    _VALID_DICT_FIELDS = DPOConfig._VALID_DICT_FIELDS + ["chat_template_kwargs"]
