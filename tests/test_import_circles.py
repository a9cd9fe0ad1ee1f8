"""No two files of the package import each other, directly or through others.

Every import counts: those inside functions, and those for type checkers only, which too say that
one file can't be understood without the other. What is left out are packages' ``__init__`` files
as targets of ``from package import name``: the import is followed to the file that has the name.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import vit_sae_plugin

ROOT = Path(vit_sae_plugin.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each ``from module import name``; the name is empty for ``import``."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def imports() -> dict[str, set[str]]:
    """File → files that it imports, each name followed to where it is defined."""
    paths = modules()
    names = {module: set(imported_names(path)) for module, path in paths.items()}
    lazy = {module: _lazy_homes(path) for module, path in paths.items()}

    def home(module: str, name: str) -> str | None:
        if f"{module}.{name}" in paths:
            return f"{module}.{name}"
        if module not in paths:
            return None
        if paths[module].name != "__init__.py":
            return module
        if name in lazy[module]:
            return home(f"{module}.{lazy[module][name]}", name)
        for other, inner in names[module]:
            if inner == name and other != module:
                return home(other, name)
        return module

    return {
        module: {found for pair in names[module] if (found := home(*pair)) not in (None, module)}
        for module in paths
        if paths[module].name != "__init__.py"
    }


def _lazy_homes(path: Path) -> dict[str, str]:
    """The ``_HOME_OF`` of a package that imports its names on first use."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOME_OF":
            return ast.literal_eval(node.value)
    return {}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_names_are_followed_to_their_files():
    graph = imports()
    assert "vit_sae_plugin.hooked_vit.hooked_vit" in graph["vit_sae_plugin.cli.train_flags"]
    assert "vit_sae_plugin.report.static_site" in graph["vit_sae_plugin.cli.analyze"]


def test_no_two_files_import_each_other():
    assert circles(imports()) == []
