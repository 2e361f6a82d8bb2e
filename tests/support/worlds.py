"""Conversations with the embedded worlds: scripted agents, and means held to exact values."""

from __future__ import annotations

import numpy as np

from imagination.simulation import SimulatedHuman, sample_conversations
from imagination.simulation.world import World
from imagination.speakers import Conversation, Utterance, converse


class Parrot:
    """Says the lines that it was given, and ends the conversation after the last."""

    def __init__(self, *lines: str, ends: bool = False):
        self.lines, self.ends = lines, ends

    def respond(self, conversations: list[Conversation]) -> list[Utterance]:
        answers = []
        for conversation in conversations:
            said = sum(turn.speaker == "agent" for turn in conversation.turns)
            is_last = said + 1 >= len(self.lines)
            line = self.lines[min(said, len(self.lines) - 1)]
            answers.append(Utterance(line, ends=self.ends and is_last))
        return answers


def play(world: World, agent, count: int, population: str = "average", seed: int = 0) -> list:
    conversations = sample_conversations(world, population, count, seed, "test")
    return converse(agent, SimulatedHuman(world), conversations, world.task)


def assert_mean(dialogues: list, expected: float) -> None:
    rewards = np.array([dialogue.reward for dialogue in dialogues])
    error = max(rewards.std(), 0.02) / len(rewards) ** 0.5
    assert abs(rewards.mean() - expected) < 4 * error
