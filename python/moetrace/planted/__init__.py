"""Small models whose answer is known in closed form, to check a tracing pipeline against.

>>> from moetrace.planted import plant
>>> planted = plant("single")
>>> found = mt.trace_experts(planted.model, planted.cases, layer=planted.layer)
>>> abs(found.effects - planted.truth.experts[:, planted.layer]).max() < 1e-4
True
"""

from moetrace.planted.design import FAMILIES, KINDS
from moetrace.planted.moved_necessity import PositionNecessity
from moetrace.planted.necessity import Necessity
from moetrace.planted.plant import Planted, plant
from moetrace.planted.positions import PlantedPositions, PositionTruth, plant_positions
from moetrace.planted.routes import PlantedRoutes, RouteTruth, plant_routes
from moetrace.planted.truth import Truth

__all__ = [
    "FAMILIES",
    "KINDS",
    "Necessity",
    "Planted",
    "PlantedPositions",
    "PlantedRoutes",
    "PositionNecessity",
    "PositionTruth",
    "RouteTruth",
    "Truth",
    "plant",
    "plant_positions",
    "plant_routes",
]
