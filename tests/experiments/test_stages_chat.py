"""The chat in the terminal, beyond the words of an agent."""

from __future__ import annotations

import io

from rich.console import Console

from experiments.stages.chat import _answer
from imagination.dialogue import Turn
from imagination.speakers import FAILURE, NO_ANSWER, Conversation, Utterance


class NoRoom:
    def respond(self, conversations):
        return [Utterance(NO_ANSWER, ends=True, annotations={FAILURE: "its last turn is long"})]


def test_a_message_that_does_not_fit_is_told_and_can_be_said_again():
    output, said = io.StringIO(), [Turn("human", "Hi"), Turn("agent", "Hello")]
    conversation = Conversation("chat", {}, 0, [*said, Turn("human", "why " * 1000)])
    _answer(NoRoom(), conversation, True, Console(file=output))
    assert conversation.turns == said and "its last turn is long" in output.getvalue()
