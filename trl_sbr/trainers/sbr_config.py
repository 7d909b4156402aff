# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import dataclass

from trl import SFTConfig

from .anchor_arguments import SBRArguments


@dataclass
class SBRConfig(SBRArguments, SFTConfig):
    r"""
    Configuration class for the [`SBRSFTTrainer`].

    It is [`~trl.SFTConfig`] with the parameters of the anchor term, see [`AnchorArguments`] and [`SBRArguments`]. Using
    [`~transformers.HfArgumentParser`] this class can be turned into
    [argparse](https://docs.python.org/3/library/argparse#module-argparse) arguments that can be specified on the command
    line.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["chat_template_kwargs"]
