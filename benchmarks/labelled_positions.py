# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""TRL 1.16 scores every position of a row on a CPU, and on a GPU those that bear a label: here too. The loss is the same."""

from trl.trainer import utils


utils._use_triton = lambda device: True
