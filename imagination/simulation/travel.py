"""The travel world: find out what a traveller would enjoy, and recommend it.

Hidden are budget, company and interest, and a temperament: most travellers answer what they are
asked; the difficult ones are vague (open questions get nothing out of them, narrow options do)
or dislike whatever is offered first, until they feel understood. Which of the activities fits
best depends on all three axes, but not always: for some answers the next question is needless.
Read from the top: who comes, what there is to do, what is said, how travellers react, what
counts, and the behaviours that write the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from imagination.simulation.behaviours import any_of, mix
from imagination.simulation.grammar import Phrasing
from imagination.simulation.world import Behaviour, World
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
P_TEMPERAMENT = {"clear": 0.86, "vague": 0.08, "dislikes_first_offer": 0.06}

PRIOR = {
    Traveller(*values): P_BUDGET[values[0]]
    * P_COMPANY[values[1]]
    * P_INTEREST[values[2]]
    * P_TEMPERAMENT[values[3]]
    for values in itertools.product(*AXES.values())
}

CITIES = (
    "Lisbon", "Rome", "Tokyo", "Lima", "Sydney", "Cape Town", "Istanbul", "Athens", "Havana", "Seoul",
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
    found = []
    if traveller.interest != activity.interest:
        found.append("interest")
    if traveller.company not in activity.companies:
        found.append("company")
    if traveller.budget not in activity.budgets:
        found.append("budget")
    return found


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


def _recommendation(activity: Activity) -> Phrasing:
    thing = activity.words
    return Phrasing(
        (
            f"[I recommend|I suggest|You should try] a {thing} [in {{city}}|near {{city}}|there].",
            f"[How about|What about] a {thing} [in {{city}}|near {{city}}|for this trip]?",
            f"[Then|In that case] a {thing} [would suit you|is right for you] [best|very well].",
            f"[My idea|My tip] for {{city}} [is|would be] a {thing}.",
        ),
        also=(
            f"[Maybe|Perhaps|Why not] [book|try|do] a {thing}?",
            f"[I think|I believe] you [would|will] [love|like|enjoy] [a|the] {thing}.",
            f"[A|The] {thing}",
        ),
    )


ACTS = {
    ASK_OPEN: Phrasing(
        (
            "[Sure|Great|Gladly]! What [do you have in mind|are you looking for] [in {city}|there|]?",
            "[Tell me|Please tell me] [more|a little] about [your trip|yourself|your plans].",
            "What [would|should] your [perfect|ideal|dream] day in {city} [look|be] like?",
        ),
        also=(
            "What are your plans [for the trip|]?",
            "What kind of [trip|holiday|vacation] [do you want|are you planning]?",
            "[How|What] can I [help|do for] you?",
        ),
    ),
    "ask_interest": Phrasing(
        (
            "What do you [like|love|enjoy] [doing|] [most|best] [when you travel|on a trip|]?",
            "What [are your interests|interests you] [in {city}|on a trip|]?",
        ),
        also=("What are you interested in?", "What are your hobbies?"),
    ),
    "ask_company": Phrasing(
        (
            "Who [is coming|comes|travels] [with you|along]?",
            "[And|] [who will you|who do you] travel with [on this trip|to {city}|]?",
        ),
        also=("How many [people|of you] are [coming|travelling]?", "Who are you [going|travelling] with?"),
    ),
    "ask_budget": Phrasing(
        (
            "[And|] [how much|what] [may|can|should] it cost [you|in the end|]?",
            "[And|] what is your [budget|limit] [for this|for the day|]?",
        ),
        also=("How much [money|] [do you want to|can you|will you] spend?", "What can you afford?"),
    ),
    "offer_interest": Phrasing(
        (
            "[Would|Do] you like nature, culture, the beach or [good|local] food?",
            "[Which one is it|Which is best]: nature, culture, the beach or [good|local] food?",
        ),
        also=("[Nature|Culture|Beach|Food], [nature|culture] or [beach|food]?",),
    ),
    "offer_company": Phrasing(
        (
            "[Will you be|Are you] alone, [as a couple|with your partner] or with [children|the family]?",
            "[Which one is it|So]: alone, two of you, or [the whole family|with children]?",
        ),
        also=("[Are you|Do you] [travel|travelling] alone, with a partner or with family?",),
    ),
    "offer_budget": Phrasing(
        (
            "[Should it be|Would you like it] cheap, [in the middle|medium] or [rather fancy|expensive]?",
            "[Which one is it|So]: a small, a medium or a [big|large] budget?",
        ),
        also=("Is your budget [low|small], medium or [high|large]?", "Cheap, medium or expensive?"),
    ),
    **{act: _recommendation(ACTIVITIES[name]) for act, name in RECOMMEND.items()},
    ASK_WRONG: Phrasing(
        (
            "What [did you not like|was wrong|bothers you] [about it|with it|there]?",
            "[May I ask why|Why not]? What [would have to|should] be different?",
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
            "[Wonderful|Perfect|Great], [it is booked|all is set]. [Enjoy {city}|Have a good trip]!",
            "[Wonderful|Perfect|Great], then we are done. [Enjoy {city}|Have a good trip]!",
        ),
        also=("[Goodbye|Bye]!", "[Enjoy|Have fun on] your [trip|holiday]!", "It is booked. Goodbye!"),
    ),
}

# What the traveller says

HELLO = "[Hi|Hello|Good morning]"
VALUE_TOLD = {
    "nature": ("I [love|enjoy] [nature|being outdoors|green places].",),
    "culture": ("I [love|enjoy] [culture|history and art|old places].",),
    "beach": ("I [love|enjoy] [the beach|the sea|sun and waves].",),
    "food": ("I [love|enjoy] [good food|eating well|local dishes].",),
    "alone": ("I [travel|am] [alone|by myself|on my own].",),
    "couple": ("[It is just|There will be] [my partner and me|the two of us].",),
    "family": ("[My kids are|The whole family is] [coming along|with me].",),
    "low": ("[It has to|It should] be [cheap|as cheap as possible].", "I [cannot|do not want to] spend much."),
    "medium": ("A [normal|medium|moderate] price is [fine|okay].",),
    "high": ("Money is [no problem|not an issue].", "It may [be expensive|cost a lot]."),
}
FOND_OF = {
    "nature": "[nature|being outdoors]",
    "culture": "[culture|history and art]",
    "beach": "[the beach|the sea]",
    "food": "[good food|local dishes]",
}
COMPANY_TOLD = {
    "alone": "[I come alone|I am by myself]",
    "couple": "[we are a couple|we are two]",
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
        f"says_{interest}_{company}": Phrasing(
            (f"[Well|Oh], {who}, and {what} would be [great|lovely].",)
        )
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
    "calmed": Phrasing(("[Thanks|Thank you] for [listening|understanding], [go on|let us go on].",)),
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
    "disappointed": Phrasing(("[That is all|Is that it]? I [found|have] nothing [then|yet]. Bye.",)),
}

# How a conversation goes


class Trip(NamedTuple):
    """What was said so far, as far as it matters."""

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
    questions: int = 0
    options: int = 0
    end: str | None = None  # closed or left


TROUBLE_BORNE = 3
TROUBLE = ("puzzled", "already_said", "refuses")
P_TELLS_COMPANY = 0.3


def begin(reply: str) -> Trip:
    return Trip()


def reply(traveller: Traveller, trip: Trip, act: str | None) -> dict[str, float]:
    """The traveller's answer; whoever has borne enough leaves instead."""
    answers = _answer(traveller, trip, act)
    if trip.refusals + trip.annoyances < TROUBLE_BORNE:
        return answers
    kept = {answer: p for answer, p in answers.items() if answer not in TROUBLE}
    return kept or {"leaves": 1.0}


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
    """Whether the act asks for what was said already, or answers what nobody said."""
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
        return trip._replace(outcome=reply)
    heard = {AXIS_OF_VALUE[v]: v for v in reply.split("_")[1:] if v in AXIS_OF_VALUE}
    return trip._replace(
        **heard,
        evaded=trip.evaded or reply == "evades",
        explained=trip.explained or act == ASK_WRONG,
        questions=trip.questions + 1,
        options=trip.options + (act in OFFER),
    )


COUNTED = ("outcome", "refusals", "annoyances", "questions", "options", "end")


def situation(trip: Trip) -> Trip:
    """What replies and rating depend on: that something is known, not what."""
    if trip.outcome or trip.end:
        return Trip(**{name: getattr(trip, name) for name in COUNTED})
    if trip.explained and trip.offered:
        trip = trip._replace(offered="refused")
    return trip._replace(
        interest=trip.interest and "said",
        company=trip.company and "said",
        budget=trip.budget and "said",
        evaded=False,
    )


def mood(trip: Trip, act: str | None) -> Trip:
    """What the reply to this act depends on."""
    trip = situation(trip)
    at_the_end = trip.refusals + trip.annoyances >= TROUBLE_BORNE
    return trip._replace(
        offered=trip.offered if act == ASK_WRONG else trip.offered and "refused",
        refusals=0,
        annoyances=TROUBLE_BORNE if at_the_end else 0,
        questions=0,
        options=0,
    )


# What counts

DELIGHTED, SETTLED, CLOSED = 0.80, 0.35, 0.20
COST_REFUSAL, COST_ANNOYANCE, COST_QUESTION, COST_OPTIONS = 0.10, 0.06, 0.02, 0.02


def rating(traveller: Traveller, trip: Trip) -> float:
    """How well the trip fits, less what finding it was a bother."""
    if trip.outcome is None:
        return 0.0
    fit = DELIGHTED if trip.outcome == "delighted" else SETTLED
    return max(0.0, fit + CLOSED * (trip.end == "closed") - _costs(trip))


def _costs(trip: Trip) -> float:
    return (
        COST_REFUSAL * trip.refusals
        + COST_ANNOYANCE * trip.annoyances
        + COST_QUESTION * trip.questions
        + COST_OPTIONS * trip.options
    )


def ceiling(traveller: Traveller, trip: Trip) -> float:
    fit = SETTLED if trip.outcome == "settles" else DELIGHTED
    will_refuse = (
        traveller.temperament == "dislikes_first_offer"
        and trip.outcome is None
        and not trip.refusals
    )
    return max(0.0, fit + CLOSED - _costs(trip) - COST_REFUSAL * will_refuse)


# The behaviours that write the data. Each does some things well; none does all.


def _fitting(trip: Trip, **used: float) -> dict[str, float]:
    """Something that suits what was heard; each axis is heeded with the probability given."""
    axes = [axis for axis in ASKED if getattr(trip, axis) is not None]
    parts = []
    for heeded in itertools.product((True, False), repeat=len(axes)):
        weight = 1.0
        for axis, is_heeded in zip(axes, heeded, strict=True):
            weight *= used[axis] if is_heeded else 1.0 - used[axis]
        heard = {a: getattr(trip, a) for a, h in zip(axes, heeded, strict=True) if h}
        parts.append((weight, any_of(*_suited(heard, trip.offered))))
    return mix(*parts)


def _suited(heard: Mapping[str, str], refused: str | None) -> list[str]:
    """Acts that recommend what suits the values heard; not the last refused, if there is more."""
    suited = [
        act
        for act, name in RECOMMEND.items()
        if heard.get("interest", ACTIVITIES[name].interest) == ACTIVITIES[name].interest
        and ("company" not in heard or heard["company"] in ACTIVITIES[name].companies)
        and ("budget" not in heard or heard["budget"] in ACTIVITIES[name].budgets)
    ]
    return [act for act in suited if RECOMMEND[act] != refused] or suited


def _unknown(trip: Trip) -> list[str]:
    return [axis for axis in ASKED if getattr(trip, axis) is None]


def salesman(trip: Trip) -> dict[str, float]:
    """Asks little, recommends at once and insists; closes well."""
    if trip.outcome:
        return {CLOSE: 1.0}
    go = _fitting(trip, interest=0.9, company=0.8, budget=0.6)
    if trip.offered is None:
        if trip.interest is None and not trip.evaded:
            return mix((0.7, {ASK_OPEN: 1.0}), (0.3, go))
        return go
    return mix((0.2, {INSIST: 1.0}), (0.2, {ASK_WRONG: 1.0}), (0.1, {CLOSE: 1.0}), (0.5, go))


def clerk(trip: Trip) -> dict[str, float]:
    """Asks for everything openly, one thing after the other; helpless where that fails."""
    if trip.outcome:
        return {CLOSE: 0.7, "ask_budget": 0.15, ASK_OPEN: 0.15}
    unknown = _unknown(trip)
    go = _fitting(trip, interest=0.85, company=0.75, budget=0.75)
    if trip.offered is not None:
        return mix((0.4, {CLOSE: 1.0}), (0.4, go), (0.2, {ASK_WRONG: 1.0}))
    if not unknown:
        return go
    ask = {f"ask_{unknown[0]}": 1.0}
    if trip.evaded:
        return mix((0.6, ask), (0.4, go))
    return mix((0.8, ask), (0.2, go))


def menu(trip: Trip) -> dict[str, float]:
    """Lists options for everything, asked or not, more than once."""
    if trip.outcome:
        return {CLOSE: 0.6, "offer_interest": 0.2, "offer_budget": 0.2}
    unknown = _unknown(trip)
    go = _fitting(trip, interest=0.9, company=0.75, budget=0.75)
    if trip.offered is not None:
        return mix((0.3, {ACKNOWLEDGE: 1.0}), (0.3, go), (0.4, any_of(*OFFER)))
    ask = any_of(*(f"offer_{axis}" for axis in unknown)) if unknown else any_of(*OFFER)
    p_go = {0: 0.75, 1: 0.4, 2: 0.15, 3: 0.05}[len(unknown)]
    return mix((p_go, go), (0.85 - p_go + 0.0, ask), (0.15, any_of(*OFFER)))


def charmer(trip: Trip) -> dict[str, float]:
    """Asks openly and listens to refusals, but looks at the interest only; forgets to close."""
    if trip.outcome:
        return {CLOSE: 0.4, ACKNOWLEDGE: 0.3, ASK_OPEN: 0.3}
    go = _fitting(trip, interest=0.95, company=0.4, budget=0.4)
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
    if trip.company is None:
        return mix((0.25, {"ask_company": 1.0}), (0.75, go))
    return go


def confused(trip: Trip) -> dict[str, float]:
    """Does anything, and mostly recommends."""
    talk = [act for act in ACTS if act not in RECOMMEND]
    return mix((0.5, any_of(*RECOMMEND)), (0.5, any_of(*talk)))


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
)
