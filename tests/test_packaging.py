"""What is shipped: the wheel and the sdist hold what they must, and nothing that they must not."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import ganglion

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("bridges", "broker", "clients", "protocols")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

IMPORTED_AS = {"argon2-cffi": "argon2", "prometheus-client": "prometheus_client"}
"""Distributions whose import name is not their own."""

CLIENT = re.compile(r"ganglion/(__init__|__main__|clients/.*)\.py")
"""Modules that work where a client alone is installed, with whatever they import."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the checkout, by its path inside of the package."""
    for path in (ROOT / "src" / "ganglion").glob("*.py"):
        yield f"ganglion/{path.name}", path
    for folder in LINKS:
        for path in (ROOT / folder).rglob("*.py"):
            yield f"ganglion/{path.relative_to(ROOT).as_posix()}", path


def browser_files() -> list[str]:
    """What the web listener serves to browsers, by its path inside of the package."""
    found = [path for path in (ROOT / "clients" / "js").rglob("*") if path.is_file()]
    assert found
    return [f"ganglion/{path.relative_to(ROOT).as_posix()}" for path in found]


def names_of_requirements(requirements: list[str]) -> set[str]:
    """The names of the distributions in a list of requirements."""
    return {re.split(r"[<>=!~;\[ ]", each)[0] for each in requirements}


@pytest.fixture(scope="module")
def copy_of_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs, with its links: building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    listed = [*LINKS, "src", "docs", "pyproject.toml", "setup.py", "MANIFEST.in"]
    for name in [*listed, "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"]:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=leave)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(checkout: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the build with the tools that are installed, into the checkout's dist/."""
    command = [sys.executable, "-m", "build", "--no-isolation", *flags, str(checkout)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(copy_of_checkout: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from the sdist."""
    done = build(copy_of_checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = (copy_of_checkout / "dist").glob("*.tar.gz")
    (wheel,) = (copy_of_checkout / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_wheel_holds_every_module_and_only_the_package(built: tuple[Path, Path]) -> None:
    """A wheel made from the sdist has each module once, the typing marker, and no tests."""
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    packaged = {name for name in names if ".dist-info/" not in name}
    shipped = {name for name, _ in modules()} | {"ganglion/py.typed"} | set(browser_files())
    assert packaged == shipped


@pytest.mark.slow
def test_wheel_carries_licence_and_commands(built: tuple[Path, Path]) -> None:
    """The wheel's metadata have the licence text, the version and the command `ganglion`."""
    with zipfile.ZipFile(built[1]) as archive:
        info = f"ganglion-{ganglion.__version__}.dist-info"
        licence = archive.read(f"{info}/licenses/LICENSE")
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        described = archive.read(f"{info}/METADATA").decode()
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert "ganglion = ganglion.clients.command_line.root:main" in entry_points
    assert "License-Expression: Apache-2.0" in described
    assert "Requires-Python: >=3.11" in described


@pytest.mark.slow
def test_sdist_holds_what_a_build_needs(built: tuple[Path, Path]) -> None:
    """The sdist has folders in place of the links, so that it unpacks anywhere, and its papers."""
    prefix = f"ganglion-{ganglion.__version__}/"
    with tarfile.open(built[0]) as archive:
        members = {each.name.removeprefix(prefix): each for each in archive.getmembers()}
    assert not [each.name for each in members.values() if each.issym() or each.islnk()]
    papers = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    needed = {"pyproject.toml", "setup.py", "src/ganglion/py.typed"}
    shipped = {*(name for name, _ in modules()), *browser_files()}
    assert papers | needed | {f"src/{name}" for name in shipped} <= set(members)
    assert not [name for name in members if name.startswith("tests/")]


@pytest.mark.slow
def test_build_without_links_is_refused(copy_of_checkout: Path, tmp_path: Path) -> None:
    """A checkout whose links became text files does not build, and is told what to do."""
    broken = tmp_path / "broken"
    shutil.copytree(copy_of_checkout, broken, symlinks=True)
    link = broken / "src" / "ganglion" / "protocols"
    link.unlink()
    link.write_text("../../protocols")
    done = build(broken, "--wheel")
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "src/ganglion/protocols" in told
    assert "git config core.symlinks true" in told


def test_installed_distribution_is_this_checkout() -> None:
    """`pip install -e .` gives the version and the modules of this checkout."""
    assert metadata.version("ganglion") == ganglion.__version__
    assert Path(ganglion.__file__).resolve() == ROOT / "src" / "ganglion" / "__init__.py"


@pytest.mark.parametrize(
    "point",
    [
        point
        for point in metadata.distribution("ganglion").entry_points
        if point.group in ("console_scripts", "pytest11")
    ],
    ids=lambda point: f"{point.group}:{point.name}",
)
def test_entry_points_lead_somewhere(point: metadata.EntryPoint) -> None:
    """The command and the pytest plugin name something that exists."""
    assert point.load() is not None


@pytest.mark.parametrize("folder", LINKS)
def test_packages_are_importable_by_their_package_name(folder: str) -> None:
    """Each folder of the architecture is a package below `ganglion`."""
    module = importlib.import_module(f"ganglion.{folder}")
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().parent == ROOT / folder


def test_folders_with_modules_are_packages() -> None:
    """A folder without an `__init__.py` would be missing from the wheel."""
    folders = {path.parent for _, path in modules()}
    assert [each for each in folders if not (each / "__init__.py").is_file()] == []


def import_name_of(name: str) -> str:
    """The import name of a module whose path in the package is given."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_when_run(source: str) -> set[str]:
    """What a module imports at run time, in functions too; ``from a import b`` gives a and a.b."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        match waiting.pop():
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
                waiting += otherwise
            case ast.Import(names=names):
                found |= {each.name for each in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module, *(f"{module}.{each.name}" for each in names)}
            case node:
                inside = ast.iter_child_nodes(node)
                waiting += [each for each in inside if not isinstance(each, ast.expr)]
    return found


def imports_of_client() -> set[str]:
    """What the modules of a client import, and the modules that these import, and so on."""
    sources = {import_name_of(name): path for name, path in modules()}
    waiting = [import_name_of(name) for name, _ in modules() if CLIENT.fullmatch(name)]
    assert "ganglion.clients.command_line.root" in waiting
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in sources:
            waiting += [name.rpartition(".")[0]] if "." in name else []
            waiting += imports_when_run(sources[name].read_text("utf-8"))
    return seen


def foreign(imported: set[str]) -> set[str]:
    """The packages of others among what is imported."""
    roots = {each.split(".")[0] for each in imported}
    return roots - set(sys.stdlib_module_names) - {"ganglion"}


def required(requirements: list[str]) -> set[str]:
    """What is imported of the distributions in a list of requirements."""
    return {IMPORTED_AS.get(each, each) for each in names_of_requirements(requirements)}


def test_what_a_client_imports_is_required_and_nothing_else() -> None:
    """`pip install ganglion` brings what a client imports, and no package that it does not."""
    assert foreign(imports_of_client()) == required(PROJECT["dependencies"])


@pytest.mark.slow
def test_what_a_node_imports_is_required_and_nothing_else() -> None:
    """`ganglion[broker]` adds exactly what the rest of the package imports besides.

    pytest is imported by the pytest plugin alone, which only pytest loads.
    """
    imported: set[str] = set()
    for name, path in modules():
        found = foreign(imports_when_run(path.read_text("utf-8")))
        imported |= found - {"pytest"} if name == "ganglion/pytest_plugin.py" else found
    node = required(PROJECT["optional-dependencies"]["broker"])
    client = required(PROJECT["dependencies"])
    assert imported - client == node
    assert not client & node


def test_every_dependency_has_a_tested_lower_bound() -> None:
    """Each runtime dependency names the oldest version that .ci/run tries, and no newest one."""
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["broker"]]:
        assert re.fullmatch(r"[a-z0-9-]+>=\d+(\.\d+)+", requirement)


def test_changelog_speaks_of_this_version() -> None:
    """The first section of the changelog is of the version that would be built now."""
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert sections[0].rstrip(",") == ganglion.__version__


def test_scripts_are_executable() -> None:
    """What is started by its path may be."""
    for name in (".ci/run", "packaging/docker-entrypoint.sh"):
        assert (ROOT / name).stat().st_mode & 0o111
