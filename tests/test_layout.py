"""The rooms of the house: imports go one way, and files stay readable."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A room may import from itself and from those named.
MAY_IMPORT = {
    "arguments": set(),
    "distributed": set(),
    "data": {"arguments", "distributed"},
    "model": {"arguments", "distributed", "data.batching"},
    "evaluation": {"arguments", "distributed", "data"},
    "training": {"arguments", "distributed", "data", "model", "evaluation"},
}
FILES = sorted((ROOT / "utils").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Names under `utils` that a file imports, such as data.batching."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("utils"):
            place = node.module.removeprefix("utils").lstrip(".")
            found |= {place} if place else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = path.relative_to(ROOT / "utils").parts[0].removesuffix(".py")
    if room == "__init__":
        assert path.read_text() == ""
        return
    allowed = MAY_IMPORT[room] | {room}
    for name in imports(path):
        assert any(name == place or name.startswith(place + ".") for place in allowed), name


def test_light_rooms_import_with_torch_alone():
    """loss, batching and metrics need neither DeepSpeed nor datasets nor transformers."""
    heavy = {"deepspeed", "datasets", "transformers", "peft"}
    for start in ("training/loss.py", "data/batching.py", "evaluation/metrics.py"):
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


def test_main_reads_in_one_go():
    assert len((ROOT / "main.py").read_text().splitlines()) < 300
