# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The numerics that a forward has, and how far they may move a state."""

import json
from typing import Any

import torch
from torch import nn

from .anchor_files import dtype_name


def numerics_of(model: nn.Module) -> dict[str, Any]:
    """Returns the numerics that a forward of `model` has here and now: dtype, autocast's dtype, quantization."""
    device_type = model.device.type
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    return {
        "dtype": dtype_name(model.dtype),
        "autocast_dtype": None if autocast is None else dtype_name(autocast),
        # `default=str`: quantization configurations hold torch dtypes
        "quantization": None if quantization is None else json.loads(json.dumps(quantization, default=str)),
    }


def tolerance_of(*numerics: dict[str, Any]) -> float:
    """Returns the relative error of a state that the coarsest of some numerics explains, other kernels and TF32 included."""
    dtypes = {n["autocast_dtype"] or n["dtype"] for n in numerics}
    return 2e-3 if dtypes <= {"float32", "float64"} else 5e-2
