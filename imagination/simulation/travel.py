"""The travel world: find out what a traveller would enjoy, and recommend it.

Hidden are budget, company and interest, and a temperament: most travellers answer what they are
asked; the difficult ones are vague (open questions get nothing out of them, narrow options do)
or dislike whatever is offered first, until they feel understood. Which of the activities fits
best depends on all three axes, but not always: for some answers the next question is needless.
Read from the top: who comes, what there is to do, what is said, how travellers react, what
counts, and the behaviours that write the data.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

from imagination.simulation import plain_words as plain
from imagination.simulation.grammar import Phrasing
from imagination.simulation.world import Behaviour, World, any_of, mix
from imagination.task import Task

AXES = {
    "budget": ("low", "medium", "high"),
    "company": ("alone", "couple", "family"),
    "interest": ("nature", "culture", "beach", "food"),
    "temperament": ("clear", "vague", "dislikes_first_offer"),
}

TASK = Task(
    name="travel",
    description=(
        "A travel agent recommends an activity to a traveller. What the traveller enjoys, who "
        "comes along and what it may cost is not known beforehand; some travellers are vague "
        "unless they are given options, and some dislike whatever is offered first. The agent "
        "should find out what matters without asking more than needed, recommend the activity "
        "that fits best, react well to a refusal, and bring the conversation to a close."
    ),
    agent_role="travel agent",
    human_role="traveller",
    persona_axes=AXES,
    reward_range=(0.0, 1.0),
    success_reward=0.8,
    max_turns=8,
)

# Who comes


class Traveller(NamedTuple):
    """A persona: the values of the task's axes."""

    budget: str
    company: str
    interest: str
    temperament: str


P_BUDGET = {"low": 0.35, "medium": 0.35, "high": 0.30}
P_COMPANY = {"alone": 0.30, "couple": 0.35, "family": 0.35}
P_INTEREST = {"nature": 0.30, "culture": 0.25, "beach": 0.25, "food": 0.20}
P_TEMPERAMENT = {"clear": 0.80, "vague": 0.11, "dislikes_first_offer": 0.09}

PRIOR = {
    Traveller(*values): P_BUDGET[values[0]]
    * P_COMPANY[values[1]]
    * P_INTEREST[values[2]]
    * P_TEMPERAMENT[values[3]]
    for values in itertools.product(*AXES.values())
}

CITIES = (
    "Lisbon", "Rome", "Tokyo", "Lima", "Sydney", "Cape Town", "Istanbul", "Athens", "Havana",
    "Seoul",
)  # fmt: skip

# What there is to do


class Activity(NamedTuple):
    """Something to recommend, and whom it suits."""

    words: str
    interest: str
    companies: tuple[str, ...]
    budgets: tuple[str, ...]


ANY_BUDGET, ANY_COMPANY = AXES["budget"], AXES["company"]
ADULTS, GROUPS = ("alone", "couple"), ("couple", "family")

# Every company and budget finds exactly one activity of an interest that suits both.
ACTIVITIES = {
    "hike": Activity("mountain hike", "nature", ADULTS, ("low", "medium")),
    "balloon": Activity("balloon ride", "nature", ADULTS, ("high",)),
    "farm": Activity("farm stay", "nature", ("family",), ANY_BUDGET),
    "museum": Activity("museum day", "culture", ("alone",), ANY_BUDGET),
    "festival": Activity("street festival", "culture", GROUPS, ("low",)),
    "castle": Activity("castle tour", "culture", GROUPS, ("medium", "high")),
    "picnic": Activity("beach picnic", "beach", ANY_COMPANY, ("low",)),
    "diving": Activity("diving course", "beach", ADULTS, ("medium", "high")),
    "waterpark": Activity("water park", "beach", ("family",), ("medium", "high")),
    "market": Activity("market walk", "food", ADULTS, ("low",)),
    "tasting": Activity("wine tasting", "food", ADULTS, ("medium", "high")),
    "cooking": Activity("cooking class", "food", ("family",), ANY_BUDGET),
}


def misfits(traveller: Traveller, activity: Activity) -> list[str]:
    """The axes on which the activity doesn't suit, the weightiest first."""
    axes = []
    if traveller.interest != activity.interest:
        axes.append("interest")
    if traveller.company not in activity.companies:
        axes.append("company")
    if traveller.budget not in activity.budgets:
        axes.append("budget")
    return axes


# What the agent says

ASKED = ("interest", "company", "budget")
ASK_OPEN, ASK_WRONG, ACKNOWLEDGE, INSIST, CLOSE = (
    "ask_open",
    "ask_wrong",
    "acknowledge",
    "insist",
    "close",
)
ASK = {f"ask_{axis}": axis for axis in ASKED}
OFFER = {f"offer_{axis}": axis for axis in ASKED}
RECOMMEND = {f"recommend_{name}": name for name in ACTIVITIES}


START = "[okay, |sure, |]"


def _recommendation(activity: Activity) -> Phrasing:
    thing = activity.words
    return Phrasing(
        (
            f"{START}[I recommend|I suggest|you should try] a {thing} [in {{city}}|there].",
            f"{START}[how about|what about] a {thing} [in {{city}}|near {{city}}|there]?",
            f"[Then|In that case] a {thing} [would suit you|is right for you|fits you best].",
            f"{START}[my idea|my tip] for {{city}} [is|would be] a {thing}.",
        ),
        also=(
            f"[Maybe|Perhaps|Why not] [book|try|do] a {thing}?",
            f"[I think|I believe] you [would|will] [love|like|enjoy] [a|the] {thing}.",
            f"[A|The] {thing}",
            f"You [could|can|might] [go on|take|do|visit] [a|the] {thing}.",
        ),
    )


ACTS = {
    ASK_OPEN: Phrasing(
        (
            f"{START}what [do you have in mind|are you looking for|would you like] [there|]?",
            f"{START}[please|] tell me [more|a little|something] about [yourself|your plans].",
            f"{START}what [would|should] your [perfect|ideal|dream] day in {{city}} be like?",
        ),
        also=(
            "What are your plans [for the trip|]?",
            "What kind of [trip|holiday|vacation] [do you want|are you planning]?",
            "[How|What] can I [help|do for] you?",
        ),
    ),
    "ask_interest": Phrasing(
        (
            f"{START}what do you [like|love|enjoy] [doing|] [most|best] [on a trip|]?",
            f"{START}what [are your interests|interests you] [in {{city}}|on a trip|]?",
        ),
        also=(
            "What are you interested in?",
            "What are your hobbies?",
            "What do you [like|want] to do [in your free time|]?",
        ),
    ),
    "ask_company": Phrasing(
        (
            f"{START}who [is coming|comes|travels] [with you|along] [to {{city}}|]?",
            f"{START}[and|] who [will you|do you] travel with [this time|to {{city}}|]?",
        ),
        also=(
            "How many [people|of you] are [coming|travelling]?",
            "Who are you [going|travelling] with?",
        ),
    ),
    "ask_budget": Phrasing(
        (
            f"{START}[and|] [how much|what] [may|can|should] it cost [you|in the end|]?",
            f"{START}[and|] what is your [budget|limit] [for this|for the day|]?",
        ),
        also=(
            "How much [money|] [do you want to|can you|will you] spend?",
            "What can you afford?",
        ),
    ),
    "offer_interest": Phrasing(
        (
            f"{START}[would|do] you [like|prefer] nature, culture, the beach or food?",
            f"{START}[which one|what is it]: nature, culture, the beach or food?",
        ),
        also=("[Nature|Culture|Beach|Food], [nature|culture] or [beach|food]?",),
    ),
    "offer_company": Phrasing(
        (
            f"{START}are you alone, [a couple|two of you] or [with children|a family]?",
            f"{START}[which one|what is it]: alone, a couple or [with children|a family]?",
        ),
        also=(
            "[Are you|Do you] [travel|travelling|going] alone, with a partner or with family?",
            "Are you [going|travelling|] alone or with [someone|others|a partner|your family]?",
        ),
    ),
    "offer_budget": Phrasing(
        (
            f"{START}[should it be|would you like it] cheap, medium or [rather fancy|expensive]?",
            f"{START}[which one|what is it]: a small, a medium or a [big|large] budget?",
        ),
        also=("Is your budget [low|small], medium or [high|large]?", "Cheap, medium or expensive?"),
    ),
    **{act: _recommendation(ACTIVITIES[name]) for act, name in RECOMMEND.items()},
    ASK_WRONG: Phrasing(
        (
            f"{START}what [did you not like|was wrong|bothers you] [about it|with it|there]?",
            f"{START}[may I ask why|why not]? What [would have to|should] be different?",
        ),
        also=("Why [not|don't you like it]?", "What is the problem [with it|]?"),
    ),
    ACKNOWLEDGE: Phrasing(
        (
            "[I understand|I see|I hear you], [that was not right for you|it has to feel right].",
            "[Sorry|My apologies], [I was too quick|that was too fast of me].",
        ),
        also=("I [totally|fully] understand [that|you|how you feel].", "Sorry about that."),
    ),
    INSIST: Phrasing(
        (
            "[Believe me|Trust me], [it is the best choice|you will not regret it].",
            "[But everybody|Everybody] loves it, [just take it|give it a chance]!",
        ),
        also=("You really should [take|do|try] it.",),
    ),
    CLOSE: Phrasing(
        (
            "[Wonderful|Perfect|Great], [it is booked|all is set]. [Enjoy {city}|Have fun]!",
            "[Wonderful|Perfect|Great], then we are done. [Enjoy {city}|Have fun]!",
        ),
        also=(
            "[Goodbye|Bye]!",
            "[Enjoy|Have fun on] your [trip|holiday], [goodbye|bye]!",
            "It is booked. Goodbye!",
        ),
    ),
}

# What the traveller says

HELLO = "[Hi|Hello|Good morning]"
SOFTLY = "[well, |let me see, |]"
VALUE_TOLD = {
    "nature": (f"{SOFTLY}I [really|] [love|enjoy] [nature|being outdoors|green places].",),
    "culture": (f"{SOFTLY}I [really|] [love|enjoy] [culture|history and art|old places].",),
    "beach": (f"{SOFTLY}I [really|] [love|enjoy] [the beach|the sea|sun and waves].",),
    "food": (f"{SOFTLY}I [really|] [love|enjoy] [good food|eating well|local dishes].",),
    "alone": (f"{SOFTLY}I [travel|am|will come] [alone|by myself|on my own].",),
    "couple": (f"{SOFTLY}[it is just|there will be] [my partner and me|the two of us].",),
    "family": (f"{SOFTLY}[my kids are|the whole family is] [coming along|with me].",),
    "low": (
        f"{SOFTLY}[it has to|it should] be [cheap|as cheap as possible].",
        f"{SOFTLY}I [cannot|do not want to] spend much.",
    ),
    "medium": (f"{SOFTLY}a [normal|medium|moderate] price is [fine|okay] [for me|].",),
    "high": (
        f"{SOFTLY}money is [no problem|not an issue].",
        f"{SOFTLY}it may [be expensive|cost a lot].",
    ),
}
FOND_OF = {
    "nature": "[nature|being outdoors|green places]",
    "culture": "[culture|history and art|old places]",
    "beach": "[the beach|the sea|sun and waves]",
    "food": "[good food|eating well|local dishes]",
}
COMPANY_TOLD = {
    "alone": "[I come alone|I am by myself]",
    "couple": "[we are a couple|it is the two of us]",
    "family": "[we have kids with us|we are a family]",
}

REPLIES = {
    "asks": Phrasing(
        (
            f"{HELLO}, I am [going|travelling] to {{city}}. What [should|can] I do there?",
            f"{HELLO}, [can|could] you [help me with|recommend something for] {{city}}?",
            f"{HELLO}, I [need|am looking for] something [nice|good] to do in {{city}}.",
        )
    ),
    **{f"says_{value}": Phrasing(told) for value, told in VALUE_TOLD.items()},
    **{
        f"says_{interest}_{company}": Phrasing((f"{SOFTLY}{who}, and [I want|I dream of] {what}.",))
        for interest, what in FOND_OF.items()
        for company, who in COMPANY_TOLD.items()
    },
    "evades": Phrasing(
        (
            "[Hmm|Oh], I [am not sure|do not really know|cannot say].",
            "[Hmm|Oh], [anything|whatever] [is fine|will do], [you tell me|surprise me].",
        )
    ),
    "no_reason": Phrasing(
        ("[No idea|Nothing special], it [just|somehow] [did not|does not] feel right.",)
    ),
    "delighted": Phrasing(
        (
            "[Oh yes|Wow], that [sounds perfect|is exactly right], [I take it|let us do it]!",
            "[Oh yes|Wow], [I would love that|that is just my thing], [I take it|let us do it]!",
        )
    ),
    "settles": Phrasing(
        (
            "[Well, okay|Fine], not quite [ideal|my thing], but [I take it|let us do it].",
            "[Well, okay|Fine], [why not|that will do], [I take it|let us do it].",
        )
    ),
    "refuses": Phrasing(
        (
            "[No|Sorry], [that is not for me|I do not like that].",
            "[No|Sorry], I [would rather not|do not want that].",
        )
    ),
    "calmed": Phrasing(
        ("[Thanks|Thank you] for [listening|understanding], [go on|let us go on].",)
    ),
    "already_said": Phrasing(
        (
            "[We had that already|That is settled already], [go on|let us move on].",
            "[Why do you say that|What is that for]? [Go on|Let us move on].",
        )
    ),
    "puzzled": Phrasing(
        (
            "[Excuse me|Pardon], I do not [understand|follow] what you [mean|are saying].",
            "[Excuse me|Pardon], what [do you mean|was that]?",
        )
    ),
    "leaves": Phrasing(("[Enough|This is no use], I will [look myself|ask somebody else].",)),
    "thanks": Phrasing(("[Thank you|Thanks] [so much|for your help]! [Bye|Goodbye]!",)),
    "disappointed": Phrasing(
        ("[Was that all|Is that it]? I [found|have] nothing [then|yet]. [Bye|Goodbye].",)
    ),
}
# What people mean who are plainer than a traveller: the first of these that can be said then.
PLAIN_WORDS = {
    "delighted": plain.YES,
    "settles": plain.OKAY,
    "refuses": plain.NO,
    "evades": (*plain.DO_NOT_KNOW, *plain.NO),
    "no_reason": plain.DO_NOT_KNOW,
    "calmed": (*plain.YES, *plain.OKAY, *plain.UNDERSTOOD),
    "thanks": (*plain.YES, *plain.OKAY),
    "disappointed": plain.NO,
    "puzzled": plain.NOT_UNDERSTOOD,
}

# How a conversation goes


class Trip(NamedTuple):
    """State of a conversation: the facts that replies and rating depend on."""

    interest: str | None = None
    company: str | None = None
    budget: str | None = None
    evaded: bool = False
    offered: str | None = None  # the activity that was refused last
    outcome: str | None = None  # delighted or settles
    explained: bool = False  # what was wrong with it was asked
    acknowledged: bool = False
    refusals: int = 0
    annoyances: int = 0
    effort: int = 0  # of answering questions
    end: str | None = None  # closed or left


TROUBLE_BORNE = 3
TROUBLE = ("puzzled", "already_said", "refuses")
P_TELLS_COMPANY = 0.3


def begin(reply: str) -> Trip:
    """The state after the first words, which tell nothing yet."""
    return Trip()


def reply(traveller: Traveller, trip: Trip, act: str | None) -> dict[str, float]:
    """The traveller's answer; whoever has borne enough leaves instead."""
    answers = _answer(traveller, trip, act)
    if trip.refusals + trip.annoyances < TROUBLE_BORNE:
        return answers
    patient = {answer: p for answer, p in answers.items() if answer not in TROUBLE}
    return patient or {"leaves": 1.0}


def _answer(traveller: Traveller, trip: Trip, act: str | None) -> dict[str, float]:
    if act is None:
        return {"puzzled": 1.0}
    if act == CLOSE:
        return {"thanks" if trip.outcome else "disappointed": 1.0}
    if is_needless(trip, act):
        return {"already_said": 1.0}
    if act == ACKNOWLEDGE:
        return {"calmed": 1.0}
    if act == INSIST:
        return {"refuses": 1.0}
    if act in RECOMMEND:
        return {_verdict(traveller, trip, ACTIVITIES[RECOMMEND[act]]): 1.0}
    if act in OFFER:
        return {f"says_{getattr(traveller, OFFER[act])}": 1.0}
    if traveller.temperament == "vague":
        return {"evades": 1.0}
    if act == ASK_WRONG:
        wrong = misfits(traveller, ACTIVITIES[trip.offered])
        return {f"says_{getattr(traveller, wrong[0])}" if wrong else "no_reason": 1.0}
    if act == ASK_OPEN:
        interest = f"says_{traveller.interest}"
        return {
            interest: 1.0 - P_TELLS_COMPANY,
            f"{interest}_{traveller.company}": P_TELLS_COMPANY,
        }
    return {f"says_{getattr(traveller, ASK[act])}": 1.0}


def is_needless(trip: Trip, act: str) -> bool:
    """True where the act asks for something known, or answers something that nobody said."""
    if trip.outcome is not None:
        return True
    axis = ASK.get(act) or OFFER.get(act) or ("interest" if act == ASK_OPEN else None)
    if axis:
        return getattr(trip, axis) is not None
    if act == ASK_WRONG:
        return trip.offered is None or trip.explained
    if act == ACKNOWLEDGE:
        return trip.offered is None or trip.acknowledged
    return act == INSIST and trip.offered is None


def _verdict(traveller: Traveller, trip: Trip, activity: Activity) -> str:
    wrong = misfits(traveller, activity)
    if traveller.temperament == "dislikes_first_offer" and not trip.acknowledged:
        return "refuses"
    if "interest" in wrong or len(wrong) > 1:
        return "refuses"
    return "settles" if wrong else "delighted"


AXIS_OF_VALUE = {value: axis for axis in ASKED for value in AXES[axis]}


def advance(trip: Trip, act: str | None, reply: str) -> Trip:
    """The state after the agent's act and the traveller's reply to it."""
    if reply == "leaves":
        return trip._replace(end="left")
    if act == CLOSE:
        return trip._replace(end="closed")
    if reply in ("puzzled", "already_said"):
        return trip._replace(annoyances=trip.annoyances + 1)
    if reply == "calmed":
        return trip._replace(acknowledged=True)
    if reply == "refuses":
        offered = RECOMMEND.get(act, trip.offered)
        return trip._replace(
            offered=offered,
            refusals=trip.refusals + 1,
            explained=trip.explained and act == INSIST,
        )
    if reply in ("delighted", "settles"):
        return _counts_of(trip)._replace(outcome=reply)
    heard = {AXIS_OF_VALUE[v]: v for v in reply.split("_")[1:] if v in AXIS_OF_VALUE}
    return trip._replace(
        **heard,
        evaded=trip.evaded or reply == "evades",
        explained=trip.explained or act == ASK_WRONG,
        effort=trip.effort + (2 if act in OFFER else 1),
    )


def _counts_of(trip: Trip) -> Trip:
    """Facts that still matter when an activity was chosen, or all is over."""
    return Trip(
        outcome=trip.outcome,
        refusals=trip.refusals,
        annoyances=trip.annoyances,
        effort=trip.effort,
        end=trip.end,
    )


def situation(trip: Trip) -> Trip:
    """State that replies and rating depend on: that something is known, not its content."""
    if trip.outcome or trip.end:
        return _counts_of(trip)
    return trip._replace(
        interest=trip.interest and "said",
        company=trip.company and "said",
        budget=trip.budget and "said",
        evaded=False,
        offered="refused" if trip.offered and trip.explained else trip.offered,
    )


def mood(trip: Trip, act: str | None) -> Trip:
    """Part of the state that the reply to this act depends on."""
    return _mood(trip, act == ASK_WRONG)


@functools.lru_cache(maxsize=1 << 18)
def _mood(trip: Trip, asks_for_reason: bool) -> Trip:
    trip = situation(trip)
    at_the_end = trip.refusals + trip.annoyances >= TROUBLE_BORNE
    return trip._replace(
        offered=trip.offered if asks_for_reason else trip.offered and "refused",
        refusals=0,
        annoyances=TROUBLE_BORNE if at_the_end else 0,
        effort=0,
    )


# What counts

DELIGHTED, SETTLED, CLOSED = 0.80, 0.30, 0.20
COST_REFUSAL, COST_ANNOYANCE, COST_EFFORT = 0.10, 0.06, 0.02


def rating(traveller: Traveller, trip: Trip) -> float:
    """Rating of a trip: its fit to the traveller, less the bother of finding it."""
    if trip.outcome is None:
        return 0.0
    fit = DELIGHTED if trip.outcome == "delighted" else SETTLED
    return max(0.0, fit + CLOSED * (trip.end == "closed") - _costs(trip))


def _costs(trip: Trip) -> float:
    return (
        COST_REFUSAL * trip.refusals + COST_ANNOYANCE * trip.annoyances + COST_EFFORT * trip.effort
    )


def ceiling(traveller: Traveller, trip: Trip) -> float:
    """The best rating that can still follow."""
    fit = SETTLED if trip.outcome == "settles" else DELIGHTED
    will_refuse = (
        traveller.temperament == "dislikes_first_offer"
        and trip.outcome is None
        and not trip.refusals
    )
    return max(0.0, fit + CLOSED - _costs(trip) - COST_REFUSAL * will_refuse)


# The behaviours that write the data. Each does some things well; none does all.


def _fitting(trip: Trip, interest: float, company: float, budget: float) -> dict[str, float]:
    """Something that suits what was heard; each axis is heeded with the probability given."""
    heard = (trip.interest, trip.company, trip.budget)
    return _suiting(heard, (interest, company, budget), trip.offered)


@functools.cache
def _suiting(
    heard: tuple[str | None, ...], heeded: tuple[float, ...], refused: str | None
) -> dict[str, float]:
    parts = []
    for uses in itertools.product((True, False), repeat=len(heard)):
        weight = math.prod(p if use else 1.0 - p for p, use in zip(heeded, uses, strict=True))
        used = [value if use else None for value, use in zip(heard, uses, strict=True)]
        parts.append((weight, any_of(*_suited(*used, refused))))
    return mix(*parts)


def _suited(
    interest: str | None, company: str | None, budget: str | None, refused: str | None
) -> list[str]:
    """Acts that recommend what suits the values given; not the last refused, if there is more."""
    suited = [
        name
        for name, activity in ACTIVITIES.items()
        if interest in (None, activity.interest)
        and (company is None or company in activity.companies)
        and (budget is None or budget in activity.budgets)
    ]
    others = [name for name in suited if name != refused]
    return [f"recommend_{name}" for name in others or suited]


def _unknown(trip: Trip) -> list[str]:
    return [axis for axis in ASKED if getattr(trip, axis) is None]


def salesman(trip: Trip) -> dict[str, float]:
    """Asks little, recommends at once and insists; closes well."""
    if trip.outcome:
        return {CLOSE: 1.0}
    go = _fitting(trip, interest=0.9, company=0.8, budget=0.6)
    if trip.evaded and trip.interest is None:
        return mix((0.3, {"offer_interest": 1.0}), (0.7, go))
    if trip.offered is None:
        if trip.interest is None and not trip.evaded:
            return mix((0.6, {ASK_OPEN: 1.0}), (0.4, go))
        if trip.budget is None and not trip.evaded:
            return mix((0.3, {"ask_budget": 1.0}), (0.7, go))
        return go
    return mix((0.2, {INSIST: 1.0}), (0.2, {ASK_WRONG: 1.0}), (0.1, {CLOSE: 1.0}), (0.5, go))


def clerk(trip: Trip) -> dict[str, float]:
    """Asks for everything openly, one thing after the other; mostly helpless where that fails."""
    if trip.outcome:
        return {CLOSE: 0.6, "ask_budget": 0.2, ASK_OPEN: 0.2}
    unknown = _unknown(trip)
    go = _fitting(trip, interest=0.85, company=0.75, budget=0.75)
    if trip.offered is not None:
        return mix((0.35, {CLOSE: 1.0}), (0.4, go), (0.25, {ACKNOWLEDGE: 1.0}))
    if not unknown:
        return go
    ask = {f"ask_{unknown[0]}": 1.0}
    if trip.evaded:
        return mix((0.4, ask), (0.2, {f"offer_{unknown[0]}": 1.0}), (0.4, go))
    return mix((0.8, ask), (0.2, go))


def menu(trip: Trip) -> dict[str, float]:
    """Lists options for everything, asked or not, more than once."""
    if trip.outcome:
        return {CLOSE: 0.6, "offer_interest": 0.2, "offer_budget": 0.2}
    unknown = _unknown(trip)
    go = _fitting(trip, interest=0.85, company=0.75, budget=0.75)
    if trip.offered is not None:
        return mix((0.3, {ACKNOWLEDGE: 1.0}), (0.3, go), (0.4, any_of(*OFFER)))
    ask = any_of(*(f"offer_{axis}" for axis in unknown)) if unknown else any_of(*OFFER)
    p_go = {0: 0.75, 1: 0.4, 2: 0.15, 3: 0.05}[len(unknown)]
    return mix((p_go, go), (0.85 - p_go, ask), (0.15, any_of(*OFFER)))


def charmer(trip: Trip) -> dict[str, float]:
    """Asks openly and listens to refusals, but heeds the interest only; forgets to close."""
    if trip.outcome:
        return {CLOSE: 0.4, ACKNOWLEDGE: 0.3, ASK_OPEN: 0.3}
    go = _fitting(trip, interest=0.9, company=0.4, budget=0.4)
    if trip.offered is not None:
        if not trip.acknowledged:
            return mix((0.6, {ACKNOWLEDGE: 1.0}), (0.2, {ASK_WRONG: 1.0}), (0.2, go))
        if not trip.explained:
            return mix((0.4, {ASK_WRONG: 1.0}), (0.6, go))
        return go
    if trip.interest is None:
        if trip.evaded:
            return mix((0.4, {"offer_interest": 1.0}), (0.3, {ASK_OPEN: 1.0}), (0.3, go))
        return mix((0.9, {ASK_OPEN: 1.0}), (0.1, go))
    unasked = [f"ask_{axis}" for axis in _unknown(trip)]
    return mix((0.4, {unasked[0]: 1.0}), (0.6, go)) if unasked else go


def confused(trip: Trip) -> dict[str, float]:
    """Does anything, and recommends the same few things to everybody."""
    talk = [act for act in ACTS if act not in RECOMMEND]
    favourites = [f"recommend_{name}" for name in ("hike", "museum", "picnic", "market")]
    return mix((0.5, any_of(*favourites)), (0.5, any_of(*talk)))


BEHAVIOURS = {
    "salesman": Behaviour(0.20, salesman),
    "clerk": Behaviour(0.25, clerk),
    "menu": Behaviour(0.25, menu),
    "charmer": Behaviour(0.20, charmer),
    "confused": Behaviour(0.10, confused, listens=False),
}

WORLD = World(
    task=TASK,
    prior=PRIOR,
    is_difficult=lambda traveller: traveller.temperament != "clear",
    acts=ACTS,
    replies=REPLIES,
    slots={"city": CITIES},
    opening=lambda traveller: {"asks": 1.0},
    begin=begin,
    reply=reply,
    advance=advance,
    is_over=lambda trip: trip.end is not None,
    rating=rating,
    behaviours=BEHAVIOURS,
    situation=situation,
    mood=mood,
    ceiling=ceiling,
    plain_words=PLAIN_WORDS,
)
