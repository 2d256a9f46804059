"""Who may import whom: cli, edges, plan and stats, sweep, design and cost, space, trainables; never back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STATISTICS = ("stats", "peak", "basin", "fairness", "gaps", "noise", "power", "shift")
#: From the statistics to numbers, words and tables; files and figures are the edges' part.
TELLING = ("findings", "words", "rows", "tables")
PURE = {
    "gang",
    "space",
    "where",
    "design",
    "paper",
    "question",
    "source",
    "sweep",
    "schema",
    "cost",
    "plan",
    "results",
    "confirm",
    "merge",
    "search",
    "dispatch",
    "ledger",
    "progress",
    "story",
    *STATISTICS,
    *TELLING,
}
#: What touches the outside world.
EDGES = (
    "journal",
    "lease",
    "clerk",
    "states",
    "folder",
    "lanes",
    "orphans",
    "halving",
    "samplers",
    "tracking",
    "figures",
    "report",
    "terminal",
    "evidence",
    "watch",
    "trial_logs",
    "notify",
    "serve",
    "machine",
    "preflight",
)
#: Modules of a lower rank may not import those of a higher one.
RANKS = {
    **dict.fromkeys(("gang", "space", "where", "paper"), 0),
    "design": 1,
    **dict.fromkeys(("question", "source", "sweep"), 2),
    "schema": 3,
    "plan": 3,
    "results": 4,
    **dict.fromkeys(
        ("confirm", "search", "merge", "cost", "dispatch", "ledger", "progress", "story", *STATISTICS), 5
    ),
    "findings": 6,
    "words": 6,
    "rows": 7,
    "tables": 8,
    # Edges, one outside library each.
    **dict.fromkeys(EDGES, 9),
    "cli": 10,
}
#: Libraries that only some files may know.
OWNERS = {
    "ray": {"lanes", "orphans", "halving"},
    "optuna": {"samplers"},
    "mlflow": {"tracking"},
    "matplotlib": {"figures", "report"},
    "jinja2": {"report"},
    "typer": {"cli"},
    "rich": {"cli", "terminal", "watch"},
    "pyarrow": {"cli", "journal", "states"},
}


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
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).glob("*.py"))


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def siblings(path: Path, lazy: bool = True) -> set[str]:
    """Other modules of the orchestrator that a file imports."""
    known = {module.stem for module in modules("orchestrator")}
    parts = [name.split(".") for name in imports(path, lazy) if name.startswith("orchestrator.")]
    return {part[1] for part in parts} & known


@pytest.mark.parametrize("path", modules("trainables"), ids=lambda path: path.stem)
def test_the_training_library_knows_no_sweeps_no_ray_and_no_tracker(path):
    assert not tops(imports(path)) & {"orchestrator", "benchmarks", "typer", "rich", "matplotlib"}
    assert not tops(imports(path)) & {"ray", "mlflow"}


@pytest.mark.parametrize("path", modules("orchestrator"), ids=lambda path: path.stem)
def test_each_library_is_known_to_its_own_files_only(path):
    for library, owners in OWNERS.items():
        assert path.stem in owners or library not in tops(imports(path)), library


@pytest.mark.parametrize("path", modules("orchestrator"), ids=lambda path: path.stem)
def test_imports_go_down_and_never_up(path):
    if path.stem == "__init__":
        assert not imports(path)
        return
    assert path.stem in RANKS, "a new module needs its place in the order"
    # Types may be named upwards where nothing is imported for it at run time: `results` names a `Plan`.
    for other in siblings(path, lazy=path.stem not in PURE):
        assert RANKS[other] <= RANKS[path.stem], f"{path.stem} imports {other}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_core_knows_no_edge_not_even_lazily(name):
    path = ROOT / "orchestrator" / f"{name}.py"
    if path.exists():
        assert siblings(path) <= PURE


def test_nobody_imports_the_command_line():
    for path in [*modules("orchestrator"), *modules("trainables")]:
        assert path.stem == "cli" or "cli" not in siblings(path)


def test_no_module_of_a_package_is_part_of_a_circle():
    for package in ("trainables", "orchestrator"):
        known = {path.stem: path for path in modules(package)}

        def targets(stem, known=known, package=package):
            parts = [name.split(".") for name in imports(known[stem], lazy=False)]
            return {part[1] for part in parts if part[0] == package and len(part) > 1} & set(known)

        left = dict.fromkeys(known)
        while left:
            free = [stem for stem in left if not targets(stem) & set(left)]
            assert free, f"a circle among {sorted(left)}"
            for stem in free:
                del left[stem]
