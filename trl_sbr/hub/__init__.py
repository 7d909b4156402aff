# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""To and from the Hub: repositories, folders as they are published, and their cards."""
