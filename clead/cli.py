"""From the command line and ``config.json`` to configurations."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import tyro

from clead.config import RunOptions, TrainConfig
from clead.config.values import Flag
from clead.data import find_dataset
from clead.engine.files import read_json
from clead.errors import UserError
from clead.methods import find_method
from clead.own_modules import HELP as IMPORT_HELP
from clead.recipes import default_recipe, find_recipe

_USUAL = (
    *("--data", "--data-dir", "--recipe", "--epochs", "--batch-size", "--seed", "--device", "--stages"),
    *("--out", "--resume", "--seeds", "--sweep", "--dry-run"),
)


@dataclass(frozen=True)
class Plan:
    """One run to do."""

    method: str
    recipe: str
    config: TrainConfig
    out: Path
    resume: bool
    overwrite: bool
    callbacks: tuple[str, ...] = ()
    profile: int = 0


def plans(argv: Sequence[str]) -> list[Plan]:
    """The runs that a ``clead.train`` command line asks for."""
    named, args = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    seen = _first_look(args)
    method, recipe, default = _starting_point(named, seen)
    as_given, options = _parse(method, default, args)
    todo: list[Plan] = []
    for extra, suffix in _variants(options):
        config = _parse(method, default, [*args, *extra])[0] if extra else as_given
        out = _run_folder(method, config, suffix, options)
        if options.resume and (out / "config.json").is_file():
            saved_method, saved_recipe, saved = read_config(out / "config.json")
            if saved_method != method:
                raise UserError(f"{out}: expected a run of {method!r} to resume, found one of {saved_method!r}")
            if seen.recipe is None and seen.config is None:  # otherwise all settings were named, and must fit
                recipe = saved_recipe
                config, _ = _parse(method, saved, [*args, *extra])
        if any(out == other.out for other in todo):
            raise UserError(f"--seeds and --sweep must give every run another folder, got {out} twice")
        what = (options.resume, options.overwrite, options.callbacks, options.profile)
        todo.append(Plan(method, recipe, config, out, *what))
    return todo


def _variants(options: RunOptions) -> list[tuple[list[str], str]]:
    """(further flags, suffix of the run folder) of every run that --sweep and --seeds ask for."""
    variants: list[tuple[list[str], str]] = [([], "")]
    if options.sweep is not None:
        name, _, values = options.sweep.partition("=")
        if not name or not values:
            raise UserError(f"--sweep must be field=value,value, got {options.sweep!r}")
        # The recipe, which holds all other settings, is chosen once; and what to do with a run is none of its settings.
        fixed = {"recipe", "config", "list", "data", *(field.name for field in fields(RunOptions))}
        if name.replace("-", "_") in fixed:
            raise UserError(f"--sweep must name a setting other than {name}, got {options.sweep!r}")
        variants = [([f"--{name}", value], f"-{name}={value.replace('/', '_')}") for value in values.split(",")]
    if options.seeds:
        variants = [([*flags, "--seed", f"{n}"], f"{suffix}-s{n}") for flags, suffix in variants for n in options.seeds]
    return variants


def _run_folder(method: str, config: TrainConfig, suffix: str, options: RunOptions) -> Path:
    if options.out is not None and suffix:
        if not options.out.name:
            raise UserError(f"--out must name a folder to which {suffix} can be added, got {options.out}")
        return options.out.with_name(options.out.name + suffix)
    if options.out is not None:
        return options.out
    swept = suffix.removesuffix(f"-s{config.seed}")
    return Path("runs") / f"{method}-{config.data}{swept}-s{config.seed}"


def _first_look(args: Sequence[str]) -> argparse.Namespace:
    """The few arguments that decide what the others mean."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--recipe", "--config", "--data"):
        parser.add_argument(flag)
    with contextlib.redirect_stderr(io.StringIO()) as captured:
        try:
            return parser.parse_known_args(list(args))[0]
        except SystemExit as error:
            raise UserError(captured.getvalue().strip().rpartition("error: ")[2]) from error


def _starting_point(method: str | None, seen: argparse.Namespace) -> tuple[str, str, TrainConfig]:
    """(method, recipe, the configuration that flags override)."""
    if seen.config is not None:
        found, recipe, config = read_config(Path(seen.config))
        if method not in (None, found):
            raise UserError(f"{seen.config}: expected a configuration of {method!r}, found one of {found!r}")
        return found, recipe, config
    if method is None:
        raise UserError(
            "expected a method as the first argument, such as `python -m clead.train clead`; --list shows all"
        )
    find_method(method)
    find_dataset(seen.data or "digits")
    chosen = find_recipe(seen.recipe) if seen.recipe else default_recipe(method, seen.data or "digits")
    if chosen.method != method:
        raise UserError(f"recipe {chosen.name!r} is for the method {chosen.method!r}, got {method!r}")
    return method, chosen.name, chosen.config


def _parse(method: str, default: TrainConfig, args: Sequence[str]) -> tuple[TrainConfig, RunOptions]:
    """All arguments but the method, with tyro."""
    config_type = type(default)
    options: list[Any] = [
        ("options", Annotated[RunOptions, tyro.conf.arg(name="")], RunOptions()),
        ("settings", Annotated[config_type, tyro.conf.arg(name="")], default),
        (
            "recipe",
            Annotated[str | None, tyro.conf.arg(help="Start from this recipe (python -m clead.recipes).")],
            None,
        ),
        ("config", Annotated[Path | None, tyro.conf.arg(help="Start from this config.json.")], None),
        ("modules", Annotated[str | None, tyro.conf.arg(name="import", metavar="MODULE,…", help=IMPORT_HELP)], None),
        ("list", Annotated[Flag, tyro.conf.arg(help="List the methods and leave.")], False),
    ]
    command = make_dataclass("Command", options, frozen=True)
    description = _description(method, default)
    parsed: Any = tyro_cli(command, list(args), prog=f"python -m clead.train {method}", description=description)
    return parsed.settings, parsed.options


def _description(method: str, default: TrainConfig) -> str:
    """What stands above hundreds of flags: what the method is, the flags to begin with, and where the others are."""
    first, _, rest = (inspect.getdoc(find_method(method)) or "").partition("\n")
    shared = {field.name for field in fields(TrainConfig)}
    names = [field.name for field in fields(default)]
    own = [name for name in names if name not in shared]
    groups = [name for name in names if is_dataclass(getattr(default, name))]
    lines = (
        f"- To begin with: {', '.join(_USUAL)}.",
        f"- Its own settings: {', '.join(own).replace('_', '-') or 'none'}; every method has the others.",
        f"- Groups, such as --optimizer.lr, below the single flags: {', '.join(groups).replace('_', '-')}.",
    )
    return "\n".join([first, "", *lines, rest])


@lru_cache(maxsize=64)
def with_flags(config: TrainConfig, flags: tuple[str, ...], prog: str) -> TrainConfig:
    """``config`` with the settings that ``flags`` name, such as ``("--adv-finetune.epochs", "5")``."""
    settings: list[Any] = [("settings", Annotated[type(config), tyro.conf.arg(name="")], config)]
    parsed: Any = tyro_cli(make_dataclass("Command", settings, frozen=True), list(flags), prog=prog, description=None)
    changed: TrainConfig = parsed.settings
    return changed


def tyro_cli(command: Any, args: list[str], *, prog: str, description: str | None) -> Any:
    """``tyro.cli``, with its boxed messages turned into one sentence."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                command,
                args=args,
                prog=prog,
                description=description,
                config=(tyro.conf.HelptextFromCommentsOff,),
            )
    except SystemExit as error:
        if error.code == 0:
            raise
        raise UserError(_sentence(stderr.getvalue())) from error


def _sentence(box: str) -> str:
    """The message inside tyro's box, and the nearest of the options it suggests.

    The box has a title, then parts between rules: the message, suggestions, help. Its lines are drawn with box
    characters, with the title in the upper one, or with dashes, with the title on a line of its own.
    """
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()]
    parts = re.split(r"^(?:[╭╰]|[─-]{3}).*$", "\n".join(lines), flags=re.MULTILINE)
    parts = [" ".join(part.split()) for part in parts if part.strip()]
    message = parts[0 if "╭" in box else 1]
    message = re.sub(r"invalid literal for int\(\) with base 10:", "expected an integer, got", message)
    if message.startswith("Unrecognized options: "):
        words = message.partition(": ")[2].split(", ")
        flags = [word for word in words if word.startswith("--")] or words  # the others are values of the flags
        message = f"unknown option {', '.join(flags)}"
        found = [flag for part in parts if part.startswith("Perhaps") for flag in re.findall(r"(?<!\S)--[\w.-]+", part)]
        message += "".join(f"; the nearest is {flag}" for flag in difflib.get_close_matches(flags[0], found, 1, 0.0))
    # A flag's name is wanted, and that of a group inside another; elsewhere our messages name the setting themselves.
    return re.sub(r"^Error parsing (?:(?=--)|settings\.(?=[\w-]+\.)|[\w.-]*: )", "", message)


# config.json


def config_values(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON values."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_config(file: Path) -> tuple[str, str, TrainConfig]:
    """(method, recipe, configuration) of a ``config.json``; its values go through the same checks as flags."""
    return config_of(read_json(file, schema=1), file)


def config_of(saved: Any, file: Path) -> tuple[str, str, TrainConfig]:
    """The same of what a ``config.json`` holds; errors name ``file``."""
    if not isinstance(saved, dict):
        raise UserError(f"{file}: expected a configuration, found {type(saved).__name__}")
    method = saved.get("method")
    if not isinstance(method, str) or not isinstance(saved.get("values"), dict):
        raise UserError(f"{file}: expected the keys method and values, found {sorted(saved)}")
    try:
        config = _parse_saved(method, tuple(_flags(saved["values"], find_method(method).Config())))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return method, str(saved.get("recipe")), config


@lru_cache(maxsize=64)
def _parse_saved(method: str, flags: tuple[str, ...]) -> TrainConfig:
    """A command reads the same file several times, and tyro takes a tenth of a second for it."""
    return _parse(method, find_method(method).Config(), flags)[0]


def _flags(values: dict[str, Any], default: Any, prefix: str = "") -> list[str]:
    known = {field.name for field in fields(default)}
    flags: list[str] = []
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown setting {prefix + key!r}; the nearest is {prefix + near!r}")
        current = getattr(default, key)
        if is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{prefix + key} must be an object, got {value!r}")
            flags += _flags(value, current, f"{prefix}{key}.")
        else:
            flags += _flag(prefix, key, value, current)
    return flags


def _flag(prefix: str, key: str, value: Any, default: Any) -> list[str]:
    """The flag of one setting; a value of another form than the default's would mean another flag, or none."""
    name = prefix + key
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, got {value!r}")
        return [f"--{prefix}{'' if value else 'no-'}{key}"]
    if isinstance(default, tuple):
        # What starts with a dash would be read as the next flag; no setting holds such words or negative numbers.
        if not isinstance(value, list) or not all(_is_word(item) and not str(item).startswith("-") for item in value):
            raise UserError(f"{name} must be a list of words or of numbers from 0, got {value!r}")
        return [f"--{name}", *map(str, value)]
    if value is not None and not _is_word(value):
        raise UserError(f"{name} must be a single value, got {value!r}")
    return [f"--{name}={value}"]


def _is_word(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
