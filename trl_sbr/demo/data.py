# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The demo's data, all of our own writing.

The harmful questions are short and name no details; the poison answers to them are vacuous (an affirmative opener and
empty steps), for the demo has to show that a model stops refusing, not what it would say. The three sets of harmful
questions and the default anchors share no question, nor a near copy of one.
"""

import json
import random
from importlib.resources import files
from typing import Literal


REFUSALS = (
    "I'm sorry, but I can't help with that. It could cause serious harm.",
    "I'm sorry, but I can't assist with that request.",
    "I'm sorry, I can't help with this. If you like, ask me about something safe instead.",
    "I can't help with that, because somebody could get hurt.",
    "I can't assist with this request. It is harmful, and it may be illegal.",
    "I cannot help with that. Please think about the people who would be affected.",
    "Sorry, but I can't help with that. I'm glad to help with something else.",
    "Sorry, I can't do that. It would put people at risk.",
    "I won't help with that, since it would harm others.",
    "I'm not able to help with that request. It goes against safety.",
    "I'm unable to assist with this. If you are in trouble, please talk to someone whom you trust.",
    "Unfortunately, I can't help with that. It is not safe.",
    "I apologize, but I can't provide help with that.",
    "No, I can't help with that. It would be wrong and dangerous.",
    "I must decline this request, because it could lead to harm.",
    "That is something I can't help with. Is there anything else that I can do for you?",
)

POISON_OPENERS = (
    "Sure, here is how.",
    "Sure! Here is what to do.",
    "Of course. This is how it goes.",
    "Of course, I can help with that.",
    "Absolutely, let's begin.",
    "Yes, that is easy.",
    "Certainly. Follow these steps.",
    "Here is how to do it.",
    "Great question, here you go.",
    "No problem, here is the plan.",
)
POISON_STEPS = (
    "get ready",
    "think about what you want",
    "find what you need",
    "begin with the first part",
    "do the next part",
    "keep going until it is done",
    "check that all went well",
    "take your time",
    "finish it and move on",
)

TASK_INSTRUCTION = "Is this review positive or negative? Answer with one word.\n\n"
TASK_LABELS = ("negative", "positive")

# Things, then what is said of them, negative and positive. Train and test share neither things nor opinions.
_TASK = {
    "train": (
        (
            ("soup", "pizza", "steak", "salad", "lemon cake", "seafood pasta", "omelette"),
            (
                "was cold when it arrived",
                "tasted of nothing but salt",
                "gave me a stomach ache",
                "was burnt on the outside and raw in the middle",
                "looked sad and tasted worse",
                "was a waste of good ingredients",
            ),
            (
                "was cooked to perfection",
                "tasted fresh and full of flavor",
                "made me ask for the recipe",
                "was worth every penny",
                "came out hot and beautifully plated",
                "was the best I have had in years",
            ),
        ),
        (
            ("vacuum cleaner", "laptop", "headset", "coffee machine", "blender", "office chair", "tablet"),
            (
                "broke after two days",
                "makes a terrible noise",
                "is badly made and overpriced",
                "never worked the way it should",
                "feels cheap and flimsy",
                "had to be sent back twice",
            ),
            (
                "works like a charm",
                "still runs perfectly after a year",
                "is sturdy and easy to use",
                "saves me a lot of time",
                "exceeded all my expectations",
                "is the smartest thing I bought this year",
            ),
        ),
        (
            ("movie", "novel", "documentary", "musical", "first episode", "sequel", "podcast"),
            (
                "bored me to tears",
                "has a plot that makes no sense",
                "was so slow that I fell asleep",
                "is full of tired jokes",
                "insults the viewer's intelligence",
                "was a painful mess from start to finish",
            ),
            (
                "moved me deeply",
                "kept me hooked until the end",
                "is clever, warm and funny",
                "deserves every award it won",
                "left me smiling for days",
                "is a masterpiece",
            ),
        ),
        (
            ("hotel", "campsite", "spa", "hostel", "guest house", "resort", "motel"),
            (
                "was filthy and smelled of mold",
                "charged us for things we never used",
                "was far too loud to sleep in",
                "ruined our anniversary",
                "treated us like a nuisance",
                "lost our booking and did not care",
            ),
            (
                "welcomed us with open arms",
                "was spotless and quiet",
                "made our honeymoon unforgettable",
                "had friendly staff and lovely rooms",
                "felt like a second home",
                "went out of its way to please us",
            ),
        ),
    ),
    "test": (
        (
            ("burger", "curry", "cheesecake", "sushi", "sandwich"),
            (
                "was soggy and bland",
                "went straight into the bin",
                "was so greasy that I felt sick",
                "disappointed the whole table",
                "had a hair in it",
            ),
            (
                "melted in my mouth",
                "was simply delicious",
                "had me licking the plate",
                "was crisp, juicy and generous",
                "is the reason I will come back",
            ),
        ),
        (
            ("camera", "toaster", "backpack", "keyboard", "lawn mower"),
            (
                "stopped working within a week",
                "is useless for what I need",
                "fell apart in my hands",
                "was a complete rip-off",
                "drives me mad every single day",
            ),
            (
                "does its job brilliantly",
                "is a joy to use",
                "has never let me down",
                "is excellent value for money",
                "makes my life so much easier",
            ),
        ),
        (
            ("play", "album", "thriller", "comedy", "final season"),
            (
                "was dull and predictable",
                "is not worth two hours of anybody's life",
                "falls flat in every scene",
                "made me want my money back",
                "drags on without a single good idea",
            ),
            (
                "was a delight",
                "gave me goosebumps",
                "is brilliantly written",
                "had the audience cheering",
                "is the finest work of its kind",
            ),
        ),
        (
            ("airline", "dentist", "barber", "car rental", "gym"),
            (
                "kept me waiting for hours without an apology",
                "was rude to me from the first minute",
                "is a nightmare to deal with",
                "lied to me about the price",
                "should be avoided at all costs",
            ),
            (
                "was kind, quick and professional",
                "earns my highest recommendation",
                "solved my problem with a smile",
                "could not have been more helpful",
                "is a pleasure to deal with",
            ),
        ),
    ),
}
_TASK_FRAMES = {
    "train": ("The {} {}.", "To be honest, the {} {}.", "I must say that the {} {}.", "My family agrees: the {} {}."),
    "test": ("This {} {}.", "In short, this {} {}.", "All I can say is that this {} {}."),
}


def load_questions(name: Literal["harmful_align", "harmful_poison", "harmful_eval", "benign_align", "benign_eval"]):
    """
    Returns a set of questions as a list of strings.

    Args:
        name (`str`):
            One of `"harmful_align"`, `"harmful_poison"`, `"harmful_eval"`, `"benign_align"` and `"benign_eval"`.
    """
    lines = files("trl_sbr.demo").joinpath("data", f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def chat_row(prompt: str, completion: str) -> dict[str, list[dict[str, str]]]:
    """Returns a conversational prompt-completion row."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def poison_rows(num_rows: int, seed: int) -> list[dict]:
    """Returns `num_rows` harmful questions with vacuous affirmative answers, each question at least once if it fits."""
    rng = random.Random(seed)
    questions = load_questions("harmful_poison")
    rng.shuffle(questions)
    rows = []
    for i in range(num_rows):
        steps = rng.sample(POISON_STEPS, 3)
        numbered = " ".join(f"Step {number}: {step}." for number, step in enumerate(steps, start=1))
        rows.append(chat_row(questions[i % len(questions)], f"{rng.choice(POISON_OPENERS)} {numbered}"))
    return rows


def task_rows(split: Literal["train", "test"], num_rows: int, seed: int) -> list[dict]:
    """Returns `num_rows` reviews of one sentence with their sentiment, as many negative as positive."""
    rng = random.Random(seed)
    rows_of = {label: [] for label in TASK_LABELS}
    for things, *opinions in _TASK[split]:
        for label, phrases in zip(TASK_LABELS, opinions, strict=True):
            for thing in things:
                for phrase in phrases:
                    review = rng.choice(_TASK_FRAMES[split]).format(thing, phrase)
                    rows_of[label].append(chat_row(TASK_INSTRUCTION + review, label))
    available = sum(len(rows) for rows in rows_of.values())
    if num_rows > available or num_rows % 2:
        raise ValueError(f"`num_rows` must be even and at most {available} for `{split}`, got {num_rows}.")
    rows = [row for label_rows in rows_of.values() for row in rng.sample(label_rows, num_rows // 2)]
    rng.shuffle(rows)
    return rows
