"""Criteria that every imagined dialogue is held to, beside those of its task."""

from __future__ import annotations

GRADUAL = "persona revealed gradually"
CLOSING = "closing feeling fits the reward"

# The two criteria of the paper (arXiv 2311.05584), in words for the critic and who rewrites.
BUILT_IN = {
    GRADUAL: (
        "The human's hidden traits come out gradually, over several turns, in what the human "
        "says and how they react. They are never recited, and not all told in one turn."
    ),
    CLOSING: (
        "The human's feeling at the end of the dialogue fits the outcome: pleased, disappointed "
        "or annoyed as its rating says, because of what was said before."
    ),
}
