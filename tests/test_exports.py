"""What `import ganglion` gives: its names, what they cost, and what is said without the node."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ganglion
from ganglion.clients import errors as client_errors

OF_THE_NODE = {"argon2", "prometheus_client", "rocksdict", "structlog", "trio"}
"""What a client must not import; h11 comes with wsproto."""


@pytest.mark.parametrize("name", ganglion.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Each name can be had, is the one of its module, says what it is, and is listed by `dir`."""
    value = getattr(ganglion, name)
    assert name in dir(ganglion)
    if name in ganglion._MODULES:
        module = importlib.import_module(ganglion._MODULES[name])
        assert getattr(module, name) is value
        assert name in module.__all__
    if isinstance(value, type) or inspect.isfunction(value):
        assert inspect.getdoc(value)


def test_every_error_has_the_one_base() -> None:
    """Whatever a client raises on purpose is public, and can be caught as `GanglionError`."""
    assert set(client_errors.__all__) <= set(ganglion.__all__)
    exported = [getattr(ganglion, name) for name in ganglion.__all__]
    errors = [
        each for each in exported if isinstance(each, type) and issubclass(each, BaseException)
    ]
    assert ganglion.ConnectionLost in errors
    assert [each for each in errors if not issubclass(each, ganglion.GanglionError)] == []


def test_type_checkers_see_the_same_names() -> None:
    """The table, the imports for type checkers and `__all__` name the same."""
    tree = ast.parse(Path(ganglion.__file__).read_text("utf-8"))
    guards = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname or alias.name: node.module
        for node in guards[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == ganglion._MODULES
    here = {"BrokerNotInstalled", "GanglionError", "__version__", "sync"}
    assert set(ganglion.__all__) == {*imported, *here}


def test_a_name_that_is_not_there_is_named() -> None:
    """A wrong name is an AttributeError with that name, and an ImportError by `from`."""
    with pytest.raises(AttributeError, match="module 'ganglion' has no attribute 'conect'") as told:
        ganglion.conect  # type: ignore[attr-defined] # noqa: B018 - asking is what is tried here
    assert told.value.name == "conect"
    with pytest.raises(ImportError, match="conect"):
        exec("from ganglion import conect")


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after this code."""
    command = [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps([*sys.modules]))"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    return set(json.loads(done.stdout))


def test_import_of_the_package_is_nearly_free() -> None:
    """`import ganglion` imports no other module of the package and no package of others."""
    added = modules_after("import ganglion") - modules_after("import typing")
    assert added == {"ganglion"}


def test_the_client_imports_nothing_of_the_node() -> None:
    """With every public name in use there is no module of the node and no package of it."""
    found = modules_after("import ganglion\nfor name in ganglion.__all__: getattr(ganglion, name)")
    assert "ganglion.clients.errors" in found
    node = ("ganglion.broker.daemon", "ganglion.broker.net", "ganglion.broker.store")
    assert [name for name in found if name.startswith(node)] == []
    core = "ganglion.broker.core."
    used = {name.removeprefix(core) for name in found if name.startswith(core)}
    assert used <= {"message", "scram", "topics"}
    assert found & {*OF_THE_NODE, "ganglion.testing"} == set()


def test_testing_says_that_it_needs_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the node's packages, importing `ganglion.testing` says what to install."""
    monkeypatch.delitem(sys.modules, "ganglion.testing", raising=False)
    monkeypatch.setitem(sys.modules, "trio", None)
    with pytest.raises(ganglion.BrokerNotInstalled, match=r"trio.*'ganglion\[broker\]'") as told:
        importlib.import_module("ganglion.testing")
    assert isinstance(told.value, ModuleNotFoundError)
    assert told.value.name == "trio"


@pytest.mark.slow
def test_pytest_works_without_the_node(tmp_path: Path) -> None:
    """A client alone does not break pytest: only who asks for a broker is told what is missing."""
    (tmp_path / "test_it.py").write_text(
        "def test_plain(): pass\ndef test_broker(ganglion_broker): pass\n"
    )
    code = (
        "import sys; sys.modules['trio'] = None; import pytest; "
        "sys.exit(pytest.main(['-p', 'ganglion.pytest_plugin', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "1 passed, 1 error" in done.stdout
    assert "pip install 'ganglion[broker]'" in done.stdout
    assert "Traceback" not in done.stdout
