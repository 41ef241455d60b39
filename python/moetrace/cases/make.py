"""From records to tokenised cases, with every dropped record counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from moetrace.arguments import as_choice, as_flag, as_seed
from moetrace.cases.case import Case
from moetrace.cases.case_set import CaseSet
from moetrace.cases.encoding import Encoder
from moetrace.cases.foils import FoilRule, choose_foils
from moetrace.cases.objects import following_tokens
from moetrace.cases.record import Record
from moetrace.cases.records import load_records
from moetrace.cases.spans import PlacedPrompt, place_subject, token_spans


def make_cases(
    records: Any,
    tokenizer: Any,
    final_subject: Literal["drop", "keep"] = "drop",
    foil: FoilRule = None,
    add_special_tokens: bool = True,
    seed: int = 0,
    objects: Literal["single_token", "several_tokens"] = "single_token",
    foils: Literal["required", "optional"] = "required",
) -> CaseSet:
    """Tokenise records; keep those whose objects are single tokens and whose subject is clearly placed.

    >>> cases = make_cases(load_records("counterfact"), tokenizer)
    >>> cases.funnel
    {'records': 21919, 'subject_in_prompt': 21919, 'single_token': 21321, 'different_objects': 21321, ...}
    >>> cases.dropped["foil_not_single_token"]

    The filters, in order, and the reasons that ``.dropped`` counts; a record falls for the first alone:

    - ``subject_in_prompt``: ``subject_empty``, ``subject_not_in_prompt``, ``subject_repeated``;
    - ``single_token``: ``true_not_single_token``, ``no_foil``, ``foil_not_single_token`` (section 3.1). An
      object passes if prompt, space and object tokenise to the prompt's tokens and one more; or, with
      ``objects="several_tokens"``, where the filter is ``object_tokens`` and the reasons ``true_not_tokens``
      and ``foil_not_tokens``, to the prompt's tokens and any more;
    - ``different_objects``: ``same_object``, true and foil are the same token;
    - ``subject_tokens``: ``subject_merged``, a token covers the subject and a neighbouring word;
      ``subject_is_final``, the last token is the subject's, so a patch there would replace a noised token.

    Args:
        records: Records, or anything that :func:`load_records` takes.
        tokenizer: A transformers tokenizer. Without character offsets (a slow one) the subject's tokens
            are found by decoding or encoding a part of the prompt.
        final_subject: ``"keep"`` keeps cases whose subject ends the prompt.
        foil: Where foils come from: ``None``, the record's own; ``"relation"``, another true object of the
            same relation that is a single token, drawn by ``seed`` and case id; a function of a Record that
            returns the foil's text, or None to drop the record.
        add_special_tokens: Start prompts with the tokens that the tokenizer starts text with (BOS). Tokens
            that it would end text with are never added: the prompt goes on.
        seed: For ``foil="relation"``.
        objects: ``"several_tokens"`` keeps objects of any number of tokens; their log-probabilities are
            summed under teacher forcing (:mod:`moetrace.metrics`).
        foils: ``"optional"`` drops no record for its foil: one that has none, or none that passes
            ``single_token`` and ``different_objects``, is a case without a foil, for metrics of the true
            object alone (logprob, prob, kl, rank).

    Returns:
        The cases, in the order of the records, with the objects' texts; empty if all were dropped.

    Raises:
        TokenizerError: The tokenizer isn't one, or can't tell where the subject lies.
        ArgumentError: ``final_subject``, ``foil``, ``objects`` or ``foils`` is none of the above.
        RecordError, NoCasesError, DuplicateCaseError: The records are bad; see :func:`load_records`.
    """
    as_choice(final_subject, "final_subject", ("drop", "keep"))
    several = as_choice(objects, "objects", ("single_token", "several_tokens")) == "several_tokens"
    optional = as_choice(foils, "foils", ("required", "optional")) == "optional"
    if not callable(foil):
        as_choice(foil, "foil", (None, "relation"))
    add_special_tokens, seed = as_flag(add_special_tokens, "add_special_tokens"), as_seed(seed)
    facts = load_records(records)
    encoder = Encoder(tokenizer, add_special_tokens)
    sieve = _Sieve([_Draft(index, record) for index, record in enumerate(facts)])
    sieve.step("subject_in_prompt", _place)
    add = partial(_add_objects, encoder=encoder, foil=foil, seed=seed, several=several, optional=optional)
    sieve.step("object_tokens" if several else "single_token", add)
    sieve.step("different_objects", _compare_objects)
    sieve.step("subject_tokens", partial(_add_spans, encoder=encoder, final_subject=final_subject))
    return CaseSet(
        [draft.case(encoder.start) for draft in sieve.drafts],
        funnel=sieve.funnel,
        dropped=sieve.dropped,
        record_indices=[draft.index for draft in sieve.drafts],
        n_records=len(facts),
    )


NOWHERE = PlacedPrompt("", 0, 0)


@dataclass(slots=True)
class _Draft:
    """A case as far as it is made."""

    index: int
    record: Record
    prompt: PlacedPrompt = NOWHERE
    ids: list[int] = field(default_factory=list)
    true_ids: tuple[int, ...] = ()
    foil_ids: tuple[int, ...] = ()
    foil: str = ""
    span: tuple[int, int] = (0, 0)

    def case(self, start: tuple[int, ...]) -> Case:
        """The case, its prompt after these tokens."""
        return Case(
            input_ids=(*start, *self.ids),
            subject=(self.span[0] + len(start), self.span[1] + len(start)),
            true_id=self.true_ids[0],
            true_more=self.true_ids[1:],
            foil_id=self.foil_ids[0] if self.foil_ids else None,
            foil_more=self.foil_ids[1:],
            case_id=self.record.case_id,
            relation_id=self.record.relation_id,
            prompt=self.prompt.text,
            true=self.record.target_true.strip(),
            foil=self.foil.strip(),
        )


Reasons = list[str | None]  # for each draft why it is dropped, None where it stays


class _Sieve:
    """Runs the filters and counts what each leaves and why the rest fell."""

    def __init__(self, drafts: list[_Draft]) -> None:
        self.drafts = drafts
        self.funnel = {"records": len(drafts)}
        self.dropped: Counter[str] = Counter()

    def step(self, name: str, fill: Callable[[list[_Draft]], Reasons]) -> None:
        """Let ``fill`` complete the drafts and keep those without a reason to drop them."""
        reasons = fill(self.drafts)
        self.dropped.update(reason for reason in reasons if reason is not None)
        self.drafts = [draft for draft, reason in zip(self.drafts, reasons, strict=True) if reason is None]
        self.funnel[name] = len(self.drafts)


def _place(drafts: list[_Draft]) -> Reasons:
    reasons: Reasons = []
    for draft in drafts:
        placed = place_subject(draft.record)
        if isinstance(placed, PlacedPrompt):
            draft.prompt = placed
        reasons.append(placed if isinstance(placed, str) else None)
    return reasons


def _add_objects(
    drafts: list[_Draft], encoder: Encoder, foil: FoilRule, seed: int, several: bool, optional: bool
) -> Reasons:
    texts = [draft.prompt.text for draft in drafts]
    records = [draft.record for draft in drafts]
    ids = encoder.encode(texts)
    true = following_tokens(encoder, texts, ids, [record.target_true for record in records], several)
    foils = choose_foils(records, true, foil, seed)
    # Most of the time goes into tokenising: foils are only looked at where the true object passed.
    foils = [text if true_ids is not None else "" for text, true_ids in zip(foils, true, strict=True)]
    false = following_tokens(encoder, texts, ids, foils, several)
    fault = "not_tokens" if several else "not_single_token"
    reasons: Reasons = []
    for draft, row, true_ids, text, foil_ids in zip(drafts, ids, true, foils, false, strict=True):
        if true_ids is None:
            reasons.append(f"true_{fault}")
        elif optional and foil_ids in (None, true_ids):
            draft.ids, draft.true_ids = row, true_ids
            reasons.append(None)
        elif foil_ids is None:
            reasons.append(f"foil_{fault}" if text else "no_foil")
        else:
            draft.ids, draft.true_ids, draft.foil_ids, draft.foil = row, true_ids, foil_ids, text
            reasons.append(None)
    return reasons


def _compare_objects(drafts: list[_Draft]) -> Reasons:
    return ["same_object" if draft.true_ids == draft.foil_ids else None for draft in drafts]


def _add_spans(drafts: list[_Draft], encoder: Encoder, final_subject: str) -> Reasons:
    spans = token_spans(encoder, [draft.prompt for draft in drafts], [draft.ids for draft in drafts])
    reasons: Reasons = []
    for draft, span in zip(drafts, spans, strict=True):
        if isinstance(span, str):
            reasons.append(span)
            continue
        draft.span = span
        is_final = span[1] == len(draft.ids)
        reasons.append("subject_is_final" if is_final and final_subject == "drop" else None)
    return reasons
