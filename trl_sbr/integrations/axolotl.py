# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Safety Bottleneck Regularization in axolotl, whichever trainer of its own it builds.

```yaml
plugins:
  - trl_sbr.integrations.axolotl.SBRPlugin
sbr:
  anchor_name_or_path: my-anchor
```

axolotl goes on without a plugin that it cannot import. What was trained with this one has its `sbr_run.json`.
"""

from typing import Annotated, Any, Literal

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict, Field


# What the rest of the package needs is imported by what is run: axolotl would train on without the plugin if it were missing

# What runs the model in another way than the trainer does, or trains what no adapter holds
_NOT_HELD = {
    "context_parallel_size": "splits the anchor prompts over processes. Use data parallelism (FSDP2, DeepSpeed) instead.",
    "layer_offloading": "moves the layers around the trainer's own step alone. Leave it out.",
    "relora": "merges the adapter into the base model, which is the aligned one no longer. Use `adapter: lora` without it.",
}


class SBRSettings(BaseModel):
    """
    The settings under `sbr:`, by the names of [`AnchorArguments`]. The anchor is captured before, with `trl-sbr anchor`.
    """

    model_config = ConfigDict(extra="forbid")

    anchor_name_or_path: str
    anchor_revision: str | None = None
    anchor_reference: Literal["base", "current"] = "base"
    anchor_require_refusal: bool = True
    anchor_loss_coef: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0
    anchor_target_error: Annotated[float, Field(gt=0, lt=1)] | None = None
    anchor_loss_type: Literal["mse", "sum", "relative"] = "mse"
    anchors_per_step: Annotated[int, Field(ge=1)] | None = None


class SBRInputArgs(BaseModel):
    """What this plugin adds to the schema of axolotl's configuration."""

    sbr: SBRSettings


class SBRPlugin(BasePlugin):
    """Holds the anchor that `sbr:` names in the trainer that axolotl has built, see [`protect`]."""

    def get_input_args(self) -> str:
        return f"{__name__}.{SBRInputArgs.__name__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """
        Raises:
            ValueError: If the configuration has something under which the anchor is not held, or [`protect`] finds it.
        """
        for name, reason in _NOT_HELD.items():
            if cfg[name] is True or (cfg[name] or 1) > 1:
                raise ValueError(f"Found `{name}: {cfg[name]}` beside `sbr`, which {reason}")
        from trl_sbr.trainers.protect import protect

        settings = SBRSettings(**cfg["sbr"])
        self._trainer = protect(
            trainer,
            settings.anchor_name_or_path,
            coef=settings.anchor_loss_coef,
            target_error=settings.anchor_target_error,
            loss_type=settings.anchor_loss_type,
            anchors_per_step=settings.anchors_per_step,
            reference=settings.anchor_reference,
            require_refusal=settings.anchor_require_refusal,
            revision=settings.anchor_revision,
        )

    def post_train(self, cfg: Any, model: Any) -> None:
        """
        Save what was trained with its anchor and its record: axolotl saves the weights alone. It calls this when the training has
        ended, and again at its very end, when the processes have parted.
        """
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.save_model()
