"""Stage chat: you talk with a trained agent in the terminal, as the human."""

from __future__ import annotations

import secrets

from rich.console import Console
from rich.markup import escape

from experiments import interrupts
from experiments.build import Experiment
from experiments.networks import check_checkpoints, chosen_decoding, is_trained, load_agent
from experiments.run_folder import RunError, RunFolder, Unit
from imagination.agents.policy import PolicyAgent
from imagination.dialogue import Turn, iterate_dialogues
from imagination.speakers import FAILURE, Conversation

HELP = "/values shows or hides the values, /new starts again, /quit ends."


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Talks until the person ends it.

    Raises:
        RunError: Nothing was trained here yet.
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
    agent_opens = next(iterate_dialogues(folder.dialogues)).turns[0].speaker == "agent"
    console.print(f"You are talking with {unit.method} ({agent.policy.decoding}). {HELP}")
    show_values = False
    conversation = _begin(agent, agent_opens, show_values, console)
    while True:
        try:
            text = console.input("[bold cyan]you:[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            if interrupts.Stop.status != interrupts.CTRL_C:
                raise
            console.print()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/new":
            conversation = _begin(agent, agent_opens, show_values, console)
        elif text == "/values":
            show_values = not show_values
            console.print(f"[dim]values {'shown' if show_values else 'hidden'}[/]")
        elif text.startswith("/"):
            console.print(f"[dim]{HELP}[/]")
        elif text:
            conversation.turns.append(Turn("human", text))
            _answer(agent, conversation, show_values, console)


def _begin(agent: PolicyAgent, agent_opens: bool, values: bool, console: Console) -> Conversation:
    conversation = Conversation(id="chat", persona={}, seed=secrets.randbits(32))
    console.print("[dim]A new conversation.[/]")
    if agent_opens:
        _answer(agent, conversation, values, console)
    return conversation


def _answer(agent: PolicyAgent, conversation: Conversation, values: bool, console: Console) -> None:
    [utterance] = agent.respond([conversation])
    if problem := utterance.annotations.get(FAILURE):
        del conversation.turns[-1:]  # said again, in fewer words
        console.print(problem, style="yellow", markup=False, highlight=False)
        return
    conversation.turns.append(Turn("agent", utterance.text, annotations=utterance.annotations))
    console.print(f"[bold green]agent:[/] {escape(utterance.text)}")
    notes = utterance.annotations
    if not values:
        return
    if "q" not in notes:
        console.print("[dim]  no values: it learned none, or chooses its words without them[/]")
        return
    console.print(f"[dim]  Q {notes['q']:.3f}  V {notes['v']:.3f}[/]")
    for candidate in notes.get("candidates", ()):
        console.print(f"[dim]  {candidate['q']:7.3f}  {escape(candidate['text'])}[/]")
