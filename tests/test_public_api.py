"""The public names: what ``gpt2`` offers, and that every way of looking agrees."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import gpt2

SOURCE = ast.parse(Path(gpt2.__file__).read_text(encoding="utf-8"))


def type_checking_imports() -> dict[str, str]:
    """name -> module of the block that type checkers read."""
    block = next(
        node
        for node in SOURCE.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name  # "as" itself: mypy takes it for public
            found[alias.name] = str(statement.module)
    return found


def test_all_is_the_lazy_table() -> None:
    assert gpt2.__all__ == ["__version__", *gpt2._HOMES]
    assert list(gpt2._HOMES) == sorted(gpt2._HOMES)
    assert len(set(gpt2.__all__)) == len(gpt2.__all__)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    assert type_checking_imports() == gpt2._HOMES


def test_the_documented_names_are_there() -> None:
    assert {
        "GPT2Config",
        "GPT2Model",
        "GPT2LMHeadModel",
        "GPT2PreTrainedModel",
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "GenerationConfig",
        "BatchEncoding",
        "TextStreamer",
        "TextIteratorStreamer",
        "GPT2Error",
    } <= set(gpt2.__all__)


@pytest.mark.parametrize("name", gpt2._HOMES)
def test_every_name_resolves_to_what_its_module_defines(name: str) -> None:
    value = getattr(gpt2, name)
    home = gpt2._HOMES[name]
    assert value is getattr(importlib.import_module(home), name)
    assert value.__module__ == home
    assert value.__doc__
    assert getattr(gpt2, name) is value


def test_dir_lists_them_before_they_are_used() -> None:
    assert set(gpt2.__all__) <= set(dir(gpt2))
    assert dir(gpt2) == sorted(dir(gpt2))


def test_star_import_gives_all_of_them() -> None:
    names: dict[str, object] = {}
    exec("from gpt2 import *", names)
    assert set(gpt2.__all__) <= set(names)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'gpt2' has no attribute 'GPT3Model'"):
        _ = gpt2.GPT3Model
    with pytest.raises(ImportError, match="GPT3Model"):
        exec("from gpt2 import GPT3Model")
    assert not hasattr(gpt2, "modelling")


def test_version_is_that_of_the_package() -> None:
    assert [int(part) for part in gpt2.__version__.split(".")[:2]]


def test_errors_have_one_base_and_a_built_in_one() -> None:
    from gpt2 import errors

    ours = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, gpt2.GPT2Error)
    ]
    assert len(ours) >= 11
    for error in set(ours) - {gpt2.GPT2Error}:
        built_in = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert built_in[0] not in (Exception, BaseException), error
        assert error.__doc__
