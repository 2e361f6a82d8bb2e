"""Hindsight regeneration: bad turns of finished dialogues are reworded and replayed from there.

`regeneration.py` has the method. Its three parts are played by an embedded world (`world.py`) or by
an LLM (`llm.py`, with `controller.py` and `forward_model.py`).
"""

from imagination.hindsight.regeneration import (
    Branch,
    Calibration,
    Continuation,
    Hindsight,
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
    "Hindsight",
    "HindsightError",
    "Proposal",
    "Regeneration",
    "Rejection",
    "calibrate",
    "regenerate",
]
