"""`LLMHindsight`: an LLM plays controller, forward model and reward model.

    hindsight = LLMHindsight(task, client, LLMHindsightConfig(seed=0))
    calibrate(dialogues, hindsight)
    regenerate(dialogues, hindsight, round_number=1, max_changes=2)
    run_async(client.close())

`controller.py` proposes changes, `forward_model.py` plays a dialogue on from there, the judge of
`engine/rewards.py` rates it. `cost.py` forecasts calls, tokens and dollars beforehand. The prompts
are in `imagination/prompts/hindsight/`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

from ilql_jax.settings import Settings, setting
from imagination.dialogue import Dialogue
from imagination.engine.rewards import JUDGE, judge_requests
from imagination.hindsight.controller import PROMPT as PROPOSE
from imagination.hindsight.controller import propose_request, usable_proposals
from imagination.hindsight.forward_model import (
    PEOPLE,
    PROFILE,
    REPLAY,
    People,
    Replay,
    infer_people,
    play_branch,
)
from imagination.hindsight.regeneration import Branch, Continuation, Proposal
from imagination.llm.play import WAYS
from imagination.llm.requests import Answer, Failure
from imagination.llm.session import (
    LLM,
    DroppedDialogue,
    NoAnswer,
    Session,
    gather_all,
    most_at_once,
    run_async,
    run_concurrently,
)
from imagination.prompts import load_prompt
from imagination.task import Task

__all__ = ["PROFILE", "LLMHindsight", "LLMHindsightConfig"]


@dataclasses.dataclass(frozen=True)
class LLMHindsightConfig(Settings):
    """Settings of hindsight by an LLM.

    Raises:
        SettingError: A value out of bounds.
    """

    seed: int = setting(
        "Seed of proposals, inferred people and replays. Ratings ignore it, to stay comparable.",
        0,
        least=0,
    )
    way: str = setting(
        "The rest of a dialogue is played in turn (rollout) or written in one call (script).",
        "rollout",
        choices=WAYS,
    )
    judge_votes: int = setting("Ratings of which a dialogue's is the mean.", 3, least=1, most=1000)
    conversations: int = setting(
        "Dialogues replayed at the same time (all of them in batches).",
        256,
        least=1,
        shapes_result=False,
    )


class LLMHindsight:
    """A `Hindsight` (see `imagination/hindsight/regeneration.py`).

    Every method asks about all that it is given at once, as Message Batches where the client's
    config says so. What an answer must fulfil (a turn that exists and is the agent's, other words
    than before, nobody speaking for the other side) is checked as it comes, and asked for again
    with the reason; of several proposals those that can be are kept. Where no usable answer came,
    the result is None, `dropped` says why and `failed.jsonl` holds what was asked and answered.

    Args:
        task: Gives the description, the roles, the axes, the scale and the limit on turns.
        client: The LLM client; close it with `run_async(client.close())`.
        config: Its settings.

    Attributes:
        dropped: Dialogues that could not be finished, at which step, and why.
    """

    def __init__(self, task: Task, client: LLM, config: LLMHindsightConfig | None = None):
        self.task = task
        self.client = client
        self.config = config or LLMHindsightConfig()
        self.dropped: list[DroppedDialogue] = []

    @property
    def model_and_version(self) -> dict[str, str]:
        """Model and prompts, for the results."""
        names = (PROPOSE, PEOPLE, *REPLAY[self.config.way], JUDGE)
        versions = ", ".join(load_prompt(name).version for name in names)
        return {"model": self.client.config.model, "prompt": versions}

    def propose(
        self, dialogues: Sequence[Dialogue], max_changes: int
    ) -> list[list[Proposal] | None]:
        """Changes of each dialogue, the turn where most was lost first.

        One call a dialogue; none for one in which the agent never speaks.

        Raises:
            ValueError: `max_changes` below 1.
            LLMError: From the client, where going on makes no sense.
        """
        if max_changes < 1:
            raise ValueError(f"max_changes must be at least 1, got {max_changes!r}.")
        places = [place for place, dialogue in enumerate(dialogues) if dialogue.agent_turns]
        requests = [
            propose_request(self.task, dialogues[place], max_changes, self.config.seed)
            for place in places
        ]
        proposals: list[list[Proposal] | None] = [[] for _ in dialogues]
        answers = run_async(self.client.ask_all(requests))
        for place, answer in zip(places, answers, strict=True):
            if self._failed(answer):
                proposals[place] = None
            else:
                proposals[place] = usable_proposals(self.task, dialogues[place], answer.parsed)
        return proposals

    def play(self, branches: Sequence[Branch]) -> list[Continuation | None]:
        """The rest of each conversation.

        The two people of a dialogue are inferred once, however many branches it has.

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
        limit = most_at_once(self.client, self.config.conversations)
        groups = run_async(run_concurrently(jobs, limit))
        rests: list[Continuation | None] = [None] * len(branches)
        for places, continuations in zip(places_of.values(), groups, strict=True):
            for place, continuation in zip(places, continuations, strict=True):
                rests[place] = continuation
        return rests

    def rate(self, dialogues: Sequence[Dialogue]) -> list[float | None]:
        """Mean of the judge's votes that came; None where none did.

        Raises:
            LLMError: From the client, where going on makes no sense.
        """
        votes = self.config.judge_votes
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
        session = Session(self.client)
        try:
            people = await infer_people(session, self.task, parent, self.config.seed)
        except NoAnswer as error:
            self._drop(parent.id, error)
            return [None] * len(branches)
        return await gather_all([self._play(branch, people) for branch in branches])

    async def _play(self, branch: Branch, people: People) -> Continuation | None:
        # Dialogues that begin with the same words are each played on in their own way.
        stream = f"{self.config.seed}/{branch.parent.id}/{branch.proposal.turn}"
        replay = Replay(self.task, branch, people, resample=zlib.crc32(stream.encode()))
        try:
            turns = await play_branch(Session(self.client), replay, self.config.way)
        except NoAnswer as error:
            self._drop(branch.parent.id, error)
            return None
        return Continuation(turns, people.to_persona())

    def _failed(self, answer: Answer | Failure) -> bool:
        if not isinstance(answer, Failure):
            return False
        self._drop(answer.request.label, NoAnswer(answer.request.step, answer.reason))
        return True

    def _drop(self, dialogue: str, error: NoAnswer) -> None:
        self.dropped.append(DroppedDialogue(dialogue, error.step, error.reason))
