"""The rooms of the house: imports go one way."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A room may import from itself and from those named; CONTRIBUTING.md has the picture.
MAY_IMPORT = {
    "settings": set(),
    "distributed": set(),
    "hub_errors": set(),
    "output": {"settings"},
    "demo": {"output"},
    "smollm2": {"output"},
    "data": {"settings", "output", "distributed", "hub_errors"},
    "model": {"settings", "hub_errors", "data.batch", "data.packing"},
    "evaluation": {"settings", "output", "distributed", "data"},
    "serving": {"settings", "distributed", "data", "evaluation.scoring", "evaluation.settings"},
    "benchmarks": {"settings", "data", "evaluation.rows"},
    "audit": {"output", "data"},
    "training": {"settings", "output", "distributed", "data", "model", "evaluation"},
    "estimates": {"distributed", "output", "model", "training.settings"},
    "rw_eval": {
        *("settings", "distributed", "data", "model", "evaluation", "benchmarks", "serving"),
    },
    "main": {
        *("settings", "distributed", "data", "model", "training", "audit", "estimates"),
    },
}
FILES = [*sorted((ROOT / "utils").rglob("*.py")), ROOT / "rw_eval.py", ROOT / "main.py"]


def room_of(path: Path) -> str:
    """The part of the house that a file is in: a folder or file of utils, or a program."""
    parts = path.relative_to(ROOT).parts
    return parts[parts[0] == "utils"].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Names under `utils` that a file imports, such as data.batch."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "utils":
            found |= {f"utils.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("utils.") for name in found if name.startswith("utils.")}


def within(name: str, place: str) -> bool:
    """Whether an imported name is a place of the house or in it."""
    return name == place or name.startswith(place + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = room_of(path)
    if room == "__init__":
        assert path.read_text() == ""
        return
    allowed = MAY_IMPORT[room] | {room}
    for name in imports(path):
        assert any(within(name, place) for place in allowed), name


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_import_that_is_allowed_is_used(room):
    used = {name for path in FILES if room_of(path) == room for name in imports(path)}
    for place in MAY_IMPORT[room]:
        assert any(within(name, place) for name in used), place


def test_the_rules_have_no_circle():
    """Each room imports only those that stand above it in the table."""
    rooms = list(MAY_IMPORT)
    for number, room in enumerate(rooms):
        assert {place.split(".")[0] for place in MAY_IMPORT[room]} <= set(rooms[:number]), room


def test_light_rooms_import_with_torch_alone():
    """loss, packing and metrics need neither DeepSpeed nor datasets nor transformers."""
    heavy = {"deepspeed", "datasets", "transformers", "peft"}
    for start in ("training/loss.py", "data/packing.py", "evaluation/metrics.py"):
        waiting, seen = [ROOT / "utils" / start], set()
        while waiting:
            path = waiting.pop()
            seen.add(path)
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & heavy, path
            places = [ROOT / "utils" / f"{name.replace('.', '/')}.py" for name in imports(path)]
            waiting += [place for place in places if place.exists() and place not in seen]
