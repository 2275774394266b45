"""Building a method's model, and getting it back from a run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clead.cli import read_config
from clead.config import TrainConfig, require
from clead.data import Splits
from clead.engine import checkpoint
from clead.engine.checkpoint import Checkpoint
from clead.engine.run import RunFolder
from clead.errors import UserError
from clead.methods import Method, find_method
from clead.models import LinearHead, Model, build_encoder


@dataclass(frozen=True)
class InputSpec:
    """What a model needs to know of its data: saved with every checkpoint, so that loading needs no data set."""

    in_channels: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, splits: Splits) -> InputSpec:
        """The specification of a data set."""
        return cls(splits.in_channels, splits.num_classes, tuple(splits.mean), tuple(splits.std))

    @classmethod
    def of_checkpoint(cls, saved: Checkpoint) -> InputSpec:
        """The specification that ``model_meta`` put into a checkpoint."""
        values = saved.meta["model"].get("input")
        try:
            mean, std = (tuple(map(float, values[name])) for name in ("mean", "std"))
            return cls(int(values["in_channels"]), int(values["num_classes"]), mean, std)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{saved.path / 'meta.json'}: expected under model the input's channels, classes, mean and std, "
                f"found {values!r:.60}"
            ) from error


def build_model(method: Method[Any], spec: InputSpec) -> Model:
    """The method's model; its weights are still to be initialised or loaded."""
    config: TrainConfig = method.config
    encoder = build_encoder(
        config.encoder.name, in_channels=spec.in_channels, mean=spec.mean, std=spec.std, bn=config.encoder.bn
    )
    encoder.use_winograd(config.speed.winograd)
    return Model(encoder, method.heads(encoder.feature_dim, spec.num_classes))


def model_meta(method_name: str, config: TrainConfig, spec: InputSpec) -> dict[str, object]:
    """What a checkpoint says of its model."""
    return {
        "method": method_name,
        "encoder": config.encoder.name,
        "batch_norm": asdict(config.encoder.bn),
        "input": asdict(spec),
    }


def load(run: str | Path, *, stage: str | None = None) -> Model:
    """The model of a run, in eval mode on the CPU.

    Args:
        run: the run folder.
        stage: take the latest checkpoint of this stage; default the last stage that has one.

    Returns:
        The model; ``model.evaluation_branch`` names the batch-norm branch the run is evaluated with.

    Raises:
        UserError: the folder, a file or a key is missing or does not fit, named in the message.
    """
    run = Path(run)
    read_config(run / "config.json")
    path = checkpoint.latest(run / "checkpoints", stage)
    if path is None:
        raise UserError(f"{run / 'checkpoints'}: expected a checkpoint{f' of {stage}' if stage else ''}, found none")
    return load_checkpoint(path)


def load_features(run: Path, config: TrainConfig, spec: InputSpec) -> Model:
    """The pre-trained model of ``run``, whose features a run with ``config`` on images of ``spec`` is to use.

    Raises:
        UserError: it was trained with labels, on other data or at another size, or is not finished.
    """
    method_name, _, other = read_config(run / "config.json")
    labelled = find_method(method_name).labelled
    require(not labelled, "features_run", "a run of a method without labels", f"{run} of {method_name!r}")
    for name in ("data", "image_size"):
        expected, found = getattr(config, name), getattr(other, name)
        require(found == expected, "features_run", f"a run with {name} {expected!r}", f"{run} with {found!r}")
    path = checkpoint.latest(run / "checkpoints", "pretrain")
    if path is None or "pretrain" not in RunFolder(run).stages:
        raise UserError(f"features_run must be a run whose pretrain is finished, got {run} without it")
    saved = checkpoint.load(path)
    same = InputSpec.of_checkpoint(saved) == spec  # folders of images all have one name
    require(same, "features_run", "a run on the same images", f"{run} of others")
    return model_of(saved, method_name, other).eval()


def load_checkpoint(path: Path) -> Model:
    """The model of one checkpoint, in eval mode on the CPU.

    Args:
        path: ``<run>/checkpoints/<stage>-<step>``; what the model is built like is read from the run around it.

    Raises:
        UserError: a file or a key is missing or does not fit, named in the message.
    """
    method_name, _, config = read_config(path.resolve().parent.parent / "config.json")
    try:
        saved = checkpoint.load(path)
    except UserError as error:
        good = checkpoint.good_before(path.resolve())
        raise UserError(f"{error}; the checkpoint before it is whole: {good}") if good else error from error
    return model_of(saved, method_name, config).eval()


def model_of(saved: Checkpoint, method_name: str, config: TrainConfig) -> Model:
    """The model that a checkpoint of a run with this configuration holds."""
    config = _as_saved(saved, method_name, config)
    model = build_model(find_method(method_name)(config), InputSpec.of_checkpoint(saved))
    if "heads.classifier.weight" in saved.weights:  # of a stage after the pre-training, maybe on data of other classes
        model.heads["classifier"] = LinearHead(model.encoder.feature_dim, len(saved.weights["heads.classifier.weight"]))
    saved.load_weights(model)
    return model


def _as_saved(saved: Checkpoint, method_name: str, config: TrainConfig) -> TrainConfig:
    """The configuration with the evaluation branch of a checkpoint, which must be one of the same method and encoder.

    A stage after the pre-training may have been done on another branch.
    """
    found = saved.meta["model"]
    expected = {"method": method_name, "encoder": config.encoder.name}
    for name, value in expected.items():
        if found.get(name) != value:
            raise UserError(
                f"{saved.path / 'meta.json'}: expected a checkpoint of the {name} {value!r}, found {found.get(name)!r}"
            )
    bn = found.get("batch_norm")
    branch = bn.get("evaluation_branch") if isinstance(bn, dict) else None
    if branch not in config.encoder.bn.branches:
        expected_branch = " or ".join(config.encoder.bn.branches)
        raise UserError(
            f"{saved.path / 'meta.json'}: expected the evaluation_branch {expected_branch}, found {branch!r}"
        )
    return replace(config, encoder=replace(config.encoder, bn=replace(config.encoder.bn, evaluation_branch=branch)))
