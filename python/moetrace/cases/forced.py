"""A case that goes on with an object's tokens behind its prompt: teacher forcing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count, takewhile

from moetrace.cases.case import Case


@dataclass(frozen=True, slots=True)
class ForcedCase(Case):
    """One sequence of a case whose objects have several tokens.

    ``input_ids``: the prompt and all tokens of an object but its last. ``asked``: the case itself.
    ``forced``: how many tokens follow the prompt. ``reads``: by object the tokens whose probabilities the
    sequence gives, each at the token before it; ``whole``: the objects of which these are all.
    """

    asked: Case = None  # type: ignore[assignment]  # it must be given
    forced: int = 0
    reads: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)
    whole: frozenset[str] = frozenset()


def asked_of(case: Case) -> Case:
    """The case that a sequence is of: itself, where nothing is forced."""
    return case.asked if isinstance(case, ForcedCase) else case


def forced_sequences(case: Case, vocab_size: int, ids: Iterator[int]) -> list[ForcedCase]:
    """The sequences that a case needs: one, or two where neither object is read on the other's way.

    >>> forced_sequences(case, vocab_size=50_000, ids=count(1_000_000))

    ``ids``: case ids of second sequences. Without a foil the next token of the vocabulary takes its place, as
    in checks.
    """
    foil = case.foil_ids or ((case.true_id + 1) % vocab_size,)
    objects = {"true": case.true_ids, "foil": foil}
    every = frozenset(objects)
    sequences = [_sequence(case, tokens[:-1], objects, case.case_id) for tokens in objects.values()]
    for alone in sequences:
        if alone.whole == every:
            return [alone]
    first, second = sequences
    return [first, _sequence(case, second.input_ids[len(case.input_ids) :], objects, next(ids))]


def read_at(sequences: Sequence[ForcedCase]) -> dict[str, int]:
    """By object the number of the first of a case's sequences on which all its tokens are read."""
    return {
        name: next(at for at, one in enumerate(sequences) if name in one.whole) for name in ("true", "foil")
    }


def free_ids(taken: set[int]) -> Iterator[int]:
    """Case ids that no case has."""
    return (one for one in count() if one not in taken)


def _sequence(
    case: Case, forced: tuple[int, ...], objects: Mapping[str, tuple[int, ...]], case_id: int
) -> ForcedCase:
    own = {f.name: getattr(case, f.name) for f in fields(Case)}
    own |= {"input_ids": (*case.input_ids, *forced), "case_id": case_id}
    reads = {name: tokens[: 1 + _shared(tokens, forced)] for name, tokens in objects.items()}
    whole = frozenset(name for name, tokens in objects.items() if reads[name] == tokens)
    return ForcedCase(**own, asked=case, forced=len(forced), reads=reads, whole=whole)


def _shared(tokens: tuple[int, ...], forced: tuple[int, ...]) -> int:
    """How many tokens a sequence begins with of those that an object has but its last."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(tokens[:-1], forced, strict=False))
    return sum(1 for _ in same)
