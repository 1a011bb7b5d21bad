"""What happens in a training step: two gradients that meet, the guards, a step that is matched as a whole."""

from itra_hf.step.forms import MatchingLoss
from itra_hf.step.guards import ramp
from itra_hf.step.run import Run
from itra_hf.step.setup import check_setup, matching_share
from itra_hf.step.tally import LOGGED

__all__ = ["LOGGED", "MatchingLoss", "Run", "check_setup", "matching_share", "ramp"]
