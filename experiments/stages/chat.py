"""Stage chat: you talk with a trained agent in the terminal, as the human, and rate it."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from experiments.build import Experiment
from experiments.chats import (
    AGENT,
    HUMAN,
    LEAVE,
    LEFT,
    LIMIT,
    NEW,
    as_dialogue,
    ask_rating,
    is_goodbye,
    keep,
    read_line,
    say,
)
from experiments.networks import check_checkpoints, chosen_decoding, is_trained, load_agent
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.tasks import load_task, world_of
from ilql_jax.errors import shown
from imagination.checks import without_controls
from imagination.dialogue import Dialogue, Turn
from imagination.simulation import following
from imagination.simulation.world import World
from imagination.speakers import FAILURE, Agent, Conversation, Utterance
from imagination.task import Task

HELP = (
    "/values shows or hides the values. /rate, /new and /quit end the conversation and ask for its "
    "rating; /new begins another."
)
_EXAMPLES = 3
_TRIES = 4  # to stay with the topic


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Talks until the conversation ends, and keeps it.

    Raises:
        RunError: Nothing was trained here yet.
        DiskError: The conversation cannot be kept.
    """
    unit = Unit(experiment.chat.method, 0)
    was_trained = is_trained(folder, unit)
    check_checkpoints(experiment, folder, [unit], console)
    if not was_trained:
        raise RunError(
            f"{folder.path} holds no trained {unit.method!r} agent. Run the experiment without "
            "--stage=chat first, or choose with --config.chat.method=... and --workdir=..."
        )
    decoding = chosen_decoding(experiment.method(unit.method), folder, unit)
    agent = load_agent(experiment, folder, unit, decoding, batch_size=1)
    if experiment.chat.notice:
        console.print(experiment.chat.notice, style="bold", markup=False, highlight=False)
    source = {"method": unit.method, "agent": unit.name, "decoding": str(agent.policy.decoding)}
    dialogues = list(itertools.islice(folder.iterate_dialogues(), 20))
    chat = Chat(
        agent,
        load_task(experiment, folder),
        world_of(experiment),
        folder,
        console,
        source,
        dialogues,
        system=agent.system,
    )
    chat.introduce()
    chat.talk()


@dataclasses.dataclass
class Chat:
    """A person's talk with an agent.

    Attributes:
        agent: Answers.
        task: Gives roles, scale and the limit on the agent's turns.
        world: The agent learned from its conversations; None = from others.
        folder: Keeps what was said.
        console: Shows and reads.
        source: Says who the agent is, in what is kept.
        dialogues: Some that the agent learned from: who opens, and what people said.
        system: System message that the agent speaks under.
        show_values: Shows the values of each turn.
    """

    agent: Agent
    task: Task
    world: World | None
    folder: RunFolder
    console: Console
    source: Mapping[str, Any]
    dialogues: Sequence[Dialogue]
    system: str | None = None
    show_values: bool = False

    def introduce(self) -> None:
        """Says who the agent is, what it knows, what could be said, and how to end."""
        agent, human = self.task.agent_role, self.task.human_role
        how = f"{self.source['method']}, {self.source['decoding']}"
        about = shown(" ".join(self.task.description.split()).partition(". ")[0].rstrip("."), 300)
        self._print(f"You are the {human}, the agent is the {agent} ({how}). {about}.")
        for slot, values in following.opening_slots(self.world).items() if self.world else ():
            self._print(f"Name a {slot} that it knows: {', '.join(values)}.")
        self._print(
            "Say goodbye to end the conversation and to rate it; it ends by itself when the "
            f"{agent} has spoken {self.task.max_turns} times. {HELP}"
        )

    def talk(self) -> None:
        """Talks until the person, the agent or the limit ends it; keeps it however it ends."""
        while self._converse() == NEW:
            pass

    def _converse(self) -> str | None:
        """Holds one conversation, and keeps it; returns the last line, None where it was left."""
        conversation, ended_by = self._begin(), ""
        try:
            while not ended_by:
                text = read_line(self.console, "you")
                if text is None:
                    return None
                if text in (NEW, *LEAVE):
                    ended_by = LEFT
                elif text == "/rate" and not _has_begun(conversation):
                    self._print("Nothing was answered yet, so there is nothing to rate.", "yellow")
                elif text == "/rate":
                    ended_by = HUMAN
                elif text == "/values":
                    self.show_values = not self.show_values
                    self._print(f"values {'shown' if self.show_values else 'hidden'}", "dim")
                elif text.startswith("/"):
                    self._print(HELP, "dim")
                elif text:
                    ended_by = self._exchange(conversation, text)
            if _has_begun(conversation):
                rating = ask_rating(self.task, self.console)
                if rating == NEW:
                    return NEW
                conversation.reward = rating
        except EOFError:
            return None
        finally:
            self._keep(conversation, ended_by or LEFT)
        return text

    def _begin(self) -> Conversation:
        conversation = Conversation("chat", {}, secrets.randbits(32), system=self.system)
        self._print("A new conversation.", "dim")
        if self.dialogues[0].turns[0].speaker == "agent":
            self._answer(conversation)
        self._print(_for_instance(self._examples(conversation)), "dim")
        return conversation

    def _exchange(self, conversation: Conversation, text: str) -> str:
        """Says something to the agent; returns who ended the conversation, "" if nobody did."""
        conversation.turns.append(Turn("human", text))
        if is_goodbye(text):
            return HUMAN
        is_understood = self._tell_what_is_understood(conversation, text)
        if self._is_over(conversation):
            self._print("With these words the conversation is over.", "dim")
            return HUMAN
        if not self._answer(conversation):
            return ""
        if self._says_goodbye(conversation.turns[-1].text):
            self._print(f"The {self.task.agent_role} has ended the conversation.", "dim")
            return AGENT
        if sum(turn.speaker == "agent" for turn in conversation.turns) >= self.task.max_turns:
            self._print(f"The {self.task.agent_role} has spoken its last turn.", "dim")
            return LIMIT
        if not is_understood:
            self._print(_for_instance(self._examples(conversation)), "yellow")
        return ""

    def _answer(self, conversation: Conversation) -> bool:
        """Lets the agent speak; False where it could not: the last turn is taken back."""
        utterance = self._on_topic(conversation)
        notes = utterance.annotations
        if problem := notes.get(FAILURE):
            again = " Say it in other words." if conversation.turns else ""
            del conversation.turns[-1:]  # the same words would have the same answer
            role = self.task.agent_role
            self._print(f"The {role} has no answer: {problem.rstrip('.')}.{again}", "yellow")
            return False
        conversation.turns.append(Turn("agent", utterance.text, annotations=notes))
        self.console.print(f"[bold green]agent:[/] {_safe(utterance.text)}")
        if self._leaves_topic(conversation, utterance.text):
            self._print(f"The {self.task.agent_role} has left the topic that you named.", "yellow")
        if self.show_values:
            self._print_values(notes)
        return True

    def _on_topic(self, conversation: Conversation) -> Utterance:
        """The answer; said anew where it names another topic than the person did."""
        [utterance] = self.agent.respond([conversation])
        for number in range(1, _TRIES):
            if not self._leaves_topic(conversation, utterance.text):
                break
            again = dataclasses.replace(conversation, seed=conversation.seed + number)
            [utterance] = self.agent.respond([again])
        return utterance

    def _leaves_topic(self, conversation: Conversation, text: str) -> bool:
        """True where an answer names another topic than the person of a world did."""
        if self.world is None:
            return False
        slots = following.follow(self.world, conversation.turns).slots
        return following.leaves_topic(self.world, text, slots)

    def _tell_what_is_understood(self, conversation: Conversation, text: str) -> bool:
        """Tells what a world makes of the person's last words; False where it is nothing."""
        if self.world is None:
            return True
        heard = following.heard(self.world, text, conversation.turns[:-1])
        if not heard:
            role = self.task.human_role
            self._print(f"Not understood: no {role} says such a thing here.", "yellow")
        elif missing := self._topics_missed(conversation, text):
            self._print(f"No {' or '.join(missing)} that it knows was named.", "yellow")
        else:
            self._print(f"  understood as {', '.join(heard)}", "dim")
        return bool(heard)

    def _topics_missed(self, conversation: Conversation, text: str) -> list[str]:
        """Slots that these words should have named, and no words before them did."""
        opening = following.opening_replies(self.world)
        if following.reply_among(self.world, text, self.world.replies) not in opening:
            return []
        named = following.follow(self.world, conversation.turns).slots
        return [slot for slot in following.opening_slots(self.world) if slot not in named]

    def _examples(self, conversation: Conversation) -> list[str]:
        """Sentences that a person could say next: of the world, or first ones of the dialogues."""
        if self.world is not None:
            memory = following.follow(self.world, conversation.turns)
            seed = conversation.seed
            return following.example_sentences(self.world, memory, _EXAMPLES, seed)
        said = (next((t.text for t in d.turns if t.speaker == "human"), "") for d in self.dialogues)
        return [shown(" ".join(text.split())) for text in dict.fromkeys(said) if text][:_EXAMPLES]

    def _says_goodbye(self, text: str) -> bool:
        """True where the agent of a world ends the conversation with these words."""
        world = self.world
        return world is not None and following.act_of(world, text) in following.final_acts(world)

    def _is_over(self, conversation: Conversation) -> bool:
        """True where a human of the world would have gone with these words."""
        return self.world is not None and self.world.is_over(
            following.follow(self.world, conversation.turns).state
        )

    def _keep(self, conversation: Conversation | None, ended_by: str) -> None:
        if conversation is not None and _has_begun(conversation):
            keep(self.folder.chats, as_dialogue(conversation, self.task, self.source, ended_by))
            self._print(f"Kept in {self.folder.chats}.", "dim")

    def _print_values(self, notes: Mapping[str, Any]) -> None:
        if "q" not in notes:
            self._print("  no values: it learned none, or chooses its words without them", "dim")
            return
        self._print(f"  Q {notes['q']:.3f}  V {notes['v']:.3f}", "dim")
        for candidate in notes.get("candidates", ()):
            self._print(f"  {candidate['q']:7.3f}  {candidate['text']}", "dim")

    def _print(self, text: str, style: str | None = None) -> None:
        say(self.console, text, style)


def _safe(text: str) -> str:
    return escape(without_controls(text))


def _for_instance(sentences: Sequence[str]) -> str:
    return f"Say, for instance: {' / '.join(sentences)}"


def _has_begun(conversation: Conversation) -> bool:
    return {turn.speaker for turn in conversation.turns} == {"human", "agent"}
