"""Pictures of results, by matplotlib.

One colour has one meaning in all of them: blue is what is asked about and rescue above 0, red its counterpart
and rescue below 0, grey the numerical floor and what isn't marked by a test. The legend stands between title
and picture, where no data can be.
"""

from moetrace.results.pictures.axes import of_its_metric
from moetrace.results.pictures.bars import plot_bars, plot_counts
from moetrace.results.pictures.curves import plot_case_lines, plot_layers, plot_lines, plot_panels
from moetrace.results.pictures.maps import CellMap, plot_map
from moetrace.results.pictures.points import plot_experts, plot_points
from moetrace.results.pictures.strips import Pair, plot_pairs, plot_strips

__all__ = [
    "CellMap",
    "Pair",
    "of_its_metric",
    "plot_bars",
    "plot_case_lines",
    "plot_counts",
    "plot_experts",
    "plot_layers",
    "plot_lines",
    "plot_map",
    "plot_pairs",
    "plot_panels",
    "plot_points",
    "plot_strips",
]
