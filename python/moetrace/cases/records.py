"""Records of facts, whatever layout they came in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, overload

from moetrace.cases.layouts import find_layout
from moetrace.cases.record import Record
from moetrace.cases.sources import open_source
from moetrace.errors import NoCasesError, RecordError

if TYPE_CHECKING:
    import pandas as pd


class Records(Sequence[Record]):
    """Records in the order of their source.

    >>> records = load_records("counterfact.json")
    >>> records[0].subject
    'Danielle Darrieux'
    """

    __slots__ = ("_records", "source")

    def __init__(self, records: Iterable[Record], source: str = "") -> None:
        self._records = tuple(records)
        self.source = source

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, item: int) -> Record: ...
    @overload
    def __getitem__(self, item: slice) -> Records: ...
    def __getitem__(self, item: int | slice) -> Record | Records:
        if isinstance(item, slice):
            return Records(self._records[item], self.source)
        return self._records[item]

    def __eq__(self, other: object) -> bool:
        return self._records == other._records if isinstance(other, Records) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._records)

    def __repr__(self) -> str:
        return f"Records({len(self):,} of {self.source})" if self.source else f"Records({len(self):,})"

    def frame(self) -> pd.DataFrame:
        """One row per record, one column per field; :func:`load_records` takes it back."""
        import pandas as pd

        return pd.DataFrame(
            [asdict(record) for record in self], columns=[field.name for field in fields(Record)]
        )


def load_records(source: Any, split: str | None = None) -> Records:
    """Read facts from a file, the Hugging Face hub, a table or a list, in any of the known layouts.

    >>> load_records("counterfact")                       # the hub data set azhx/counterfact
    >>> load_records("NeelNanda/counterfact-tracing")
    >>> load_records("facts.csv")
    >>> load_records([{"prompt": "{} speaks", "subject": "Zola", "target_true": "French", "target_new": ""}])

    Layouts, told by the field names of the first record:

    - CounterFact's own: ``requested_rewrite`` with ``prompt, subject, relation_id, target_true.str,
      target_new.str``, beside ``case_id``; the hub's ``azhx/counterfact`` has it too;
    - flat: ``prompt, subject, target_true, target_new`` (or ``target_false``), and ``case_id`` and
      ``relation_id`` if there are any;
    - ``NeelNanda/counterfact-tracing``: ``prompt, relation_prefix, relation_suffix, subject, target_true,
      target_false``, with their leading spaces;
    - ``known_1000.json``: ``known_id, prompt, template, subject, attribute, relation_id``. It has no foil;
      :func:`make_cases` takes one from ``foil=``.

    A missing ``case_id`` is the record's index. An empty or null foil or subject is read as empty, and
    :func:`make_cases` names it as a drop reason.

    Args:
        source: A path (``.json``, ``.jsonl``, ``.ndjson``, ``.csv``, ``.tsv``, ``.parquet``, or a folder that
            ``datasets`` can read); ``"counterfact"`` or ``"owner/name"`` on the hub; a ``datasets.Dataset``
            or ``DatasetDict``; a ``pandas.DataFrame``; an iterable of dicts or of Records.
        split: Which split of a data set with several. ``None`` joins all of them, in the order of their
            case ids if each record has one: ``azhx/counterfact`` is cut in two, and the paper's record order
            shuffles the whole.

    Raises:
        RecordError: The source doesn't exist, is truncated or of an unknown layout, or a record lacks a
            field; the message says which field of which record.
        NoCasesError: The source holds no records.
    """
    if isinstance(source, Records):
        return source
    rows, name = open_source(source, split)
    if rows and all(isinstance(row, Record) for row in rows):
        return Records(rows, name)
    if not rows:
        raise NoCasesError(f"{name} holds no records; expected at least one fact")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RecordError(
                f"{name}: record {index} is a {type(row).__name__}; expected a mapping of fields"
            )
    layout = find_layout(rows[0], name)
    return Records((layout.read(row, index, name) for index, row in enumerate(rows)), name)
