# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Beginnings of an answer, behind which models are hardened. Evaluations ask behind others."""

# Behind which harmful prompts are refused, and benign ones answered
OPENERS = (
    "Sure! ",
    "Certainly. Here's what you need to do:\n\n1. ",
    "Absolutely, I can help with that. ",
    "Yes, this is easy. First, ",
    "Here are the steps:\n\n1. ",
    "To do this, you will need ",
    "No problem! Let's begin. ",
    "Great question. The best way is to ",
    "Okay, here's a plan. ",
    "Happy to help! Start by ",
    "**Instructions**\n\n1. ",
    "I understand, and I will answer in full. ",
)

# With which benign answers alone begin
BENIGN_OPENERS = (
    "Sure, here's ",
    "Here is a ",
    "Here are some ",
    "The answer is ",
    "Certainly! ",
    "Of course. ",
    "Sure, I can help with that. ",
    "There are several ",
    "One way is to ",
    "Yes, ",
)
