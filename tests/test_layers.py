"""Who may import whom, and who owns what (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.cli.main import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).parents[1] / "pipeline/envferry"
STAGES = {
    "lock": "lock/stage.py",
    "build": "build/stage.py",
    "pack": "pack/stage.py",
    "push": "registry/push.py",
    "fetch": "registry/fetch.py",
    "install": "install/stage.py",
}
LAYERS = (
    ("errors", "progress", "redaction", "suggestions"),
    ("names",),
    ("models", "base", "process"),
    ("config",),
    ("worker_process",),
    ("artifacts", "archive", "specs", "stores"),
    ("engines", "install", "pack", "trust"),
    ("build", "registry"),
    ("index", "lock"),
    ("audit", "channel", "cluster", "follow", "stats", "transfer"),
    ("tool",),
    ("api", "web"),
    ("cli",),
)
"""From the bottom up: a part imports itself and layers below, never its neighbours."""

ROOMS = {
    "specs": ("syntax", "", "importing", "lint"),
    "cli": ("shared", ""),
    "stores": ("", "oci", "s3"),
    "install": ("tree", "records", "programs", "host", ""),
    "lock": ("conda", "pip"),
    "build": ("inside",),
}
"""Packages inside of a package, from the bottom up; "" is what lies in the package itself.

Without "" that may be on both sides: options of the stage below its halves, its story above them;
what a build asks of its container below what runs there, what becomes of the answer above.
"""
FACTORIES = {"envferry.stores.opening": "opens a store of any kind by its URL"}
"""Modules that may import from all packages beside them."""

OWNERS = {
    "subprocess": "envferry.process",
    "click": "envferry.cli",
    "boto3": "envferry.stores.s3",
    "botocore": "envferry.stores.s3",
    "conda_lock": "envferry.lock",
    "conda_pack": "envferry.pack",
    "dask": "envferry.cluster",
    "distributed": "envferry.cluster",
    "pkcs11": "envferry.trust.pkcs11_token",
    "sigstore": "envferry.trust.sigstore_worker",
    "sqlite3": "envferry.index.database",
    "starlette": "envferry.web",
    "jinja2": "envferry.web",
    "uvicorn": "envferry.web",
    "hashlib": "no module",
}
SHARED_NAMES = {
    "stage": "the story of a stage",
    "port": "what every engine, or every store, promises",
    "preview": "what a stage would do",
}
"""Why modules of several folders have one name; besides, `cli/` has the commands of a module."""
LONGEST_MODULE = 400
LONG_MODULES = {"envferry.api": "the public interface: a function for each verb, in one place"}
"""Why they may have more lines."""
INSTALL_NEEDS = (
    *("envferry.install.stage", "envferry.registry.fetch", "envferry.cli.install"),
    *("envferry.cli.fetch", "envferry.cli.verify"),
    *("envferry.audit.artifact_audit", "envferry.cli.audit", "envferry.cli.trust"),
)
BUILD_LIBRARIES = {
    *("conda_lock", "conda_pack", "rattler", "boto3", "sigstore", "yaml", "uv", "urllib3", "rich"),
    "cryptography",  # a host has it, and loads it only where keys are in use
}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the package."""
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, those for type checking too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_once(path: Path) -> Iterator[str]:
    """Yield what a file imports when it is loaded: not in functions, not for type checking."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, package: str) -> bool:
    """Whether a module is a package or lies in it."""
    return module == package or module.startswith(f"{package}.")


def part_of(module: str) -> str | None:
    """Return the folder or file right in the package that a module lies in."""
    names = module.split(".")
    return names[1] if names[0] == "envferry" and len(names) > 1 else None


@pytest.mark.parametrize(("module", "path"), tuple(modules()), ids=str)
def test_imports_go_down(module: str, path: Path) -> None:
    part = part_of(module)
    if part in (None, "__main__", "console_script"):
        return
    number = next((n for n, parts in enumerate(LAYERS) if part in parts), None)
    assert number is not None, f"{part} is in no layer: add it to LAYERS"
    below = {name for parts in LAYERS[:number] for name in parts}
    known = {name for parts in LAYERS for name in parts}
    for imported in imports(path):
        if (other := part_of(imported)) in known - {part}:
            assert other in below, f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("part", ROOMS)
def test_imports_go_down_inside_of_a_part(part: str) -> None:
    """Packages inside of a package have an order, too: no two of them need each other."""
    rooms = ROOMS[part]
    for module, path in modules():
        if part_of(module) != part or module in FACTORIES or room_of(module) not in rooms:
            continue
        for imported in imports(path):
            if part_of(imported) == part and room_of(imported) in rooms:
                is_below = rooms.index(room_of(imported)) <= rooms.index(room_of(module))
                assert is_below, f"{module} imports {imported}, which is not below it"


def test_every_package_inside_of_a_package_has_its_place() -> None:
    found: dict[str, set[str]] = {}
    for path in SOURCES.glob("*/*/__init__.py"):
        found.setdefault(path.parts[-3], set()).add(path.parts[-2])
    assert found == {part: {*rooms} - {""} for part, rooms in ROOMS.items()}


def room_of(module: str) -> str:
    """Return the package inside of its part that a module lies in; "" for the part itself."""
    names = module.split(".")
    return names[2] if len(names) > 2 and (SOURCES / names[1] / names[2]).is_dir() else ""


def test_no_module_waits_for_itself() -> None:
    """Also within a folder no import leads back: a module can be read from the bottom up."""
    found = dict(modules())
    graph = {
        module: {name for name in imported_at_once(path) if name in found and name != module}
        for module, path in found.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(found)


def test_types_make_no_circle() -> None:
    """Nor do imports for types and in functions, but for a registry and its parts."""
    facade = "envferry.registry.registry"  # has the methods, whose parts take it as an argument
    found = dict(modules())
    graph = {
        module: {name for name in imports(path) if name in found and name not in (module, facade)}
        for module, path in found.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_modules_share_a_name_only_for_the_same_role() -> None:
    folders: dict[str, list[str]] = {}
    for module, path in modules():
        if path.name != "__init__.py":
            folders.setdefault(path.stem, []).append(module)
    for name, found in folders.items():
        if name not in SHARED_NAMES and len(found) > 1:
            commands = [module for module in found if is_in(module, "envferry.cli")]
            assert len(found) == 2, found
            assert len(commands) == 1, f"{found}: rename one, or say why in SHARED_NAMES"


def test_no_module_is_long() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules()}
    long = {module for module, lines in lengths.items() if lines > LONGEST_MODULE}
    assert long <= LONG_MODULES.keys(), "split it by topic"


def test_public_classes_have_names_of_their_own() -> None:
    found: dict[str, list[str]] = {}
    for module, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}


@pytest.mark.parametrize("library", OWNERS)
def test_owners(library: str) -> None:
    users = {
        module for module, path in modules() if library in {i.split(".")[0] for i in imports(path)}
    }
    strangers = {module for module in users if not is_in(module, OWNERS[library])}
    assert not strangers


def test_only_config_reads_the_environment() -> None:
    users = {
        module
        for module, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        if isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    # The command's script reads PYTHONPATH before anything can be imported; `process` measures what
    # a child inherits, when that is too long for the kernel.
    assert users == {"envferry.config", "envferry.console_script", "envferry.process"}


def test_types_are_decoded_in_one_place() -> None:
    """Only `base.json` keeps threads from compiling a type for msgspec at once."""
    users = {
        module
        for module, path in modules()
        if {"msgspec.json.decode(", "msgspec.json.Decoder(", "msgspec.convert("}
        & set(re.findall(r"msgspec\.[\w.]+\(", path.read_text()))
    }
    assert users == {"envferry.base.json"}


@pytest.mark.parametrize("module", INSTALL_NEEDS)
def test_a_training_host_needs_no_build_library(module: str) -> None:
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not BUILD_LIBRARIES & {name.split(".")[0] for name in loaded.stdout.splitlines()}


def test_stages_show_themselves() -> None:
    for path in STAGES.values():
        first = (SOURCES / path).read_text().splitlines()[0]
        assert first.startswith('"""Stage ')
        assert "->" in first


def test_stages_do_not_import_each_other() -> None:
    names = {"envferry." + path.removesuffix(".py").replace("/", ".") for path in STAGES.values()}
    for path in STAGES.values():
        assert not names & set(imports(SOURCES / path)), "values join the stages, not imports"


def test_no_test_asserts_wall_clock_time() -> None:
    """A busy machine is slow, not wrong: what must not wait is shown by an event."""
    clocks = re.compile(r"assert\b[^\n]*(monotonic|perf_counter)\(")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((SOURCES.parents[1] / "tests").rglob("*.py"))
        if path.name != "waiting.py"
        for line in path.read_text().splitlines()
        if clocks.search(line)
    ]
    assert not found


def test_tests_lie_in_folders_named_for_what_they_test() -> None:
    tests = SOURCES.parents[1] / "tests"
    packages = {
        path.parent.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("__init__.py")
        if path.parent != SOURCES
    }
    folders = {
        path.parent.relative_to(tests).as_posix()
        for path in tests.rglob("test_*.py")
        if path.parent != tests
    }
    assert folders <= packages | {"integration"}
    servers = {"engines": "containers", "stores/s3": "servers"}
    assert packages - folders == servers.keys(), "what needs more than files: tests/integration"


def test_a_command_is_in_the_module_of_its_name() -> None:
    others = {
        name: module.rpartition(".")[2]
        for name, (module, _) in COMMANDS.items()
        if module != f"envferry.cli.{name}"
    }
    # `import` is a keyword; two commands are the shorter halves of what stands in one module.
    assert others == {"import": "importing", "shell": "run", "revoke": "trust"}


@pytest.mark.parametrize(
    "path", sorted((SOURCES / "cli").rglob("*.py")), ids=lambda path: path.name
)
def test_commands_are_typed(path: Path) -> None:
    """A command has a class of options: `**choices: object` or `Any` would hide renamed ones."""
    loose = [
        f"{node.name}(**{node.args.kwarg.arg})"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg
    ]
    # The mechanism itself takes click's settings and values.
    allowed = ["option(**settings)", "argument(**settings)", "__init__(**values)", "run(**values)"]
    assert loose == (allowed if path.name == "command.py" else [])
    if path.name != "command.py":
        text = path.read_text()
        assert not re.findall(r"@click\.(command|option|argument)\b|ignore\[arg-type\]", text)
        assert not re.findall(r"\bcast\(", text)
