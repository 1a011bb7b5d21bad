"""What a run did to its features, its gradients and its steps: functions, a metric and a callback."""

from itra_hf.diagnostics.callback import ITRADiagnosticsCallback
from itra_hf.diagnostics.gradients import gradient_scatter, over_adaptation
from itra_hf.diagnostics.metric import Compactness
from itra_hf.diagnostics.modes import mode_separation
from itra_hf.diagnostics.scatter import class_scatter, compactness

__all__ = [
    "Compactness",
    "ITRADiagnosticsCallback",
    "class_scatter",
    "compactness",
    "gradient_scatter",
    "mode_separation",
    "over_adaptation",
]
