"""The report of a run: `report.html`, one file that needs no network, and `figures/*.png`.

`write_report` reads what the earlier stages left in the run's folder. What is missing is left
out; only the results themselves (`evaluation.json`, or `heldout.json` for a run on real
dialogues) must be there. The wording of results is in `wording.py`, the drawing in `figures.py`,
the page in `templates/report.html.j2`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.hindsight_records import Hindsight, read_hindsight
from experiments.report import figures, hindsight, tables, wording
from experiments.run_folder import RunError
from imagination.dialogue import Dialogue, read_dialogues

MOST_BEHAVIOURS = 8
NO_BREAK = "\N{NO-BREAK SPACE}"
VERDICT_WORDS = {
    "above": "ahead",
    "below": "behind",
    "open": "not distinguishable",
    "untested": "not tested",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds; empty where the file is not there."""

    evaluation: Mapping[str, Any]
    heldout: Mapping[str, Any]
    conversations: Sequence[Dialogue]
    dialogues: Sequence[Dialogue]
    metrics: figures.Metrics
    config: str
    hindsight: Hindsight | None = None

    @property
    def success_reward(self) -> float | None:
        """The bar of a success: from the evaluation, else from the config, else unknown."""
        bar = self.evaluation.get("success_reward")
        if bar is None:
            bar = _find_key(_parse_yaml(self.config), "success_reward")
        return bar if wording.is_number(bar) else None

    @property
    def task(self) -> str:
        return str(self.evaluation.get("task") or self.heldout.get("task") or "run")


def write_report(run_folder: Path) -> Path:
    """Writes `figures/*.png` and `report.html`, each whole or not at all.

    Raises:
        FileNotFoundError: The run has no results yet; the message says which stage to run.
        RunError: A file of the run that cannot be read, with its name and place.
    """
    run_folder = Path(run_folder)
    run = read_run(run_folder)
    drawn = list(draw(run))
    (run_folder / "figures").mkdir(exist_ok=True)
    for item in drawn:
        _write(run_folder / "figures" / f"{item.name}.png", figures.to_png(item.figure))
    page = render(run, drawn, run_folder.resolve().name)
    path = run_folder / "report.html"
    _write(path, page.encode("utf-8", errors="replace"))
    return path


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


# --- reading ------------------------------------------------------------------------------------


def read_run(run_folder: Path) -> Run:
    """Reads the files of a run's folder."""
    evaluation = _read_json(run_folder / "evaluation.json")
    heldout = _read_json(run_folder / "heldout.json")
    if not evaluation and not heldout:
        raise FileNotFoundError(
            f"{run_folder}: no evaluation.json and no heldout.json, so there is nothing to report. "
            f"Run the evaluation first: --stage=evaluate --workdir={run_folder}"
        )
    config = run_folder / "config.yaml"
    dialogues = _read_optional(run_folder / "dialogues.jsonl")
    return Run(
        evaluation=evaluation,
        heldout=heldout,
        conversations=_read_optional(run_folder / "conversations.jsonl"),
        dialogues=dialogues,
        metrics=read_metrics(run_folder / "metrics"),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        hindsight=read_hindsight(run_folder, dialogues),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Delete the file and run "
            "--stage=evaluate again."
        ) from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a JSON object, got {str(content)[:60]!r}.")
    return content


def _read_optional(path: Path) -> list[Dialogue]:
    return read_dialogues(path) if path.exists() else []


def read_metrics(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(method, seed) -> logged steps, from `<method>-seed<k>.jsonl`.

    A line that is not a JSON object is passed over: a killed run leaves half a line.
    """
    metrics = {}
    for path in sorted(folder.glob("*-seed*.jsonl")):
        name = re.fullmatch(r"(.+)-seed(\d+)", path.stem)
        if name is None:
            continue
        rows = [_parse_line(line) for line in path.read_text(encoding="utf-8").splitlines()]
        metrics[name[1], int(name[2])] = [row for row in rows if row is not None]
    return metrics


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # a config with Python objects in it is shown as it is
        return None


def _find_key(tree: Any, key: str) -> Any:
    if not isinstance(tree, Mapping):
        return None
    if key in tree:
        return tree[key]
    return next((x for x in (_find_key(v, key) for v in tree.values()) if x is not None), None)


# --- figures ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure with its file name, title and how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure


# name -> title and how to read it
CAPTIONS = {
    "scores": (
        "Scores",
        "Marks are means, lines their 95 % intervals; further right is better. Small ticks below "
        "a mark are single training seeds. Dashed lines: the behaviours in the data and an agent "
        "that acts at random; the solid line is the exact optimum, which no agent can pass on "
        "average.",
    ),
    "reward_distributions": (
        "Rewards of single conversations",
        "Share of the conversations on {place} that ended with each reward; the vertical line is "
        "the mean. The grey row, if there is one, is what the methods learned from: an agent that "
        "only imitates looks like it, one that improves on its data stands to the right of it.",
    ),
    "persona_scores": (
        "Score by persona",
        "Mean reward (line: 95 % interval) by what is hidden about the human, on {place}. In "
        "brackets: conversations a method. An agent that finds out who it talks with scores alike "
        "on every line; one that treats all alike is good with some and bad with others.",
    ),
    "values_along": (
        "Values along a conversation",
        "What the agent expected at each of its turns, on {place}: V before it spoke, Q of what "
        "it said. Conversations are split {split}; bands are 95 % intervals of the mean. The "
        "earlier the two lines part, the earlier the agent can tell how it will end. Only long "
        "conversations reach the right side, so a line may bend there for that reason alone.",
    ),
    "q_calibration": (
        "Calibration of Q",
        "Conversations on {place}, in groups of equal size by predicted Q, against the reward "
        "they ended with (line: 95 % interval). On the dashed diagonal a prediction means what it "
        "says; below it, the agent was too hopeful, as one that picks the candidate of the "
        "highest Q is expected to be a little.",
    ),
    "heldout_auroc": (
        "How early the values foretell the outcome",
        "AUROC on held-out dialogues after a share of the dialogue was seen, with 95 % bands. "
        "0.5 (dashed) is guessing; a band that touches it is no evidence that the values help. "
        "{success}",
    ),
    "heldout_calibration": (
        "Calibration on held-out dialogues",
        "Dialogues grouped by predicted outcome, against the observed one; larger marks hold more "
        "dialogues, lines are 95 % intervals. On the diagonal a prediction means what it says.",
    ),
    "hindsight": (
        "Hindsight",
        "Left: what the reward model says of original dialogues from their words, against the "
        "reward that is known; larger marks are more dialogues, on the dashed diagonal the two "
        "agree. Right: the share of dialogues that have at most a reward; the lower a line lies, "
        "the better its dialogues ended.",
    ),
    "learning_curves": (
        "Learning curves",
        "Thick lines are means over seeds, thin ones single seeds; the scale leaves out the "
        "wildest 2 % of steps. Methods minimise different sums, so compare a line in “loss” with "
        "itself, not with another method's.",
    ),
}


def draw(run: Run) -> Iterator[Drawn]:
    """The figures for which the run has data."""
    population = _main_population(run)
    place = f"the {population} population" if population else "all populations"
    split = "at the task's bar for success"
    if run.success_reward is None:
        split = "at the median reward, since the run does not tell the task's bar for success"
    success = tables.success_note(run.heldout)
    conversations = run.conversations
    drawn = {
        "scores": figures.scores(run.evaluation),
        "reward_distributions": figures.reward_distributions(
            conversations, run.dialogues, population
        ),
        "persona_scores": figures.persona_scores(conversations, population),
        "values_along": figures.values_along(conversations, run.success_reward, population),
        "q_calibration": figures.q_calibration(conversations, population),
        "heldout_auroc": figures.heldout_auroc(run.heldout),
        "heldout_calibration": figures.heldout_calibration(run.heldout),
        "hindsight": hindsight.draw(run.hindsight),
        "learning_curves": figures.learning_curves(run.metrics),
    }
    for name, figure in drawn.items():
        if figure is not None:
            title, caption = CAPTIONS[name]
            if name == "scores" and not _has_references(run.evaluation):
                caption = caption.partition(" Dashed lines")[0]
            caption = caption.format(place=place, split=split, success=success)
            yield Drawn(name, title, caption.strip(), figure)


def _has_references(evaluation: Mapping[str, Any]) -> bool:
    return any(p.get("references") for p in wording.populations(evaluation).values())


def _main_population(run: Run) -> str | None:
    names = {d.source.get("population") for d in run.conversations}
    known = [*wording.populations(run.evaluation), "average"]
    return next((name for name in known if name in names), None)


# --- conversations ------------------------------------------------------------------------------

Episode = tuple[str, int]
Gap = Callable[[Mapping[str, Dialogue]], float | None]


@dataclasses.dataclass(frozen=True)
class Example:
    """The same simulated human with every method."""

    why: str
    population: str
    episode: int
    persona: Mapping[str, str]
    columns: Sequence[Mapping[str, Any]]


def pick_examples(
    conversations: Sequence[Dialogue], success_reward: float | None
) -> tuple[str, list[Example]]:
    """Episodes to show side by side, by a rule that flatters nobody; the rule comes in words."""
    episodes = _by_episode(conversations)
    methods = wording.ordered_methods({m for group in episodes.values() for m in group})
    if not episodes:
        return "", []
    focus = wording.main_method(methods) or methods[0]
    rivals = ("fbc", "bc", *methods) if focus == "ilql" else ("ilql", "fbc", "bc", *methods)
    rival = next((m for m in rivals if m in methods and m != focus), None)
    gap, what = _gap(focus, rival)
    rule = (
        "Each row is one simulated human, the same for every method. Picked by rule, not by eye: "
        "the first episode of each population, and of all episodes the one with the largest, the "
        f"smallest (most negative) and the median {what}. Where several seeds were trained, the "
        "lowest is shown."
    )
    return rule, [
        _example(episode, why, episodes[episode], methods, success_reward)
        for episode, why in _choose(episodes, gap, what).items()
    ]


def _choose(
    episodes: Mapping[Episode, Mapping[str, Dialogue]], gap: Gap, what: str
) -> dict[Episode, str]:
    """The episodes to show and, for each, the reasons why."""
    reasons: list[tuple[Episode, str]] = []
    for population in sorted({name for name, _ in episodes}, key=_population_order):
        first = min(episode for episode in episodes if episode[0] == population)
        reasons.append((first, f"first of the {population} population"))
    gaps = {episode: gap(group) for episode, group in episodes.items()}
    ranked = sorted((g, episode) for episode, g in gaps.items() if g is not None)
    if ranked:
        reasons.append((ranked[-1][1], f"largest {what}"))
        reasons.append((ranked[0][1], f"smallest {what}"))
        reasons.append((ranked[len(ranked) // 2][1], f"median {what}"))
    chosen: dict[Episode, str] = {}
    for episode, why in reasons:
        chosen[episode] = f"{chosen[episode]}; {why}" if episode in chosen else why
    return chosen


def _population_order(name: str) -> tuple[bool, bool, str]:
    return (name != "average", name != "difficult", name)


def _by_episode(conversations: Sequence[Dialogue]) -> dict[Episode, dict[str, Dialogue]]:
    """(population, episode) -> method -> its conversation, of the lowest seed."""
    episodes: dict[Episode, dict[str, Dialogue]] = {}
    for dialogue in sorted(conversations, key=lambda d: d.source.get("seed") or 0):
        source = dialogue.source
        if "method" in source and isinstance(source.get("episode"), int):
            key = (str(source.get("population") or "average"), source["episode"])
            episodes.setdefault(key, {}).setdefault(str(source["method"]), dialogue)
    return episodes


def _gap(focus: str, rival: str | None) -> tuple[Gap, str]:
    """What episodes are ranked by, as a function and in words."""

    def gap(group: Mapping[str, Dialogue]) -> float | None:
        compared = [group.get(method) for method in (focus, rival) if method is not None]
        if any(dialogue is None or dialogue.reward is None for dialogue in compared):
            return None
        rewards = [dialogue.total_reward for dialogue in compared]
        return rewards[0] - sum(rewards[1:])

    name = wording.method_name(focus)
    if rival is None:
        return gap, f"rating of {name}"
    return gap, f"difference in rating, {name} minus {wording.method_name(rival)}"


def _example(
    episode: Episode,
    why: str,
    group: Mapping[str, Dialogue],
    methods: Sequence[str],
    success_reward: float | None,
) -> Example:
    shown = [method for method in methods if method in group]
    columns = [
        {
            "method": method,
            "name": wording.method_name(method),
            "rating": rating(group[method], success_reward),
            "turns": bubbles(group[method]),
        }
        for method in shown
    ]
    return Example(why, *episode, group[shown[0]].persona, columns)


def rating(dialogue: Dialogue, success_reward: float | None) -> dict[str, Any]:
    """The reward of a conversation as text, and whether it was a success where that is known."""
    success = None
    if dialogue.reward is not None and success_reward is not None:
        success = dialogue.total_reward >= success_reward
    text = "not rated" if dialogue.reward is None else wording.number(dialogue.total_reward)
    return {"text": text, "success": success}


def bubbles(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The turns for the page: text, values, candidates, whether the human could follow."""
    shown = []
    for index, turn in enumerate(dialogue.turns):
        notes = turn.annotations
        following = dialogue.turns[index + 1] if index + 1 < len(dialogue.turns) else None
        answer = following.annotations if following and following.speaker == "human" else {}
        shown.append(
            {
                "speaker": turn.speaker,
                "text": turn.text,
                "q": wording.number(notes["q"]) if wording.is_number(notes.get("q")) else None,
                "v": wording.number(notes["v"]) if wording.is_number(notes.get("v")) else None,
                "candidates": _candidates(notes.get("candidates")),
                "understood_as": answer.get("understood_as"),
                "not_understood": turn.speaker == "agent"
                and "understood_as" in answer
                and answer["understood_as"] is None,
            }
        )
    return shown


def _candidates(candidates: Any) -> list[dict[str, str]]:
    if not isinstance(candidates, list):
        return []
    return [
        {"text": str(c.get("text", "")), "q": wording.number(c.get("q"))}
        for c in candidates
        if isinstance(c, Mapping)
    ]


def behaviours(dialogues: Sequence[Dialogue]) -> list[dict[str, Any]]:
    """The training data by behaviour: how much, how good, and its first dialogue."""
    groups: dict[str, list[Dialogue]] = {}
    for dialogue in dialogues:
        source = dialogue.source
        name = source.get("behaviour") or source.get("kind") or "unknown"
        groups.setdefault(str(name), []).append(dialogue)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [_behaviour(name, group, len(dialogues)) for name, group in largest[:MOST_BEHAVIOURS]]


def _behaviour(name: str, group: Sequence[Dialogue], total: int) -> dict[str, Any]:
    rewards = [d.total_reward for d in group if d.reward is not None]
    return {
        "name": name.replace("_", " "),
        "count": len(group),
        "share": tables.percent(len(group) / total),
        "mean": wording.number(sum(rewards) / len(rewards) if rewards else None),
        "turns": wording.number(sum(len(d.agent_turns) for d in group) / len(group), 1),
        "persona": group[0].persona,
        "rating": rating(group[0], None),
        "dialogue": bubbles(group[0]),
    }


# --- page ---------------------------------------------------------------------------------------


def render(run: Run, drawn: Sequence[Drawn], run_name: str) -> str:
    """The page as text. Every text of the run is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"typeset": _typeset, "words": _words, "capital": _capital}
    found = wording.populations(run.evaluation)
    rule, examples = pick_examples(run.conversations, run.success_reward)
    return environment.get_template("report.html.j2").render(
        run_name=run_name,
        task=run.task,
        palette=figures.PALETTE,
        statements=_statements(run),
        verdict_words=VERDICT_WORDS,
        tables=[*tables.result_tables(run.evaluation), *tables.heldout_tables(run.heldout)],
        figures=[(item, Markup(figures.to_svg(item.figure))) for item in drawn],
        rule=rule,
        examples=examples,
        hindsight=hindsight.section(run.hindsight),
        behaviours=behaviours(run.dialogues),
        dialogue_count=len(run.dialogues),
        tests=[
            {"population": name, "scale": wording.difference_scale(p), "rows": tests}
            for name, p in found.items()
            if (tests := wording.comparisons(p))
        ],
        method_name=wording.method_name,
        number=wording.number,
        facts=_facts(run),
        config=run.config,
    )


def _typeset(text: str) -> str:
    """Minus signs for numbers; no line break inside an interval or a p-value."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return re.sub(r"\[[^\]]{1,24}\]|\bp\w* [<=] \S+", lambda m: m[0].replace(" ", NO_BREAK), text)


def _words(name: Any) -> str:
    return str(name).replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _statements(run: Run) -> list[dict[str, str]]:
    """The headline: the average population first, then what must be known beside it."""
    statements = []
    for index, (name, population) in enumerate(wording.populations(run.evaluation).items()):
        verdict, text = wording.headline(population, name)
        statements.append({"verdict": verdict, "text": text})
        trained_again = wording.training_note(population)
        notes = [trained_again] if "not distinguishable" in trained_again else []
        if index == 0:
            notes.append(wording.against_data(population))
        statements += [{"verdict": "", "text": note} for note in notes if note]
    statements += [{"verdict": "", "text": text} for text in _heldout_statements(run.heldout)]
    return statements


def _heldout_statements(heldout: Mapping[str, Any]) -> list[str]:
    found = tables.predictions(heldout)
    if not found:
        sizes = tables.sizes_note(heldout)
        return [f"Policies on held-out dialogues: {sizes}."] if sizes else []
    method = next(iter(found))
    point = min(found[method], key=lambda p: (abs(p["point"] - 0.5), p["point"]))
    key = "auroc_v" if wording.is_number(point.get("auroc_v")) else "auroc_q"
    bounds = point.get(f"{key}_ci95")
    claim = "foretells the outcome"
    if not wording.interval(bounds):
        claim = "was set against the outcome"
    elif bounds[0] <= 0.5:
        claim = "does not foretell the outcome better than guessing"
    return [
        f"With {tables.percent(point['point'])} of a held-out dialogue seen, "
        f"{wording.method_name(method)}'s {key[-1].upper()} {claim}: AUROC "
        f"{wording.number(point.get(key))} {wording.interval(bounds)} (0.5 is guessing)."
    ]


def _facts(run: Run) -> list[str]:
    """How the numbers were made, as far as the files tell."""
    facts = []
    for name, population in wording.populations(run.evaluation).items():
        episodes = sorted(
            {
                m["episodes"]
                for m in population["methods"].values()
                if wording.is_number(m.get("episodes"))
            }
        )
        if episodes:
            count = " to ".join(str(x) for x in dict.fromkeys((episodes[0], episodes[-1])))
            facts.append(
                f"Population {name}: {count} episodes a method. {wording.seeds_note(population)}."
            )
    if run.evaluation:
        by_agents = map(wording.calls_note, wording.populations(run.evaluation).values())
        facts += list(dict.fromkeys(filter(None, by_agents)))
        human = run.evaluation.get("human") or {}
        facts += [
            "Every method talks with the same simulated humans, which are not those of the "
            "training data.",
            _scale_fact(human),
            "Square brackets are 95 % bootstrap intervals.",
            "p_holm is the p-value of a pairwise test after Holm's correction for the number of "
            f"pairs; “above” and “below” are said where it is under {wording.SIGNIFICANT}, “not "
            "distinguishable” elsewhere, which is no proof that two methods are equal.",
            "p_holm asks whether the agents as trained differ on other humans; p_training_holm, "
            "where several seeds were trained, whether the methods would differ if trained again.",
            "Each method's decoding setting was chosen on validation episodes, which are not "
            "among those reported here.",
        ]
    if sizes := tables.sizes_note(run.heldout):
        facts.append(f"Real dialogues: {sizes}; what is reported comes from the test part.")
    if protocol := run.evaluation.get("protocol") or run.heldout.get("protocol"):
        facts.append(str(protocol))
    return [fact.replace("..", ".").strip() for fact in facts]


def _scale_fact(human: Mapping[str, Any]) -> str:
    if wording.is_played(human):
        return (
            f"The humans, with the same personas for every agent, are played and rated by "
            f"{human.get('model')}; scores are mean ratings, on the task's scale."
        )
    return (
        "Normalized score: 0 is the mean of the behaviours in the data, 1 the exact optimum "
        "of the simulated world. Negative is worse than the data."
    )
