"""The table of cpp/README.md says where each equation of the paper lives; here it is held to that."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE_ROW = re.compile(r"^\| (\d+) \| [^|]+ \| `([^`|]+)` \| `([^`|]+)` \|$", re.MULTILINE)
NUMBERS = re.compile(r"[Ee]quations? (\d+(?:(?:, | and | to |, and )\d+)*)")


@dataclass(frozen=True)
class Place:
    equation: int
    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.equation}-{self.name}"


def places() -> list[Place]:
    text = (ROOT / "cpp" / "README.md").read_text(encoding="utf-8")
    return [Place(int(number), path, name) for number, path, name in TABLE_ROW.findall(text)]


def equations_in(text: str) -> set[int]:
    """Numbers that a text names: "equation 7", "equations 3, 4, 7", "equations 9 and 11 to 13"."""
    found: set[int] = set()
    for phrase in NUMBERS.findall(" ".join(text.split())):
        for part in re.split(r", and |, | and ", phrase):
            first, *last = map(int, part.split(" to "))
            found.update(range(first, (last[0] if last else first) + 1))
    return found


def python_docstring(source: str, name: str) -> str | None:
    """Docstring of a function, or of a method as "Class.method"; None where there is no such function."""
    body: list[ast.stmt] = ast.parse(source).body
    *classes, function = name.split(".")
    for wanted in classes:
        inside = [node for node in body if isinstance(node, ast.ClassDef) and node.name == wanted]
        body = inside[0].body if inside else []
    found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
    return (ast.get_docstring(found[0]) or "") if found else None


def cpp_comment(header: str, name: str) -> str | None:
    """The comment above the declaration of a function or class; None where a header doesn't declare it."""
    declaration = re.compile(rf"^\s*(?:class {name}\b|[\w:<>&\[\] ]+ {name}\()")
    lines = header.splitlines()
    for at, line in enumerate(lines):
        if declaration.match(line) and not line.lstrip().startswith(("//", "return")):
            first = at
            while first > 0 and lines[first - 1].lstrip().startswith("///"):
                first -= 1
            return " ".join(own.strip().removeprefix("///") for own in lines[first:at])
    return None


def told_of(path: str, source: str, name: str) -> str | None:
    """What the source says of a name; None where it doesn't define it."""
    return (
        python_docstring(source, name) if path.endswith(".py") else cpp_comment(source, name.split("::")[-1])
    )


def complaints(place: Place, source: str) -> Iterator[str]:
    told = told_of(place.path, source, place.name)
    if told is None:
        yield f"{place.path} doesn't define {place.name}"
    elif place.equation not in equations_in(told):
        yield f"{place.name} doesn't name equation {place.equation}: {told!r}"


@pytest.mark.parametrize("place", places(), ids=str)
def test_an_equation_is_where_the_table_says(place: Place) -> None:
    source = (ROOT / place.path).read_text(encoding="utf-8")
    assert not list(complaints(place, source))
    compiled = (ROOT / place.path).with_suffix(".cpp")
    if place.path.endswith(".h"):
        assert re.search(rf"\b{place.name}(?:::\w+)?\(", compiled.read_text(encoding="utf-8")), compiled


@pytest.mark.parametrize("place", places(), ids=str)
def test_a_renamed_function_or_a_lost_number_is_noticed(place: Place) -> None:
    source = (ROOT / place.path).read_text(encoding="utf-8")
    last = re.split(r"\.|::", place.name)[-1]
    assert list(complaints(place, re.sub(rf"\b{last}\b", f"{last}_of", source)))
    assert list(complaints(place, re.sub(r"[Ee]quations? \d", "section 0", source)))


def test_every_equation_of_the_paper_has_a_place() -> None:
    assert {place.equation for place in places()} == set(range(1, 16))
    # A row that the pattern above doesn't read would go unheld.
    table = (ROOT / "cpp" / "README.md").read_text(encoding="utf-8").split("## The paper's equations")[1]
    assert len(places()) == sum(line.startswith("| ") for line in table.splitlines()) - 1


def test_numbers_are_read_from_lists_and_ranges() -> None:
    assert equations_in("Equations 3, 4, 7, 9 and 11 to\n13; equation 15 (Table 14)") == {
        3,
        4,
        7,
        9,
        11,
        12,
        13,
        15,
    }
