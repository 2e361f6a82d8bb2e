"""Flaws of imagined dialogues, and their counts in the dataset card."""

import pytest
from imagination_client import TASK, FakeClient, imagine

from imagination.dataset_card import dataset_card
from imagination.dialogue import Dialogue, Turn
from imagination.flaws import NAMES_PERSONA, NO_END, REPEATS, SPEAKS_FOR_OTHER, flaws

PERSONA = {"use": "mountain trails", "purse": "tight budget", "manner": "evasive"}
HELLO = ("I want to buy a bicycle.", "What do you want it for?")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((*HELLO, "Mountain trails, mostly."), ()),
        ((*HELLO, "Hm.", "What do you want it for?", "Bye."), (REPEATS,)),
        ((*HELLO, "i want to buy a bicycle!"), (REPEATS,)),
        (("Yes, please.", "This one?", "Yes, please."), ()),
        ((*HELLO, "Trails.\\nSeller: Then take this one!"), (SPEAKS_FOR_OTHER,)),
        ((HELLO[0], "User: for the mountains.", "Right."), (SPEAKS_FOR_OTHER,)),
        (("I ride mountain trails on a tight budget.", "Take this.", "Fine."), (NAMES_PERSONA,)),
        (HELLO, (NO_END,)),
    ],
)
def test_flaws_are_found_by_the_words(texts, found):
    turns = [
        Turn(speaker, text.replace("\\n", "\n"))
        for speaker, text in zip(("human", "agent") * 3, texts, strict=False)
    ]
    assert flaws(Dialogue("d", "t", tuple(turns), persona=PERSONA), TASK) == found


def test_the_card_counts_flaws_of_what_an_llm_wrote():
    imagined = imagine(FakeClient(), dialogues=4).dialogues  # all of them say the same again
    card = dataset_card(imagined, TASK)
    assert "## Flaws" in card and f"| {REPEATS} | 4 | 100.0% |" in card
    of_world = [Dialogue("d", "t", imagined[0].turns, 1.0, source={"kind": "simulated"})]
    assert "## Flaws" not in dataset_card(of_world, TASK)
