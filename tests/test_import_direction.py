"""Who may import whom: ``clead_kernels`` knows nothing of ``clead``, and inside ``clead`` arrows point downwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# layer -> what it may import besides itself, errors, rng and libraries
ALLOWED = {
    "errors": set(),
    "rng": set(),
    "data": set(),
    "augment": set(),
    "models": {"data.imagenet_val"},  # the statistics that official checkpoints normalise by
    "losses": set(),
    "attacks": set(),
    "config": {"models"},
    "methods": {"losses", "attacks", "models", "augment", "config"},
    "engine": {"methods.base", "config"},
    "protocols": {
        "attacks",
        "models",
        "data",
        "augment",
        "engine",
        "losses",
        "methods.base",
        "methods.inner",
        "config",
    },
    "recipes": {"methods", "config", "models.batch_norm"},  # its BatchNormConfig is part of a configuration
    "figures": set(),
}
TOP = {
    "train",
    "stages",
    "sources",
    "evaluate",
    "study",
    "dry_run",
    "report",
    "summary",
    "export",
    "doctor",
    "callbacks",
    "own_modules",
    "resume",
    "loading",
    "cli",
    "__init__",
}
KERNEL_USERS = {"augment", "models", "losses", "attacks", "methods", "engine", "protocols", "rng", *TOP}


def imports(file: Path):
    """(module, line) of every absolute import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer_of(file: Path) -> str:
    if file.name == "__main__.py":  # a command stands above the package it belongs to
        return "cli"
    return file.relative_to(ROOT / "clead").parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted((ROOT / "clead").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_clead_imports_point_downwards(file):
    layer = layer_of(file)
    for module, line in imports(file):
        top, _, rest = module.partition(".")
        where = f"{file.relative_to(ROOT)}:{line} imports {module}"
        assert top not in {"tests", "bench"}, where
        if top == "clead_kernels":
            assert layer in KERNEL_USERS, where
        if top != "clead" or layer in TOP:
            continue
        assert layer in ALLOWED, f"{where}: {layer} is in no layer of this test"
        target = rest.split(".")[0]
        allowed = target in {layer, "errors", "rng"} or any(
            rest == name or rest.startswith(f"{name}.") for name in ALLOWED[layer]
        )
        assert allowed, where


@pytest.mark.parametrize(
    "file",
    sorted((ROOT / "kernels" / "clead_kernels").rglob("*.py")),
    ids=lambda file: str(file.relative_to(ROOT / "kernels")),
)
def test_clead_kernels_stands_alone(file):
    for module, line in imports(file):
        assert module.split(".")[0] not in {"clead", "clead_kernels", "tests", "bench"}, f"{file}:{line} {module}"


def relative_imports(file: Path):
    """Absolute names, below clead_kernels, of every relative import."""
    package = list(file.relative_to(ROOT / "kernels" / "clead_kernels").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = package[: len(package) - (node.level - 1)]
            for alias in node.names:
                yield [*base, *(node.module.split(".") if node.module else []), alias.name], node.lineno


OPS = sorted(path.parent for path in (ROOT / "kernels" / "clead_kernels").glob("*/api.py"))


def test_there_are_op_folders():
    assert {"augment", "contrastive", "perturb", "similarity"} <= {op.name for op in OPS}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_op_folders_and_implementations_are_strangers(op):
    implementations = {"reference", "triton", "native"}
    others = {other.name for other in OPS if other != op}
    for file in op.rglob("*.py"):
        for target, line in relative_imports(file):
            assert target[0] not in others, f"{file}:{line}"
            if file.stem in implementations and target[0] == op.name:
                assert target[1] not in implementations, f"{file}:{line}"


@pytest.mark.parametrize("file", sorted((ROOT / "kernels" / "examples").glob("*.py")), ids=lambda file: file.name)
def test_examples_stand_on_the_kernels_alone(file):
    for module, line in imports(file):
        assert module.split(".")[0] not in {"clead", "tests", "bench"}, f"{file}:{line} {module}"
