"""From records of facts to tokenised cases, and sets of them that can be split; no model is run here.

>>> records = load_records("counterfact.json")
>>> cases = make_cases(records, tokenizer)
>>> usable = moetrace.select_cases(model, cases, n=256)
>>> discovery, validation = usable.split(seed=0)
"""

from moetrace.cases.case import Case, case_columns, case_keys, validate_cases
from moetrace.cases.case_set import CaseSet, as_case_set
from moetrace.cases.make import make_cases
from moetrace.cases.record import Record
from moetrace.cases.records import Records, load_records

__all__ = [
    "Case",
    "CaseSet",
    "Record",
    "Records",
    "as_case_set",
    "case_columns",
    "case_keys",
    "load_records",
    "make_cases",
    "validate_cases",
]
