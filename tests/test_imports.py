"""Who may import whom: one table of packages, each of which may import only what stands before it."""

import ast
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = ("trainables", "orchestrator")

#: Package -> what it may import. Modules that lie directly in `trainables` are entries of their own.
MAY_IMPORT = {
    package: set(others.split())
    for package, others in {
        # Trains one model; knows no sweep.
        "errors": "",
        "gpu": "",
        "base": "errors",
        "context": "errors base gpu",
        "io": "errors base",
        "tasks": "errors base",
        "optim": "errors base",
        "models": "errors base io tasks optim",
        "data": "errors base gpu context io tasks",
        "transforms": "errors base gpu context io tasks data",
        "compression": "errors base gpu context io tasks models data",
        "config": "errors base gpu context io tasks optim models data transforms compression",
        "lookup": "errors base gpu context io tasks optim models data transforms compression config",
        "training": "errors base gpu context io tasks optim models data transforms compression config",
        "profiling": "errors base gpu context io tasks optim models data transforms compression config "
        "training",
        "__main__": "errors base gpu context io config lookup data training profiling",
        # Arrays in, numbers out.
        "stats": "base",
        # Asks. Whatever is in `trainables` may be imported from here on, see LIBRARY.
        "sweep": "stats",
        "trials": "stats sweep",
        "cost": "sweep trials",
        # Runs and answers.
        "store": "sweep trials cost",
        "backends": "sweep trials cost",
        "analysis": "stats sweep trials cost",
        "monitor": "stats sweep trials cost store backends analysis",
        "execution": "stats sweep trials cost store backends analysis monitor",
        "report": "stats sweep trials cost analysis",
        "evidence": "stats sweep trials cost store analysis report",
        "api": "stats sweep trials cost store backends analysis execution monitor report evidence",
        "cli": "stats sweep trials cost store backends analysis execution monitor report evidence api",
    }.items()
}
_ORDER = list(MAY_IMPORT)
#: The packages of the training library, which every package of the orchestrator but `stats` may import.
LIBRARY = set(_ORDER[: _ORDER.index("stats")])
for _package in _ORDER[_ORDER.index("sweep") :]:
    MAY_IMPORT[_package] |= LIBRARY

#: Modules that lie directly in a root -> their entry in the table.
FLAT = {
    module: package
    for package, modules in {
        "errors": "errors",
        "base": "base",
        "context": "context",
        "gpu": "gpu",
        "optim": "optim",
        "config": "config presets identity",
        "lookup": "lookup",
        "__main__": "__main__",
        "api": "api",
    }.items()
    for module in modules.split()
}
#: The one name that both roots have.
FLAT |= {"orchestrator.__main__": "cli"}

#: Libraries that only some packages or modules may know.
OWNERS = {
    "ray": {"backends", "execution.lane", "execution.run", "execution.worker", "execution.asha"}
    | {"execution.preflight_workers", "execution.machines"}
    | {"execution.train_run", "execution.process_group"},
    "optuna": {"execution.samplers"},
    "mlflow": {"monitor.tracking"},
    "matplotlib": {"report.figures", "report.figures_parameters", "report.plotting", "report.page"}
    | {"report.figures_attention"}
    | {"report.steady_matplotlib"},
    "jinja2": {"report.page"},
    "typer": {"cli"},
    "rich": {"cli", "monitor.terminal", "monitor.live", "monitor.fitted_table"},
    "pyarrow": {"api", "cli", "store.weights", "store.bucket", "execution.states_probe"} | LIBRARY,
    "torch": {"store.provenance", "cost.devices", "execution.worker", "execution.run"}
    | {"execution.preflight_workers", "execution.process_group"}
    | LIBRARY,
}
#: The only libraries of packages that touch no file, no clock and no service.
PURE = {
    "stats": {"numpy", "scipy"},
    "sweep": {"numpy", "scipy", "pydantic"},
    "trials": {"pydantic"},
    "analysis": {"numpy", "scipy"},
}

#: Modules that a process imports in little time: no torch, not even by way of others.
LIGHT = (
    "orchestrator.trials.outcomes",
    "orchestrator.trials.events",
    "orchestrator.store.journal",
    "orchestrator.store.weights",
    "orchestrator.store.logs",
    "orchestrator.store.own_files",
    "orchestrator.execution.dispatch",
    "orchestrator.execution.coordinator",
    "orchestrator.execution.lane",
    "orchestrator.execution.train_run",
    "trainables.config",
    "orchestrator.trials.sweep_file",
    "orchestrator.store.folder",
    "orchestrator.api",
)

#: Verbs that read a folder, with what follows its name. They take a second as long as they import little.
READING = {"status": [], "why": ["vit_p/sgd/0"], "logs": ["vit_p/sgd/0"], "export": ["--format", "csv"]}
#: Libraries that none of them needs.
HEAVY = {"torch", "timm", "torchvision", "ray", "mlflow", "optuna", "matplotlib", "sklearn"}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


#: Every module of both roots by its dotted name.
MODULES = {dotted(path): path for root in ROOTS for path in sorted((ROOT / root).rglob("*.py"))}


def package_of(module: str) -> str:
    """The entry of the table that a module belongs to."""
    parts = module.split(".")[1:]
    if len(parts) > 1 or (parts and MODULES[module].name == "__init__.py"):
        return parts[0]
    return FLAT[module] if module in FLAT else FLAT[parts[0]]


def shown(module: str) -> str:
    """A module by its package and name: the same before and after it moves into its package."""
    return f"{package_of(module)}.{module.rpartition('.')[2]}"


def imports(path: Path, lazy: bool = True) -> set[str]:
    """Dotted names of what a file imports; `lazy` counts imports inside functions and type checks, too."""
    tree = ast.parse(path.read_text())
    if not lazy:
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                # Of a package it is a module that is imported, of a module one of its names.
                module = f"{node.module}.{alias.name}"
                found.add(module if module in MODULES else str(node.module))
    return found


def libraries(path: Path) -> set[str]:
    tops = {name.partition(".")[0] for name in imports(path)}
    return tops - set(sys.stdlib_module_names) - set(ROOTS)


def our_modules() -> list[str]:
    return [module for module in MODULES if module not in ROOTS]


def steps_against_the_table() -> Iterator[tuple[str, str]]:
    for module in our_modules():
        package = package_of(module)
        for other in imports(MODULES[module]) & set(our_modules()):
            if package_of(other) not in MAY_IMPORT[package] | {package}:
                yield shown(module), shown(other)


def test_every_module_is_looked_at():
    for root in ROOTS:
        found = {m.name for m in pkgutil.walk_packages([str(ROOT / root)], f"{root}.")}
        # What `walk_packages` does not see, for want of an `__init__.py`, an installation does not have.
        assert found == {module for module in our_modules() if module.startswith(f"{root}.")}
        assert len(found) >= 15


@pytest.mark.parametrize("module", our_modules())
def test_every_module_has_its_place_in_the_table(module):
    root, *parts = module.split(".")
    assert module in FLAT or parts[0] in FLAT or len(parts) > 1 or MODULES[module].name == "__init__.py"
    package = package_of(module)
    assert package in MAY_IMPORT
    assert (package in LIBRARY) == (root == "trainables") or package == "errors"


def test_the_table_goes_down_only():
    for at, package in enumerate(_ORDER):
        assert MAY_IMPORT[package] <= set(_ORDER[:at]), package


def test_modules_import_what_the_table_allows():
    assert not set(steps_against_the_table())


@pytest.mark.parametrize("root", ROOTS)
def test_a_package_itself_imports_nothing(root):
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module.startswith(root) and module != "orchestrator.cli":
            # The names of the library are imported when they are used.
            lazy = module == "orchestrator"
            assert imports(path, lazy=not lazy) <= ({"typing"} if lazy else set()), module


@pytest.mark.parametrize("module", our_modules())
def test_each_library_is_known_to_its_owners_only(module):
    known = libraries(MODULES[module])
    for library, owners in OWNERS.items():
        assert {package_of(module), shown(module)} & owners or library not in known, library
    assert known <= PURE.get(package_of(module), known)
    assert "benchmarks" not in known


def test_modules_import_no_circle():
    targets = {m: imports(MODULES[m], lazy=False) & set(our_modules()) for m in our_modules()}
    left = set(targets)
    while left:
        free = {module for module in left if not targets[module] & left}
        assert free, f"a circle among {sorted(left)}"
        left -= free


def test_what_only_passes_messages_starts_without_torch():
    assert set(LIGHT) <= set(MODULES)
    lines = ["import importlib, sys"]
    lines += [
        f"importlib.import_module({name!r}); assert 'torch' not in sys.modules, {name!r}" for name in LIGHT
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", READING)
def test_verbs_that_read_a_folder_import_little(verb, tmp_path):
    folder = shutil.copytree(ROOT / "tests" / "fixtures" / "folder_v0" / "small", tmp_path / "small")
    arguments = ["vitc-sweep", verb, str(folder), *READING[verb]]
    program = f"""
import sys
from orchestrator.cli import main
sys.argv = {arguments!r}
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_help_imports_no_library_but_that_of_the_command_line():
    program = """
import sys
from orchestrator.cli import main
sys.argv = ["vitc-sweep", "--help"]
try:
    main()
except SystemExit:
    pass
assert not {"numpy", "pydantic", "pyarrow", "scipy"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
