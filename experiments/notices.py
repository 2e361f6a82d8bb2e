"""Notices of tasks whose agents could do harm: shown before anybody talks with them.

A study shows them with its consent, and no setting takes them away; it can add to them.
"""

from __future__ import annotations

# Name of the task -> what its agent is, and where help is.
NOTICES = {
    "counseling": (
        "This agent is for research. It is no counsellor, no therapist and no medical device, and "
        "must not be used in place of one. If you are in distress, talk to somebody you trust or "
        "to a professional; in an emergency, call your local emergency number."
    ),
    "persuasion": (
        "This agent tries to talk you into giving money. It is for research on people who know "
        "that and have agreed to it, and for nothing else; nobody collects what you promise."
    ),
}
