"""An expert's rescue as a share of its layer's (Table 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.errors import LayerRangeError
from moetrace.results.experts.arrays import Floats
from moetrace.results.experts.controls import Controls
from moetrace.results.experts.errors import CaseMismatchError
from moetrace.results.experts.view import StarView

if TYPE_CHECKING:
    from moetrace.results.layer_trace import LayerTrace


def over_layer(
    view: StarView, layer: Floats, controls: Controls | None, clusters: Any, **options: Any
) -> pd.DataFrame:
    """Layer rescue, and the ratios of means with their intervals; ``options`` are of the bootstrap."""
    from moetrace.stats import bootstrap

    every = np.ones(len(layer), np.bool_)
    found = [("layer_rescue", bootstrap(layer, cluster=clusters, **options))]
    above = [("rescue_over_layer", view.star_rescue, every)]
    if controls is not None:
        defined = ~np.isnan(controls.rescue)
        above.append(("specificity_over_layer", view.star_rescue - controls.rescue, defined))
    for name, values, keep in above:
        own = None if clusters is None else clusters[keep]
        ratio = bootstrap(values[keep], layer[keep], statistic="ratio", cluster=own, **options)
        found.append((name, ratio))
    return pd.DataFrame(
        [(name, result.estimate, result.ci_low, result.ci_high, result.n) for name, result in found],
        columns=["quantity", "value", "ci_low", "ci_high", "n"],
    )


def layer_rescue(view: StarView, layers: LayerTrace) -> Floats:
    """Block rescue of the star's layer, in the order of the view's cases."""
    if view.star.layer not in layers.layers:
        raise LayerRangeError(
            f"layer {view.star.layer} of {view.star} isn't in the layer trace, which has layers "
            f"{list(layers.layers)}; trace it with trace_layers(model, cases, layers={view.star.layer})"
        )
    mine = view.cases.case_id.tolist()
    theirs = {case_id: place for place, case_id in enumerate(layers.cases.case_id.tolist())}
    only_mine = [case_id for case_id in mine if case_id not in theirs]
    only_theirs = sorted(set(theirs) - set(mine))
    if only_mine or only_theirs:
        raise CaseMismatchError(
            f"the expert trace has {len(mine)} cases and the layer trace {len(theirs)}; expected the same "
            f"ones. Only in the expert trace: {len(only_mine)}, ids {only_mine[:20]}; only in the layer "
            f"trace: {len(only_theirs)}, ids {only_theirs[:20]}. Trace both on the same cases"
        )
    column = layers.layers.index(view.star.layer)
    rescue: Floats = layers.effects[[theirs[case_id] for case_id in mine], column]
    return rescue
