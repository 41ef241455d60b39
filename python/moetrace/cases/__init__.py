"""From records of facts to tokenised cases, and sets of them that can be split; no model is run here.

>>> records = load_records("counterfact.json")
>>> cases = make_cases(records, tokenizer)
>>> usable = moetrace.select_cases(model, cases, n=256)
>>> discovery, validation = usable.split(seed=0)
"""

from moetrace.cases.case import Case, case_columns, case_keys, refuse_several_tokens, validate_cases
from moetrace.cases.case_set import CaseSet, as_case_set
from moetrace.cases.forced import ForcedCase, asked_of, forced_sequences, free_ids, read_at
from moetrace.cases.make import make_cases
from moetrace.cases.record import Record
from moetrace.cases.records import Records, load_records

__all__ = [
    "Case",
    "CaseSet",
    "ForcedCase",
    "Record",
    "Records",
    "as_case_set",
    "asked_of",
    "case_columns",
    "case_keys",
    "forced_sequences",
    "free_ids",
    "load_records",
    "make_cases",
    "read_at",
    "refuse_several_tokens",
    "validate_cases",
]
