"""`PromptedHindsight`: controller, forward model and reward model, all played by an LLM."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

from imagination.asking import Answering, Correspondence, Dropped, Post
from imagination.asking import load_prompt as load_engine_prompt
from imagination.dialogue import Dialogue
from imagination.engine.config import WAYS
from imagination.engine.rewards import judge_requests
from imagination.engine.run import DroppedDialogue
from imagination.hindsight.controller import propose_request
from imagination.hindsight.forward_model import Cast, Scene, play_rollout, read, write_rest
from imagination.hindsight.prompted.prompts import load_prompt
from imagination.hindsight.regeneration import Branch, Continuation, Proposal
from imagination.llm import Answer, Failure
from imagination.prompted.asking import all_of, run_async
from imagination.task import Task


class PromptedHindsight:
    """A `HindsightEngine` (see `imagination/hindsight/regeneration.py`).

    Every method asks about all that it is given at once, as Message Batches where the client's
    config says so. What an answer must fulfil (a turn that exists and is the agent's, other words
    than before, nobody speaking for the other side) is checked as it comes, and asked for again
    with the reason; where no usable answer came, the result is None, `dropped` says why and
    `failed.jsonl` holds what was asked and answered.

    Args:
        task: Gives the description, the roles, the axes, the scale and the limit on turns.
        client: The LLM client; close it with `imagination.prompted.run_async(client.close())`.
        seed: Another seed, other proposals, readings and replays. Ratings do not hang on it: they
            are a measure.
        way: How a branch is played: `rollout`, human and agent in turn, or `script`, in one call.
        judge_votes: Ratings of which a dialogue's is the mean.
        conversations: Dialogues that are replayed at the same time (all of them in batches).

    Attributes:
        dropped: What came to nothing: the dialogue, at which step, and why.

    Raises:
        ValueError: A value that cannot be; the message names it and what it may be.
    """

    def __init__(
        self,
        task: Task,
        client: Post,
        seed: int = 0,
        *,
        way: str = "rollout",
        judge_votes: int = 3,
        conversations: int = 256,
    ):
        _require_whole("seed", seed, 0)
        _require_whole("judge_votes", judge_votes, 1)
        _require_whole("conversations", conversations, 1)
        if way not in WAYS:
            raise ValueError(f"PromptedHindsight, way: expected {' or '.join(WAYS)}, got {way!r}.")
        self.task = task
        self.client = client
        self.seed = seed
        self.way = way
        self.judge_votes = judge_votes
        self.conversations = conversations
        self.dropped: list[DroppedDialogue] = []

    @property
    def model_and_version(self) -> dict[str, str]:
        """Model and prompts, for the results."""
        replay = ("human", "agent") if self.way == "rollout" else ("rest",)
        prompts = [load_prompt(name) for name in ("propose", "read", *replay)]
        versions = ", ".join(p.version for p in (*prompts, load_engine_prompt("rate_judge")))
        return {"model": self.client.config.model, "prompt": versions}

    def propose(
        self, dialogues: Sequence[Dialogue], max_changes: int
    ) -> list[list[Proposal] | None]:
        """Where each dialogue went wrong and what should have been said, worst first.

        One call a dialogue; none for one in which the agent never speaks.

        Raises:
            ValueError: `max_changes` below 1.
            LLMError: From the client, where going on makes no sense.
        """
        _require_whole("max_changes", max_changes, 1)
        asked = [place for place, dialogue in enumerate(dialogues) if dialogue.agent_turns]
        requests = [
            propose_request(self.task, dialogues[place], max_changes, self.seed) for place in asked
        ]
        found: list[list[Proposal] | None] = [[] for _ in dialogues]
        answers = run_async(self.client.ask_all(requests))
        for place, answer in zip(asked, answers, strict=True):
            found[place] = None if self._failed(answer) else answer.parsed.proposals()
        return found

    def play(self, branches: Sequence[Branch]) -> list[Continuation | None]:
        """The rest of each conversation.

        The two people of a dialogue are read once, whichever number of branches it has.

        Raises:
            LLMError: From the client, where going on makes no sense.
        """
        places_of: dict[str, list[int]] = {}
        for place, branch in enumerate(branches):
            places_of.setdefault(branch.parent.id, []).append(place)
        jobs = [
            functools.partial(self._play_all, [branches[place] for place in places])
            for places in places_of.values()
        ]
        answering = Answering.by(self.client, self.conversations)
        played: list[Continuation | None] = [None] * len(branches)
        groups = run_async(answering.work(jobs))
        for places, continuations in zip(places_of.values(), groups, strict=True):
            for place, continuation in zip(places, continuations, strict=True):
                played[place] = continuation
        return played

    def rate(self, dialogues: Sequence[Dialogue]) -> list[float | None]:
        """Mean of the judge's votes that came; None where none did.

        Raises:
            LLMError: From the client, where going on makes no sense.
        """
        votes = self.judge_votes
        requests = [
            request
            for dialogue in dialogues
            for request in judge_requests(self.task, dialogue.turns, votes, dialogue.id)
        ]
        answers = run_async(self.client.ask_all(requests))
        groups = [answers[start : start + votes] for start in range(0, len(answers), votes)]
        return [self._mean(group) for group in groups]

    def _mean(self, votes: Sequence[Answer | Failure]) -> float | None:
        ratings = [vote.parsed.rating for vote in votes if isinstance(vote, Answer)]
        if not ratings:
            self._failed(votes[-1])
            return None
        return sum(ratings) / len(ratings)

    async def _play_all(self, branches: Sequence[Branch]) -> list[Continuation | None]:
        """Plays all branches of one dialogue."""
        parent = branches[0].parent
        try:
            cast = await read(Correspondence(self.client), self.task, parent, self.seed)
        except Dropped as error:
            self._drop(parent.id, error.step, error.reason)
            return [None] * len(branches)
        return await all_of([self._play(branch, cast) for branch in branches])

    async def _play(self, branch: Branch, cast: Cast) -> Continuation | None:
        # Dialogues that begin with the same words are each played on in their own way.
        named = f"{self.seed}/{branch.parent.id}/{branch.proposal.turn}"
        scene = Scene(self.task, branch, cast, resample=zlib.crc32(named.encode()))
        play = play_rollout if self.way == "rollout" else write_rest
        try:
            turns = await play(Correspondence(self.client), scene)
        except Dropped as error:
            self._drop(branch.parent.id, error.step, error.reason)
            return None
        return Continuation(turns, cast.to_persona())

    def _failed(self, answer: Answer | Failure) -> bool:
        if isinstance(answer, Failure):
            self._drop(answer.request.label, answer.request.step, answer.reason)
        return isinstance(answer, Failure)

    def _drop(self, dialogue: str, step: str, reason: str) -> None:
        self.dropped.append(DroppedDialogue(dialogue, step, reason))


def _require_whole(name: str, value: int, least: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ValueError(
            f"PromptedHindsight, {name}: expected a whole number >= {least}, got {value!r}."
        )
