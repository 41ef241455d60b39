"""Symmetric token replacement: the subject's tokens become those of another subject."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from moetrace.arguments import as_count, as_integer, shown
from moetrace.cases import Case, CaseSet, as_case_set, load_records, make_cases
from moetrace.corruptions.noise import check_seeds
from moetrace.errors import NoPartnerError, TokenizerError

if TYPE_CHECKING:
    import torch

    from moetrace.corruptions.embedding import Embedding

REASON = "no_swap_partner"
Key = tuple[str, int, bool]


class SwapSubject:
    """Another subject of the same relation in the place of the case's own.

    >>> cases = mt.make_cases(records, tokenizer)
    >>> swap = mt.SwapSubject(cases)
    >>> mt.trace_layers(model, swap.usable(cases), corruption=swap)

    A partner is a subject of the same relation, with as many tokens, other ones, whose true object is another
    one; both begin their prompts, or neither does, since many tokenizers write a first word otherwise. The
    embeddings of its tokens replace those of the case's subject, so the corrupted prompt is one that the
    model could meet, where noise is not (symmetric token replacement, Zhang and Nanda 2023).

    ``records``: where partners are looked for: cases of :func:`make_cases`, or anything that it takes.
    ``seed``, ``draws``: each draw of a case is another partner, in an order drawn with ``seed + case_id``; it
    depends on the case and on the subjects there are, not on their order. ``tokenizer``: tells the tokens of
    records that aren't cases; None is the one that lies beside the model's weights.

    Errors: NoPartnerError where a trace has cases without enough partners; :meth:`usable` leaves them out.
    TokenizerError where no tokenizer is found.
    """

    replaces: ClassVar[bool] = True

    def __init__(self, records: Any, seed: int = 0, draws: int = 1, *, tokenizer: Any = None) -> None:
        self.seed = as_integer(seed, "swap seed")
        self.draws = as_count(draws, "swap draws", 1)
        cases = isinstance(records, CaseSet) or (
            isinstance(records, Sequence) and all(isinstance(own, Case) for own in records)
        )
        if not cases and tokenizer is None:
            self._records: Any = load_records(records)
            self._subjects: _Subjects | None = None
            return
        pool = as_case_set(records) if cases else _cases_of(records, tokenizer)
        self._subjects = _Subjects.of(pool)

    def __repr__(self) -> str:
        found = "subjects not tokenised yet" if self._subjects is None else f"{len(self._subjects)} subjects"
        return f"SwapSubject({found}, seed={self.seed}, draws={self.draws})"

    def partners(self, case: Case) -> list[tuple[int, ...]]:
        """Token ids of the subjects that may take the place of a case's own, in the order of its draws.

        >>> [tokenizer.decode(ids) for ids in swap.partners(cases[0])]
        """
        import torch

        fitting = self._known().beside(case)
        generator = torch.Generator(device="cpu").manual_seed(self.seed + case.case_id)
        return [fitting[place] for place in torch.randperm(len(fitting), generator=generator).tolist()]

    def usable(self, cases: Sequence[Case]) -> CaseSet:
        """The cases that have a partner for every draw; ``.dropped`` counts the others as no_swap_partner.

        >>> swap.usable(cases).dropped["no_swap_partner"]
        """
        source = as_case_set(cases)
        without = {case.case_id for case in self._without(source)}
        kept = [place for place, case in enumerate(source) if case.case_id not in without]
        dropped = source.dropped + Counter({REASON: len(without)} if without else {})
        return source.take(kept, dropped=dropped)

    def check(self, cases: Sequence[Case]) -> None:
        """NoPartnerError where cases lack a partner; ArgumentError for ids that give no seed."""
        check_seeds(self.seed, cases)
        if self._subjects is None:
            return
        without = self._without(cases)
        if without:
            few = ", ".join(str(case.case_id) for case in without[:20])
            wanted = "a partner" if self.draws == 1 else f"{self.draws} partners, one for each draw"
            raise NoPartnerError(
                f"{len(without)} of {len(cases)} cases have no other subject to swap in: case ids {few}"
                f"{', …' if len(without) > 20 else ''}; expected {wanted}, of the same relation with as many "
                "tokens and another true object. Trace swap.usable(cases), which leaves them out, or give "
                "SwapSubject more records"
            )

    def measured(self, embedding: Embedding) -> SwapSubject:
        """The same, with the records tokenised as the model was told to."""
        if self._subjects is not None:
            return self
        pool = _cases_of(self._records, _tokenizer_beside(embedding.name))
        return self._like(_subjects=_Subjects.of(pool))

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (draws, subject tokens, width): the embeddings of the partners' tokens."""
        import torch

        chosen = self.partners(case)[: self.draws]
        if len(chosen) < self.draws:
            self.check([case])
        return torch.stack([embedding.rows(ids) for ids in chosen])

    def first_draw(self) -> SwapSubject:
        """Its first partner alone, which is the same."""
        return self._like(draws=1)

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Seed and draws, and a digest of the subjects that may be swapped in."""
        subjects = self._known().digest
        own = {"name": "swap_subject", "seed": self.seed, "draws": self.draws, "subjects": subjects}
        return {"corruption": own}

    def _without(self, cases: Iterable[Case]) -> list[Case]:
        return [case for case in cases if len(self.partners(case)) < self.draws]

    def _known(self) -> _Subjects:
        if self._subjects is None:
            raise TokenizerError(
                "the records of this SwapSubject aren't tokenised yet; expected cases or a tokenizer: "
                "SwapSubject(cases), or SwapSubject(records, tokenizer=tokenizer)"
            )
        return self._subjects

    def _like(self, **changed: Any) -> SwapSubject:
        other = object.__new__(SwapSubject)
        other.__dict__.update(self.__dict__, **changed)
        return other


@dataclass(frozen=True)
class _Subjects:
    """The subjects there are. ``found``: by relation, tokens and place their ids and true objects."""

    found: dict[Key, list[tuple[tuple[int, ...], int]]]
    first: int | None  # the token that begins every prompt (BOS)

    @staticmethod
    def of(pool: Sequence[Case]) -> _Subjects:
        """Of cases."""
        firsts = {case.input_ids[0] for case in pool if case.input_ids}
        first = firsts.pop() if len(firsts) == 1 and len(pool) > 1 else None
        found: dict[Key, set[tuple[tuple[int, ...], int]]] = {}
        for case in pool:
            found.setdefault(_key(case, first), set()).add((_subject(case), case.true_id))
        return _Subjects({key: sorted(own) for key, own in found.items()}, first)

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    @cached_property
    def digest(self) -> str:
        """Of all subjects."""
        told = json.dumps([[*key, own] for key, own in sorted(self.found.items())])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def beside(self, case: Case) -> list[tuple[int, ...]]:
        """Other subjects like a case's own, with another true object, in ascending order."""
        own = _subject(case)
        alike = self.found.get(_key(case, self.first), [])
        return sorted({ids for ids, true in alike if ids != own and true != case.true_id})


def _subject(case: Case) -> tuple[int, ...]:
    return case.input_ids[case.subject[0] : case.subject[1]]


def _key(case: Case, first: int | None) -> Key:
    start, stop = case.subject
    begins = start == 0 or (start == 1 and case.input_ids[0] == first)
    return case.relation_id, stop - start, begins


def _cases_of(records: Any, tokenizer: Any) -> CaseSet:
    """Records as cases, whatever their own foils."""
    return make_cases(records, tokenizer, final_subject="keep", foil="relation")


def _tokenizer_beside(name: str) -> Any:
    """The tokenizer of a model, by its name or folder; nothing is downloaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception as failure:
        raise TokenizerError(
            f"SwapSubject was given records and no tokenizer, and none lies beside the model ({name!r}: "
            f"{shown(str(failure))}); give it cases, SwapSubject(cases), or SwapSubject(records, "
            "tokenizer=tokenizer)"
        ) from failure
