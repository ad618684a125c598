"""The Gram matrix M = J J^T of a torch model, layer by layer, without forming J."""

from alignver.models.gram.engine import gram, plan
from alignver.models.gram.planning import GramPlan, SlotPlan

__all__ = ["GramPlan", "SlotPlan", "gram", "plan"]
