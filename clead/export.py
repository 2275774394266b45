"""``python -m clead.export RUN --out encoder.safetensors``: the encoder's weights with torchvision's key names."""

from __future__ import annotations

from clead.errors import UserError, leave_on_interrupt, run_command

if __name__ == "__main__":
    leave_on_interrupt()

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from safetensors.torch import save

from clead.cli import tyro_cli
from clead.config import Stage
from clead.config.values import Flag
from clead.engine.files import write_atomic
from clead.loading import load
from clead.models import torchvision_state_dict
from clead.own_modules import HELP as IMPORT_HELP
from clead.own_modules import import_own


@dataclass(frozen=True)
class Export:
    """Write the encoder of a run as one safetensors file, keys as in torchvision, normalisation in its metadata."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    out: Path
    """The file to write."""
    branch: str | None = None
    """Batch-norm branch; default the run's evaluation branch."""
    stage: Stage = "pretrain"
    """After which stage; full_finetune and adv_finetune change the encoder."""
    overwrite: Flag = False
    """Replace an existing file."""
    modules: Annotated[str | None, tyro.conf.arg(name="import", metavar="MODULE,…", help=IMPORT_HELP)] = None


def main(argv: list[str]) -> None:
    """The command."""
    import_own(argv)
    options: Export = tyro_cli(Export, argv, prog="python -m clead.export", description=Export.__doc__)
    if options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out}: the file exists; pass --overwrite or another --out")
    encoder = load(options.run, stage=options.stage).encoder
    branch = options.branch or encoder.evaluation_branch
    tensors = torchvision_state_dict(encoder, branch)
    mean, std = encoder.normalization
    metadata = {
        "input": "RGB or gray in [0, 1], then (x - mean) / std",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
    }
    write_atomic(options.out, save(tensors, {**metadata, "branch": branch, "format": "pt"}))
    print(f"{options.out}: {len(tensors)} tensors; apply (x - {mean}) / {std} to images in [0, 1] first")


if __name__ == "__main__":
    run_command(main)
