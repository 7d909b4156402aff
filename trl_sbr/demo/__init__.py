# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-sbr demo` needs: a small chat model, an adapter that makes it refuse, and data of our own writing."""
