# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Makes the hardening adapter of the demo of what `trl-sbr harden` wrote:

```bash
trl-sbr harden --config smollm2-135m-instruct/harden_lora --model_name_or_path ALIGNED --output_dir hardened
python -m trl_sbr.demo.pack_hardening_adapter hardened trl_sbr/demo/hardening_adapter
```

`ALIGNED` is the folder of the aligned SmolLM2, see [`~trl_sbr.demo.smollm2.get_aligned_model`].
"""

import json
import sys
from pathlib import Path


def main(hardened: Path, output_dir: Path) -> None:
    """Writes the adapter in bfloat16, and its record without the path of a folder."""
    import torch
    from peft import PeftConfig
    from safetensors.torch import load_file, save_file

    from ..anchors.provenance import public_name
    from ..trainers.hardening_record import RECORD_NAME, read_hardening

    record = read_hardening(hardened)
    weights = load_file(hardened / "adapter" / "adapter_model.safetensors")
    config = PeftConfig.from_pretrained(str(hardened / "adapter"))
    base = record["base_model"]["name_or_path"] = public_name(record["base_model"]["name_or_path"])
    config.base_model_name_or_path = base
    output_dir.mkdir(parents=True)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(rounded, output_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(output_dir)
    (output_dir / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
