"""The layer rule of docs/architecture.md: a module imports only from its own floor or below, and one place imports bcc."""

import ast
from pathlib import Path

import pytest

import labkit

ROOT = Path(labkit.__file__).parent
FLOORS = {
    1: {
        "closing",
        "errors",
        "paths",
        "text",
        "ledger",
        "histogram",
        "bpfsys",
        "perfsys",
        "show",
        "progress",
        "until",
    },
    2: {"kernel", "oracles"},
    3: {"spec", "compiler", "layout", "maps", "ring", "program", "attach", "backedge", "loader"},
    4: {"capture", "events", "recordings"},
    5: {"sched", "names", "cgroups", "workloads", "_janitor", "_worker"},
    6: {"plots", "strip", "shapes", "drawings", "findings"},
    7: {
        "noisy",
        "metrics",
        "session",
        "lessons",
        "gate",
        "kernel_guard",
        "notebook_io",
        "notebook_form",
        "harvest",
        "execution",
        "report",
        "outcomes",
        "pages",
        "first",
        "scenarios",
        "functions",
        "glossary",
        "links",
        "widgets",
    },
    8: {"cli", "runner", "doctor", "system", "workbench", "containers", "site", "site_run"},
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
APART = {"_bcc_worker", "__init__"}  # a process of its own; the lazy public face


def _room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{a.name}" for a in node.names if node.module == "labkit"]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {name for name in names if name.split(".")[0] in ("labkit", "bcc")}
    return found


MODULES = sorted(p for p in ROOT.rglob("*.py") if _room(p) not in APART)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_floor_or_below(path: Path) -> None:
    room = _room(path)
    assert room in FLOOR_OF, f"{room} has no floor: add it here and to docs/architecture.md"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "labkit" and len(parts) > 1 and parts[1] in FLOOR_OF:
            assert FLOOR_OF[parts[1]] <= FLOOR_OF[room], f"{room} (floor {FLOOR_OF[room]}) imports {name}"


def test_one_place_imports_bcc() -> None:
    importers = [p for p in ROOT.rglob("*.py") if any(n.split(".")[0] == "bcc" for n in _imports(p))]
    assert [p.name for p in importers] == ["_bcc_worker.py"]


def test_each_room_stands_in_the_document_with_its_floor() -> None:
    text = (ROOT.parent / "docs/architecture.md").read_text()
    for floor, names in FLOORS.items():
        rows = [row for row in text.splitlines() if row.startswith(f"| {floor} |")]
        for name in names:
            assert any(f"`{name}`" in row for row in rows), (
                f"{name} is not on floor {floor} of docs/architecture.md"
            )
