"""Imports run one way, and the light parts stay light.

The floors of the house, lowest first. A module may import from lower floors,
and within its floor as long as nothing goes in a circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gpt2"

# prefix of the module's name -> floor; the longest prefix that fits counts
FLOORS = {
    "gpt2.errors": 0,
    "gpt2.fieldchecks": 1,
    "gpt2.configchecks": 2,
    "gpt2.progress": 1,
    "gpt2.storage": 1,
    "gpt2.config": 2,
    "gpt2.tokenization": 3,
    "gpt2.checkpoints": 3,
    "gpt2.modeling.activations": 3,
    "gpt2.modeling.masks": 3,
    "gpt2.modeling.cache": 3,
    "gpt2.modeling.static_cache": 3,
    "gpt2.modeling.backends": 3,
    "gpt2.modeling.dropout": 3,
    "gpt2.modeling.dropped_attention": 3,
    "gpt2.modeling.bfloat16_attention": 3,
    "gpt2.modeling.losses": 3,
    "gpt2.modeling.linear_loss": 3,
    "gpt2.modeling.padded_head": 3,
    "gpt2.modeling.outputs": 3,
    "gpt2.modeling.inputs": 3,
    "gpt2.modeling.placement": 3,
    "gpt2.modeling.segments": 3,
    "gpt2.modeling.flash": 3,
    "gpt2.modeling.linear": 3,
    "gpt2.modeling.onednn": 3,
    "gpt2.modeling.compiled_block": 3,
    "gpt2.generation": 4,
    "gpt2.modeling": 5,
    "gpt2.inference": 5,
    "gpt2.inspection": 6,
    "gpt2.training": 6,
    "gpt2": 7,
}
# Of floor 3, no wing may use another.
WINGS = ("gpt2.tokenization", "gpt2.checkpoints", "gpt2.modeling")
# What generation may know of the model: no module, only its masks, its caches and its outputs.
OPEN_TO_GENERATION = {
    "gpt2.modeling.masks",
    "gpt2.modeling.cache",
    "gpt2.modeling.static_cache",
    "gpt2.modeling.outputs",
}
# Imports inside functions: (module, what it imports). Everything else is imported at the top.
LOCAL_IMPORTS = {
    ("gpt2.tokenization.tokenizer", "gpt2.storage.hub"),
    ("gpt2.tokenization.tokenizer", "gpt2.storage.upload"),
    ("gpt2.tokenization.tokenizer", "gpt2.tokenization.training"),
}
WITHOUT_TORCH = (
    "gpt2.errors",
    "gpt2.fieldchecks",
    "gpt2.progress",
    "gpt2.config",
    "gpt2.configchecks",
    "gpt2.storage",
    "gpt2.tokenization",
)
# What is imported when first needed, never before.
LATE = {"huggingface_hub", "numpy", "transformers", "tokenizers", "tiktoken"}


@dataclass(frozen=True)
class Import:
    source: str
    target: str  # a module
    local: bool  # inside a function


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports_below(node: ast.AST, source: str, local: bool = False) -> Iterator[Import]:
    """What is imported when the code runs; blocks for type checkers only are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(source, alias.name, local) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{source} has a relative import"
            module = str(child.module)
            for alias in child.names:
                whole = f"{module}.{alias.name}"
                yield Import(source, whole if whole in modules() else module, local)
        elif is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from imports_below(other, source, local)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_below(child, source, local or inside)


@cache
def imports() -> list[Import]:
    return [
        found
        for name, path in modules().items()
        for found in imports_below(ast.parse(path.read_text(encoding="utf-8")), name)
    ]


def inner() -> list[Import]:
    return [i for i in imports() if i.target.partition(".")[0] == "gpt2"]


def longest_prefix(name: str, prefixes: object) -> str:
    fitting = [p for p in prefixes if name == p or name.startswith(f"{p}.")]  # type: ignore[attr-defined]
    return max(fitting, key=len, default="")


def floor(name: str) -> int:
    return FLOORS[longest_prefix(name, FLOORS)]


def test_the_parser_sees_the_package() -> None:
    assert "gpt2.modeling.transformer" in modules()
    assert Import("gpt2.modeling.heads", "gpt2.modeling.transformer", False) in inner()
    assert Import("gpt2.modeling.cache", "torch", False) in imports()
    sample = "def f():\n  import numpy\nif TYPE_CHECKING:\n  import torch\ntry:\n  import regex\n"
    found = list(imports_below(ast.parse(f"{sample}except ImportError:\n  import re\n"), "m"))
    assert found == [
        Import("m", "numpy", True),
        Import("m", "regex", False),
        Import("m", "re", False),
    ]


def test_every_module_has_a_floor() -> None:
    assert [name for name in modules() if name != "gpt2" and floor(name) == floor("gpt2")] == []


def test_imports_never_go_up() -> None:
    up = [f"{i.source} -> {i.target}" for i in inner() if floor(i.target) > floor(i.source)]
    assert up == []


def test_the_wings_do_not_know_each_other() -> None:
    across = [
        f"{i.source} -> {i.target}"
        for i in inner()
        if floor(i.source) == floor(i.target) == 3
        and longest_prefix(i.source, WINGS) != longest_prefix(i.target, WINGS)
    ]
    assert across == []


def test_generation_knows_no_module() -> None:
    known = {
        i.target
        for i in inner()
        if i.source.startswith("gpt2.generation") and i.target.startswith("gpt2.modeling")
    }
    assert known <= OPEN_TO_GENERATION


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for i in inner():
        graph[i.source].add(i.target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_local_imports_are_the_permitted_ones() -> None:
    assert {(i.source, i.target) for i in inner() if i.local} == LOCAL_IMPORTS


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_the_light_parts_import_no_torch(part: str) -> None:
    heavy = [
        f"{i.source} -> {i.target}"
        for i in imports()
        if longest_prefix(i.source, [part]) and not i.local and i.target.split(".")[0] == "torch"
    ]
    assert heavy == []


def test_what_is_needed_late_is_imported_late() -> None:
    early = [
        f"{i.source} -> {i.target}"
        for i in imports()
        if not i.local and i.target.split(".")[0] in LATE
    ]
    assert early == []


def test_init_files_of_the_parts_are_empty() -> None:
    full = [str(p) for p in PACKAGE.rglob("*/__init__.py") if p.stat().st_size]
    assert full == []
    assert (PACKAGE / "modeling" / "__init__.py").exists()
    packages = {p.parent for p in modules().values()}
    assert all((folder / "__init__.py").exists() for folder in packages)


def loaded_after(statement: str, watched: list[str]) -> list[str]:
    """Which of the modules a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {watched!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing() -> None:
    heavy = ["torch", "numpy", "huggingface_hub", "regex", "safetensors", "json", "transformers"]
    assert loaded_after("import gpt2", heavy) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from gpt2 import GPT2Config; GPT2Config().to_dict()",
        "from gpt2 import GPT2Tokenizer",
        "from gpt2 import GPT2Error, TextStreamer, BatchEncoding; import gpt2; dir(gpt2)",
    ],
)
def test_config_and_tokenizer_need_no_torch(statement: str) -> None:
    assert loaded_after(statement, ["torch", "numpy", "huggingface_hub", "transformers"]) == []


def test_a_model_needs_torch_and_nothing_of_its_compiler() -> None:
    """torch._dynamo takes as long to import as torch; a decorator of torch.compiler imports it."""
    watched = ["torch", "torch._dynamo", "sympy", "transformers"]
    assert loaded_after("from gpt2 import GPT2LMHeadModel", watched) == ["torch"]
