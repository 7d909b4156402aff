# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How harmful, how over-cautious and how useful models are: asked, judged, reported."""
