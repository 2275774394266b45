"""The command line of ``python -m clead.evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from clead.config import CLASSIFIER_STAGES, parse_real
from clead.errors import ArgumentParser, UserError
from clead.evaluate.figures import EVERY, expand
from clead.evaluate.finetuning import split_flags
from clead.evaluate.outside import add_arguments
from clead.evaluate.session import PROTOCOLS
from clead.own_modules import HELP as IMPORT_HELP
from clead.protocols.catalogue import NORMS
from clead.protocols.figure_data import FIGURE_DATA

_PROTOCOLS = (*PROTOCOLS, *CLASSIFIER_STAGES, *FIGURE_DATA, EVERY)
_PROTOCOLS_HELP = (
    f"{', '.join((*PROTOCOLS, *CLASSIFIER_STAGES))}; the data of one figure ({', '.join(FIGURE_DATA)}), or of {EVERY}, "
    "which is all of them"
)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = ArgumentParser(
        prog="python -m clead.evaluate",
        description="How accurate trained models are when someone tries to fool them.",
        epilog="The fine-tuning protocols (linear_eval … adv_finetune) take the settings of clead.train, after the "
        "models: --adv-finetune.epochs 5 --adv-finetune.data cifar100",
    )
    add = parser.add_argument
    what = "a run folder, a checkpoint inside one, or a model from outside (see below)"
    add("models", metavar="RUN_OR_CHECKPOINT", nargs="+", type=Path, help=what)
    add("--attacks", type=words, metavar="A,B", help="such as fgsm,pgd20,pgd40_l2,cw_l2,autoattack")
    add("--eps", type=words, metavar="EPS,…", help="radii, pixels in [0, 1]: 8/255,0.1; default those of the run")
    add("--norm", choices=NORMS, default="linf", help="the ball of attacks that name none; default linf")
    add("--steps", type=int, metavar="N", help="gradient steps of attacks that name none")
    add("--restarts", type=int, metavar="N", help="random restarts of our own attacks")
    some = "only N test images, the first (of a folder: evenly spread); flagged subset"
    add("--samples", type=int, metavar="N", help=some)
    add("--protocols", type=words, default=["attacks"], metavar="P,…", help=_PROTOCOLS_HELP)
    add("--stage", help="the stage whose checkpoint is evaluated; default the last one")
    add("--comparisons", action="store_true", help="also the models that a run was compared with")
    add("--sanity", action="store_true", help="look for masked gradients with attacks that must not beat each other")
    add("--gap", type=words, metavar="BASE,REF", help="runs between whose relative drops the gap is that is closed")
    add(
        "--corruptions",
        type=Path,
        metavar="DIR",
        help="the official files (CIFAR-10-C, ImageNet-C); default our generator",
    )
    add("--corruption-types", type=words, metavar="T,…", help="only these types, such as fog,snow")
    add("--severity", type=words, default=["1", "2", "3", "4", "5"], metavar="N,…", help="of 1 to 5; default all")
    add("--seed", type=int, metavar="N", help="of random starts; default that of the run")
    add("--batch-size", type=int, metavar="N", default=500, help="images attacked at once; default 500")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes cuda when there is one")
    add("--data-dir", type=Path, metavar="DIR", help="where the data set is; default where it was in training")
    add("--out", type=Path, metavar="DIR", help="write results.json there instead of into the run folders")
    add("--import", dest="modules", metavar="MODULE,…", help=IMPORT_HELP)
    add_arguments(parser)
    ours, of_stages = split_flags(argv)
    arguments = parser.parse_intermixed_args(ours)
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.stage_flags = tuple(of_stages)
    if arguments.eps is not None:
        arguments.eps = [parse_real(word) for word in arguments.eps]
    if not all(word in ("1", "2", "3", "4", "5") for word in arguments.severity):
        raise UserError(f"--severity must be of 1 to 5, such as 1,3,5, got {','.join(arguments.severity)!r}")
    arguments.severity = [int(word) for word in arguments.severity]
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    for name in ("steps", "restarts", "samples", "batch_size", "image_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for eps in arguments.eps or ():
        if eps < 0 or (arguments.norm == "linf" and eps > 1):
            raise UserError(
                f"--eps must be in [0, 1] for linf (8/255 for 8 of 255) and at least 0 otherwise, got {eps}"
            )
    for name in arguments.protocols:
        if name not in _PROTOCOLS:
            raise UserError(f"--protocols must be of {', '.join(_PROTOCOLS)}, got {name!r}")
    for flag in (word for word in arguments.stage_flags if word.startswith("--")):
        stage = flag[2:].partition(".")[0].replace("-", "_")
        if stage not in arguments.protocols:
            raise UserError(f"{flag} needs --protocols {stage}, got {','.join(arguments.protocols)}")
    if arguments.gap is not None and len(arguments.gap) != 2:
        raise UserError(f"--gap must be the names of two runs, BASELINE,REFERENCE, got {arguments.gap}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device and a CUDA build of torch; found none")
    if arguments.norm != "linf" and set(FIGURE_DATA) & set(expand(arguments.protocols)):
        raise UserError(f"--norm must be linf for figures, got {arguments.norm}")
    if arguments.norm != "linf" and arguments.eps is None:
        raise UserError(f"--norm {arguments.norm} needs --eps: the radii of the run are linf")
