"""Headings and captions of the paper's sixteen tables."""

from __future__ import annotations

from moetrace.protocol.typeset import Layout, count, estimate, metric, number, text

_SPEC = r"$\mathrm{Spec}$"
_MODEL = text("model", "Model")

LAYOUTS = {
    layout.number: layout
    for layout in (
        Layout(
            "1",
            "Main results on validation cases. Spec subtracts same-layer active-random rescue.",
            (
                _MODEL,
                text("layer", "Layer"),
                estimate("layer_rescue", "Layer rescue"),
                text("expert", "Expert"),
                estimate("expert_rescue", "Expert rescue"),
                estimate("spec", "Spec", _SPEC),
            ),
        ),
        Layout("2", "Protocol of this run.", (text("item", "Item"), text("setting", "Setting"))),
        Layout(
            "3",
            "Selected-expert activity, and zero-rescue rows in expert-level validation.",
            (
                _MODEL,
                text("expert", "Expert"),
                count("discovery_active", "Disc.", of=True),
                count("validation_active", "Val.", of=True),
                count("zero_rows", "Zero"),
            ),
        ),
        Layout(
            "4",
            "Most frequent relations among the usable cases.",
            (_MODEL, text("relations", "Most frequent retained relations")),
        ),
        Layout(
            "5",
            "Expert-level validation by relation, for the most frequent relations. Specificity is "
            "selected-expert rescue minus active-random rescue.",
            (
                _MODEL,
                text("relation", "Relation"),
                count("n", "n", "$n$"),
                number("expert_rescue", "Expert rescue", "+.3f"),
                number("specificity", "Specificity", "+.3f"),
                number("positive_fraction", "Pos. frac."),
            ),
        ),
        Layout(
            "6",
            "Layer-sweep sharpness on validation cases. Gap is the difference between the top rescue and the "
            "next-highest layer's.",
            (
                _MODEL,
                text("top_layer", "Top layer"),
                number("top_rescue", "Top rescue", "+.3f"),
                text("next_layer", "Next layer"),
                number("next_rescue", "Next rescue", "+.3f"),
                number("gap", "Gap", "+.3f"),
            ),
        ),
        Layout(
            "7",
            "Expert-level rescue relative to the selected layer's rescue: ratios of validation-case means.",
            (_MODEL, text("quantity", "Quantity"), estimate("value", "Value")),
        ),
        Layout("8", "Case ids.", (_MODEL, text("split", "Split"), text("case_ids", "Case IDs"))),
        Layout(
            "9",
            "The selected expert and its gate-weight-matched control on the validation cases where it is "
            "clean-active beside another. Equal-norm: both patch vectors scaled to the smaller norm.",
            (text("quantity", "Quantity"), estimate("raw", "Raw"), estimate("equal_norm", "Equal-norm")),
        ),
        Layout(
            "10",
            "Rank of the selected expert's rescue among all clean-active experts of its layer on validation "
            "cases. Percentile 1 is the best, 0 the worst.",
            (text("metric", "Metric"), metric()),
        ),
        Layout(
            "11",
            "Active-pair equal-norm check for top-2 routing: the selected expert and the one other active "
            "expert.",
            (
                text("metric", "Metric"),
                count("n", "n", "$n$"),
                estimate("mean", "Mean and interval"),
            ),
        ),
        Layout("12", "Relation-held-out expert selection.", (text("metric", "Metric"), metric())),
        Layout(
            "13",
            "The selected layer and expert, fixed, at several noise scales. Drop is the mean clean minus "
            "noised logit difference.",
            (
                number("sigma", "σ", ".1f", r"$\sigma$"),
                count("active", "Active", of=True),
                number("drop", "Drop", "+.3f"),
                estimate("rescue", "Rescue"),
                number("positive_fraction", "Pos."),
            ),
        ),
        Layout(
            "14",
            "Relaxed-filter scale-up, on its validation cases.",
            (
                _MODEL,
                text("layer", "Layer"),
                estimate("layer_rescue", "Layer rescue"),
                text("expert", "Expert"),
                count("discovery_active", "Disc. active", of=True),
                estimate("expert_rescue", "Expert rescue"),
                estimate("spec", "Spec", _SPEC),
            ),
        ),
        Layout(
            "15",
            "Relaxed-filter validation cases, all and those that aren't in the strict set.",
            (
                _MODEL,
                text("subset", "Subset"),
                count("n_layer", "n_L", "$n_L$"),
                estimate("layer_rescue", "Layer"),
                count("n_expert", "n_E", "$n_E$"),
                estimate("expert_rescue", "Expert"),
                estimate("spec", "Spec", _SPEC),
            ),
        ),
        Layout(
            "16",
            "Coalitions of routed experts of the selected layer on validation cases.",
            (
                text("patch", "Patch"),
                estimate("rescue", "Rescue"),
                number("positive_fraction", "Pos. frac."),
            ),
        ),
    )
}
