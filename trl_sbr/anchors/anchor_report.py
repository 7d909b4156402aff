# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class AnchorCheck:
    """
    How a model stands to one anchor; of an anchor with several points, at the worst of them.

    Args:
        prompt (`str`):
            The anchor's last user message.
        relative_error (`float`):
            `‖h - h_ref‖ / ‖h_ref‖`.
        cosine (`float`):
            Cosine similarity of `h` and `h_ref`.
        refused (`bool`):
            Whether the model's greedy answer is a refusal, behind the tokens of the refusal that are held too.
        answer (`str`):
            The start of the answer that was judged.
        opener (`str`, *optional*, defaults to `""`):
            With what the answer was begun for the model.
    """

    prompt: str
    relative_error: float
    cosine: float
    refused: bool
    answer: str
    opener: str = ""


@dataclass
class AnchorReport:
    """
    How a model stands to a [`SafetyAnchor`], anchor by anchor. `str(report)` is a table.

    Args:
        checks (`list[AnchorCheck]`):
            One check an anchor.
        same_unembedding (`bool`, *optional*):
            Whether the model's unembedding is the one of the model that the anchor was captured on. `None` if the anchor
            does not say.
    """

    checks: list[AnchorCheck]
    same_unembedding: bool | None = None

    @property
    def max_relative_error(self) -> float:
        """Largest relative error over the anchors."""
        return max(check.relative_error for check in self.checks)

    @property
    def all_refused(self) -> bool:
        """Whether every anchor is refused."""
        return all(check.refused for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serializable data."""
        return asdict(self)

    def __str__(self):
        lines = [f"{'relative error':>14}  {'cosine':>7}  {'refused':>7}  prompt"]
        for check in self.checks:
            refused = "yes" if check.refused else "NO"
            behind = f" behind {check.opener!r}" if check.opener else ""
            lines.append(f"{check.relative_error:14.2e}  {check.cosine:7.4f}  {refused:>7}  {check.prompt}{behind}")
        if self.same_unembedding is None:
            lines.append(
                "The unembedding was not checked: the anchor, of format version 1, does not say which it belongs to. "
                "Capture it again."
            )
        elif not self.same_unembedding:
            lines.append("The unembedding is another than the anchor's: equal states do not mean equal answers.")
        return "\n".join(lines)
