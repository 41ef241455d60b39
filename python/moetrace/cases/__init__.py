"""From records of facts to tokenised, filtered and split cases.

>>> records = load_records("counterfact.json")
>>> cases = make_cases(records, tokenizer)
>>> usable = select_cases(model, cases, n=256)
>>> discovery, validation = usable.split(seed=0)
"""

from moetrace.cases.case import Case, validate_cases
from moetrace.cases.case_set import CaseSet
from moetrace.cases.make import make_cases
from moetrace.cases.records import Record, Records, load_records
from moetrace.cases.select import FewCasesWarning, select_cases

__all__ = [
    "Case",
    "CaseSet",
    "FewCasesWarning",
    "Record",
    "Records",
    "load_records",
    "make_cases",
    "select_cases",
    "validate_cases",
]
