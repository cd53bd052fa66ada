"""Measures of the code as a house: files, what imports what, what is called how often.

`python tests/house/measures.py [ROOT]` prints them as a table; tests/house/test_style.py holds bounds on them.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SMALL = 60  # lines


@dataclass
class Part:
    """The Python files of one folder of the tree, or the whole of it."""

    root: Path
    names: tuple[str, ...]
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read all files; a module is named as Python names it, from the root on."""
        for name in self.names:
            for path in sorted((self.root / name).rglob("*.py")):
                relative = path.relative_to(self.root).with_suffix("")
                parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
                self.sources[".".join(parts)] = path.read_text(encoding="utf-8")
        self.trees = {module: ast.parse(source) for module, source in self.sources.items()}
        self.packages = {".".join(p.parent.relative_to(self.root).parts) for p in self._inits()}

    def _inits(self) -> list[Path]:
        return [path for name in self.names for path in (self.root / name).rglob("__init__.py")]

    @property
    def modules(self) -> list[str]:
        """Return all modules but the `__init__` files of packages that only say what they are."""
        return [module for module, tree in self.trees.items() if len(tree.body) > 1]

    def lines(self) -> dict[str, int]:
        """Return the lines of each module."""
        return {module: self.sources[module].count("\n") for module in self.modules}

    def imports(self, typing: bool = False) -> dict[str, set[str]]:
        """Return for each module the modules of this part that it imports, inside functions too.

        Args:
            typing: whether imports for type checkers alone count.
        """
        return {module: self._imported(module, typing) for module in self.trees}

    def _imported(self, module: str, typing: bool) -> set[str]:
        package = module.split(".") if module in self.packages else module.split(".")[:-1]
        found = set()
        for node in _walk(self.trees[module], typing):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                name = ".".join(part for part in base if part)
                found |= {f"{name}.{a.name}" if f"{name}.{a.name}" in self.trees else name for a in node.names}
        return (found & set(self.trees)) - {module}

    def importers(self) -> Counter[str]:
        """Return how many modules import each one, type checkers' imports included."""
        return Counter(target for targets in self.imports(typing=True).values() for target in targets)

    def cycles(self) -> list[tuple[str, ...]]:
        """Return groups of modules that import each other in a circle, imports inside functions included."""
        return [group for group in _components(self.imports()) if len(group) > 1]

    def functions(self) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        """Return all functions with the names of their modules."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [(module, n) for module, tree in self.trees.items() for n in ast.walk(tree) if isinstance(n, kinds)]

    def called_once(self) -> tuple[int, int]:
        """Return how many private functions are named once besides their definition, and how many there are."""
        private = [(m, f.name) for m, f in self.functions() if f.name.startswith("_") and not f.name.endswith("__")]
        words = {module: Counter(_names(source)) for module, source in self.sources.items()}
        return sum(words[module][name] == 2 for module, name in private), len(private)

    def comments(self) -> float:
        """Return comment lines per hundred lines of code, without blank lines and docstrings."""
        comments = code = 0
        for module, source in self.sources.items():
            docs = _docstring_lines(self.trees[module])
            for number, line in enumerate(source.splitlines(), 1):
                text = line.strip()
                if text and number not in docs:
                    comments += text.startswith("#") or "  # " in line
                    code += not text.startswith("#")
        return 100 * comments / max(1, code)

    def any_count(self) -> int:
        """Return how often the type Any stands in annotations and elsewhere."""
        return sum(Counter(_names(source))["Any"] for source in self.sources.values())


def _walk(tree: ast.AST, typing: bool) -> list[ast.AST]:
    if typing:
        return list(ast.walk(tree))
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def _names(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
    return [token.string for token in tokens if token.type == tokenize.NAME]


def _docstring_lines(tree: ast.Module) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.end_lineno:
                found |= set(range(first.lineno, first.end_lineno + 1))
    return found


def _components(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the strongly connected components of a graph (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(tuple(sorted(stack[at:])))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def table(root: Path) -> str:
    """Return the measures of core, runner, nodes and serve as lines."""
    head = (
        "",
        "files",
        "lines",
        "median file",
        f"files < {SMALL}",
        "one importer",
        "private called once",
        "comments",
        "Any",
        "cycles",
    )
    rows = [head]
    for names in (("core",), ("runner",), ("nodes",), ("serve",)):
        part = Part(root, names)
        lines, importers = part.lines(), part.importers()
        once, private = part.called_once()
        rows.append(
            (
                names[0],
                str(len(part.trees)),
                str(sum(source.count("\n") for source in part.sources.values())),
                f"{statistics.median(lines.values()):.0f}",
                f"{sum(count < SMALL for count in lines.values()) / len(lines):.0%}",
                f"{sum(importers[module] == 1 for module in lines) / len(lines):.0%}",
                f"{once / max(1, private):.0%} of {private}",
                f"{part.comments():.1f}",
                str(part.any_count()),
                str(len(part.cycles())),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]))
