"""Hindsight regeneration: finished dialogues read back, put better where they went wrong, replayed.

`regeneration.py` has the method, whoever plays its three parts; an engine plays them.
"""

from imagination.hindsight.regeneration import (
    Branch,
    Calibration,
    Continuation,
    HindsightEngine,
    HindsightError,
    Proposal,
    Regeneration,
    Rejection,
    calibrate,
    regenerate,
)

__all__ = [
    "Branch",
    "Calibration",
    "Continuation",
    "HindsightEngine",
    "HindsightError",
    "Proposal",
    "Regeneration",
    "Rejection",
    "calibrate",
    "regenerate",
]
