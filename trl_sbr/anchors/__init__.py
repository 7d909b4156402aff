# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What is held: harmful prompts, and the aligned model's states on them."""
