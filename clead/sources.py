"""The data sets a run looks at, each loaded once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from clead import data
from clead.config import Stage, TrainConfig
from clead.data import Splits
from clead.errors import UserError


@dataclass
class Sources:
    """Data sets by name and folder; comparisons share those of the run beside them.

    Attributes:
        loaded: what is there already.
    """

    loaded: dict[tuple[str, Path], Splits] = field(default_factory=dict)

    def source(self, config: TrainConfig) -> Splits:
        """What the pre-training sees."""
        return self._load(config, config.data, config.data_dir)

    def of(self, config: TrainConfig, stage: Stage) -> Splits:
        """What a classifier stage sees: the same, or the data set it transfers to, at the size of the pre-training's.

        Raises:
            UserError: the stage's settings do not fit its data.
        """
        stage_config, source = config.finetuning(stage), self.source(config)
        splits = source
        if stage_config.data is not None:
            splits = self._load(config, stage_config.data, stage_config.data_dir or config.data_dir)
        if splits.in_channels != source.in_channels:
            raise UserError(
                f"{stage}.data must have images with {source.in_channels} channels like {config.data}, "
                f"got {splits.in_channels}"
            )
        if splits.image_size != source.image_size:
            splits = splits.resize(source.image_size)
        if stage_config.val_fraction:
            splits = splits.hold_out(stage_config.val_fraction)
        for part, labels in (("training", splits.train.labels), ("test", splits.test.labels)):
            if bool((labels < 0).any()):
                raise UserError(f"{stage} needs labels: expected one for every {part} image of {splits.train.name}")
        if stage_config.batch_size > len(splits.train):
            raise UserError(
                f"{stage}.batch_size must be at most the {len(splits.train)} training samples, "
                f"got {stage_config.batch_size}"
            )
        if stage_config.select == "best_val" and not len(splits.val):
            raise UserError(
                f"{stage}.val_fraction must hold out an image or more of the {len(splits.train)} for best_val, "
                f"got {stage_config.val_fraction}"
            )
        return splits

    def _load(self, config: TrainConfig, name: str, folder: Path) -> Splits:
        if (name, folder) not in self.loaded:
            splits = data.load(name, folder, download=config.download, image_size=config.image_size)
            if config.train_samples is not None:
                first = torch.arange(len(splits.train))[: config.train_samples]
                splits = replace(splits, train=splits.train.select(first))
            self.loaded[name, folder] = splits
        return self.loaded[name, folder]
