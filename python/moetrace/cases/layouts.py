"""The layouts that facts are published in, each read into a Record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Real
from reprlib import Repr
from typing import Any

from moetrace.cases.record import Record
from moetrace.errors import RecordError

Row = Mapping[str, Any]

_SHORT = Repr()  # cuts what is long and stops where it is deep, as a value from a file may be
_SHORT.maxstring = _SHORT.maxother = 80


class Fields:
    """The fields of one record, asked for by name; what is missing is an error that says where."""

    def __init__(self, row: Row, index: int, where: str) -> None:
        self.row = row
        self.index = index
        self.where = where

    def required(self, *names: str) -> str:
        """Text of the first of these fields that there is; it may be empty but not null."""
        value = self._first(*names)
        if is_null(value):
            raise RecordError(f"{self.where}: {names[0]} is null; expected text")
        return self._text(value, names[0])

    def optional(self, *names: str) -> str:
        """The same for a field that must be there and may be null, which reads as empty."""
        value = self._first(*names)
        return "" if is_null(value) else self._text(value, names[0])

    def label(self, name: str) -> str:
        """Text, or a number as text, of a field that may be absent."""
        value = self.row.get(name)
        if is_null(value):
            return ""
        return str(value) if isinstance(value, Real) else self._text(value, name)

    def number(self, name: str) -> int:
        """A whole number, or the record's index where no record could have it."""
        if name not in self.row:
            return self.index
        value = self.row[name]
        try:
            # A table's column with a gap holds floats, and a CSV file text: 12, 12.0 and "12" are one number.
            return int(str(value).removesuffix(".0"))
        except ValueError:
            raise RecordError(
                f"{self.where}: {name} is {short(value)}; expected a whole number. Leave the field out of"
                " every record to number them by their order"
            ) from None

    def inner(self, name: str) -> Fields:
        """The fields nested under this one."""
        value = self._first(name)
        if not isinstance(value, Mapping):
            raise RecordError(f"{self.where}: {name} is a {type(value).__name__}; expected a mapping")
        return Fields(value, self.index, f"{self.where}, in {name},")

    def _first(self, *names: str) -> Any:
        for name in names:
            if name in self.row:
                return self.row[name]
        raise RecordError(
            f"{self.where} lacks the field {' or '.join(names)}; it has {first_few(self.row) or 'none'}"
        )

    def _text(self, value: Any, name: str) -> str:
        if isinstance(value, Mapping) and "str" in value:  # CounterFact writes objects as {"str", "id"}
            value = value["str"]
        if not isinstance(value, str):
            raise RecordError(f"{self.where}: {name} is {short(value)}; expected text")
        return self._unicode(value, name)

    def _unicode(self, text: str, name: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RecordError(
                f"{self.where}: {name} is {short(text)}, which is no valid Unicode (half of a surrogate"
                " pair); no tokenizer can read it: repair or drop the record"
            ) from None
        return text


class Layout(ABC):
    """How one published layout is recognised and read."""

    description: str

    @abstractmethod
    def matches(self, names: set[str]) -> bool:
        """Whether a record with these field names is of this layout."""

    @abstractmethod
    def fact(self, fields: Fields) -> Record:
        """The record, texts as they stand."""

    def read(self, row: Row, index: int, source: str) -> Record:
        """The record, without spaces around subject and objects."""
        fact = self.fact(Fields(row, index, f"{source}: record {index}"))
        return Record(
            fact.case_id,
            fact.relation_id,
            fact.prompt,
            fact.subject.strip(),
            fact.target_true.strip(),
            fact.target_new.strip(),
        )


class Rewrite(Layout):
    """CounterFact's own layout, and the hub's azhx/counterfact."""

    description = "requested_rewrite {prompt, subject, relation_id, target_true, target_new}"

    def matches(self, names: set[str]) -> bool:
        """Told by its own field names."""
        return "requested_rewrite" in names

    def fact(self, fields: Fields) -> Record:
        """All but the case id is nested."""
        rewrite = fields.inner("requested_rewrite")
        return Record(
            fields.number("case_id"),
            rewrite.label("relation_id"),
            rewrite.required("prompt"),
            rewrite.optional("subject"),
            rewrite.required("target_true"),
            rewrite.optional("target_new"),
        )


class Tracing(Layout):
    """The hub's NeelNanda/counterfact-tracing: prompt = prefix + subject + suffix, spaces included."""

    description = "prompt, relation_prefix, relation_suffix, subject, target_true, target_false"

    def matches(self, names: set[str]) -> bool:
        """Told by its own field names."""
        return {"relation_prefix", "relation_suffix"} <= names

    def fact(self, fields: Fields) -> Record:
        """The space before the subject goes to the template."""
        prefix, suffix = fields.optional("relation_prefix"), fields.optional("relation_suffix")
        subject = fields.optional("subject")
        space = subject[: len(subject) - len(subject.lstrip())]
        return Record(
            fields.number("case_id"),
            fields.label("relation_id"),
            prefix + space + "{}" + suffix,
            subject,
            fields.required("target_true"),
            fields.optional("target_false", "target_new"),
        )


class Known(Layout):
    """known_1000.json: the template stops short of the prompt's end, and there is no foil."""

    description = "known_id, prompt, template, subject, attribute, relation_id"

    def matches(self, names: set[str]) -> bool:
        """Told by its own field names."""
        return "attribute" in names and bool(names & {"prompt", "template"})

    def fact(self, fields: Fields) -> Record:
        """A foil is read if somebody added one."""
        subject = fields.optional("subject")
        return Record(
            fields.number("known_id" if "known_id" in fields.row else "case_id"),
            fields.label("relation_id"),
            self._prompt(fields, subject),
            subject,
            fields.required("attribute"),
            fields.label("target_new") or fields.label("target_false"),
        )

    def _prompt(self, fields: Fields, subject: str) -> str:
        """The whole prompt, as a template if the record's own says which place is the subject's."""
        template = fields.label("template")
        prompt = fields.required("prompt", "template")
        head, found, _ = template.partition("{}")
        if found and subject and prompt.startswith(head + subject):
            return head + "{}" + prompt[len(head + subject) :]
        return prompt


class Flat(Layout):
    """One field each; the layout of a table."""

    description = "prompt, subject, target_true, target_new [case_id, relation_id]"

    def matches(self, names: set[str]) -> bool:
        """Two of its fields are enough to know what was meant; the one that lacks is then named."""
        return len(names & {"prompt", "subject", "target_true", "target_new", "target_false"}) >= 2

    def fact(self, fields: Fields) -> Record:
        """One field each."""
        return Record(
            fields.number("case_id"),
            fields.label("relation_id"),
            fields.required("prompt"),
            fields.optional("subject"),
            fields.required("target_true"),
            fields.optional("target_new", "target_false"),
        )


LAYOUTS: tuple[Layout, ...] = (Rewrite(), Tracing(), Known(), Flat())


def find_layout(row: Row, source: str) -> Layout:
    """The layout that a source's first record is of.

    Raises:
        RecordError: It is of none.
    """
    names = {str(name) for name in row}
    for layout in LAYOUTS:
        if layout.matches(names):
            return layout
    known = "; ".join(layout.description for layout in LAYOUTS)
    raise RecordError(
        f"{source}: unknown layout, record 0 has the fields {first_few(row) or 'none'};"
        f" expected one of: {known}"
    )


def first_few(names: Iterable[Any], count: int = 12) -> str:
    """Names for a message, cut where there are many."""
    shown = [short(name).strip("'") for name in islice(names, count + 1)]
    return ", ".join(shown[:count]) + (", …" if len(shown) > count else "")


def short(value: Any) -> str:
    """A value for a message: its repr, cut where it is long or deep."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return f"a {type(value).__name__} that can't be shown"


def is_null(value: Any) -> bool:
    """None and the NaN, NaT or NA that a table has in its place: none of them equals itself for sure."""
    if value is None:
        return True
    if isinstance(value, str | Mapping):
        return False
    try:
        return not bool(value == value)
    except (TypeError, ValueError):  # pandas.NA has no truth value
        return True
