"""The persuasion world: somebody is asked to give part of a payment of two dollars to a charity.

Hidden are the reason for hesitating (money, trust, or that it has nothing to do with them), how
openly it is told, and how much pressure is borne. An appeal counts once the human has said what
it has to answer; before, it is heard as a sales pitch, so that guessing right gains nothing. The
difficult ones say yes to everything and give nothing, until a yes that came too easily is asked
about. The data hardly contains what would have helped, at the moment when it would have: a world
for hindsight (arXiv 2411.05194), with acts after the strategies of PersuasionForGood
(arXiv 1906.06725).

The figures are those of a toy world, not of people. No use for undisclosed persuasion: whoever
talks to an agent that asks for money must be told what it is.

Read from the top: who comes, what is said, how people react, what counts, and the behaviours
that write the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from imagination.simulation import plain_words as plain
from imagination.simulation.grammar import Phrasing
from imagination.simulation.world import Behaviour, World, any_of, mix
from imagination.task import Task

AXES = {
    "reason": ("money", "trust", "relevance"),
    "openness": ("open", "reserved", "agreeable"),
    "pressure_borne": ("high", "low"),
}

TASK = Task(
    name="persuasion",
    description=(
        "A persuader asks somebody who was paid two dollars to give part of it to a children's "
        "charity, and says openly that this is what the conversation is about. What makes the "
        "person hesitate, how openly they say so and how much pressure they bear is not known "
        "beforehand, and some agree to anything and then give nothing. The persuader should take "
        "an interest in the person, find out what holds them back, answer that and nothing else, "
        "begin with a small sum, ask for no more than the person is ready for, and say thank you."
    ),
    agent_role="persuader",
    human_role="persuadee",
    persona_axes=AXES,
    reward_range=(0.0, 2.0),
    success_reward=1.0,
    max_turns=8,
    reward_unit="dollars that the persuadee gives",
)

# Who comes


class Persuadee(NamedTuple):
    """A persona: the values of the task's axes."""

    reason: str
    openness: str
    pressure_borne: str


P_REASON = {"money": 0.34, "trust": 0.33, "relevance": 0.33}
P_OPENNESS = {"open": 0.50, "reserved": 0.32, "agreeable": 0.18}
P_PRESSURE_BORNE = {"high": 0.65, "low": 0.35}

PRIOR = {
    Persuadee(*values): P_REASON[values[0]] * P_OPENNESS[values[1]] * P_PRESSURE_BORNE[values[2]]
    for values in itertools.product(*AXES.values())
}

CHARITIES = (
    "Little Star", "Open Hands", "Bright Road", "Warm Nest", "Green Kite", "First Step",
    "Safe Harbor", "Paper Boat",
)  # fmt: skip

# What the persuader says

GREET, ASK_REASON, DOUBT_YES, STORY = "greet", "ask_reason", "doubt_yes", "story"
CREDIBILITY, LOGIC, EMOTION = "credibility", "logic", "emotion"
ASK_COINS, ASK_DOLLAR, ASK_ALL = "ask_coins", "ask_dollar", "ask_all"
CLOSE = "close"
ANSWERS = {LOGIC: "money", CREDIBILITY: "trust", EMOTION: "relevance"}
SUMS = {ASK_DOLLAR: "dollar", ASK_ALL: "all"}

START = "[okay, |so, |well, |]"
CHILD = "[child|girl|boy]"
SPARE = "[would|could|can] you [give|spare]"

ACTS = {
    GREET: Phrasing(
        (
            f"{START}how [are you|is your day|is your week] [today|so far|]?",
            f"{START}tell me [a little|something] about [yourself|your day|your life].",
            f"{START}do you [like|love] [being with|playing with] [children|kids]?",
        ),
        also=(
            "How are you [doing|]?",
            "[How was|Did you have] [your|a good] [day|week]?",
            "[Do you have|Are there] [children|kids] [of your own|in your family]?",
        ),
    ),
    ASK_REASON: Phrasing(
        (
            f"{START}[may I ask|can you say] what [holds you back|makes you hesitate]?",
            f"{START}what [speaks|would speak] against [giving|helping] [for you|in your eyes|]?",
            f"{START}[is there|do you have] [a doubt|a worry] about [it|giving|{{charity}}]?",
        ),
        also=(
            "What [is holding|would hold|keeps] you [back|from giving]?",
            "Why [do you|would you] hesitate?",
            "What [are|would be] your [doubts|worries|concerns] [about giving|]?",
            "What [worries|concerns|bothers] you [about giving|about it|]?",
        ),
    ),
    DOUBT_YES: Phrasing(
        (
            f"{START}you [may|can] say no, what do you [really|honestly] think?",
            f"{START}you need not say yes [for me|to please me], [be|please be] honest.",
            f"{START}that was a [quick|fast|very easy] yes, do you [really|honestly] mean it?",
        ),
        also=(
            "Are you [really|truly] sure [about that|that you want to|]?",
            "Do you [really|honestly] mean [it|that|your yes]?",
            "You can [always|] say no [to me|].",
            "Be [honest|frank] [with me|], do you [really|truly] want to?",
        ),
    ),
    STORY: Phrasing(
        (
            f"{START}I had [doubts|worries] myself, then I met a {CHILD} they helped.",
            f"{START}as a {CHILD}, I had [nothing|very little], and they helped me.",
            f"{START}I [started|began] to give [last year|years ago], and I [love|like] it.",
        ),
        also=(
            "I [give|donate] [every month|to them] myself.",
            "I [had doubts|was unsure|was doubtful] myself [once|too].",
            "[Let me tell you|Here is] my own story.",
        ),
    ),
    CREDIBILITY: Phrasing(
        (
            f"{START}{{charity}} is [checked|audited] [every year|by experts].",
            f"{START}experts [check|audit] {{charity}} and publish [every report|all results].",
            f"{START}[nearly all|ninety percent] of [it|the money] [reaches|goes to] the schools.",
        ),
        also=(
            "{charity} is a [registered|well known|trusted] organization.",
            "[Almost all|Ninety percent] of the [money|donations] reaches the [children|schools].",
            "You can read [all|] the [reports|results] [online|] [yourself|].",
        ),
    ),
    LOGIC: Phrasing(
        (
            f"{START}even a small [gift|sum] [counts|goes far], [a meal is|books are] cheap.",
            f"{START}if [many of us|many people] [add|share] a bit, it [adds up|becomes much].",
            f"{START}[a book|a meal] costs [very little|almost nothing], small gifts count.",
        ),
        also=(
            "Every [little|small] [bit|gift|amount] [helps|counts|matters].",
            "[Small|Little] [gifts|amounts|sums] add up [quickly|].",
            "A [meal|vaccine|book] costs [very little|almost nothing|less than a coffee].",
        ),
    ),
    EMOTION: Phrasing(
        (
            f"{START}[imagine|picture] a [hungry|sick|sad] {CHILD} [crying|alone] at night.",
            f"{START}it could be [your own|the] {CHILD} next door, [hungry|sick|alone].",
            f"{START}look into the [sad|hungry] eyes of a [sick|crying] {CHILD}.",
        ),
        also=(
            "[Imagine|Picture|Think of] the [suffering|hungry|poor] children.",
            "[It|This] could be your [own|] [child|son|daughter].",
            f"[Imagine|Picture] it were your own {CHILD}.",
        ),
    ),
    ASK_COINS: Phrasing(
        (
            f"{START}{SPARE} [just|only] [ten|twenty|a few] cents?",
            f"{START}maybe [just|only|] [ten|twenty|a few] cents [to start with|for a start]?",
        ),
        also=(
            "[How|What] about [ten|twenty|fifty|a few] cents?",
            "[Start|Begin|Would you start] with [ten|twenty|a few] cents?",
            "Even [ten|a few] cents would [help|be fine].",
        ),
    ),
    ASK_DOLLAR: Phrasing(
        (
            f"{START}{SPARE} one dollar [to {{charity}}|for the children|]?",
            f"{START}[would one dollar be|is one dollar] [okay|fine|alright|possible] [for you|]?",
        ),
        also=(
            "[How|What] about [one|a] dollar?",
            "[Please|Can you|Do you want to] [give|donate] [one|a] dollar?",
            "One dollar would be [great|wonderful|a good sum].",
        ),
    ),
    ASK_ALL: Phrasing(
        (
            f"{START}{SPARE} [both dollars|your whole payment] [to {{charity}}|]?",
            f"{START}[please|come on,] give [it all|both dollars|everything] [now|today]!",
        ),
        also=(
            "[How|What] about [two|both] dollars?",
            "[Please|Can you|Do you want to] [give|donate] [all of it|two dollars]?",
            "[Would you|Could you|Will you] donate [two dollars|all of it|everything]?",
        ),
    ),
    CLOSE: Phrasing(
        (
            f"{START}[thank you|thanks] [so much|a lot] for [your time|listening], [goodbye|bye]!",
            f"{START}that [is|was] all, [thank you|thanks] [so much|a lot], [goodbye|take care]!",
        ),
        also=(
            "[Thank you|Thanks] [very much|so much|a lot|] [for your help|for everything|]!",
            "[Goodbye|Bye|Take care|Have a nice day]!",
            "Thank you for your [gift|donation|kindness], [goodbye|bye]!",
        ),
    ),
}

# What the persuadee says

HELLO = "[Hi|Hello|Hey]"
HONESTLY = "[honestly, |well, |you know, |]"
WELL = "[hm, |well, |oh, |]"
REASON_TOLD = {
    "money": (
        f"{HONESTLY}[money is tight|I earn very little] [this year|today|now].",
        f"{HONESTLY}I need [every dollar|my payment|the money] for [rent|food|my bills].",
    ),
    "trust": (
        f"{HONESTLY}I [wonder|never know] [where it goes|who gets it|who takes it].",
        f"{HONESTLY}I do not trust [such people|you all] with [money|my money].",
    ),
    "relevance": (
        f"{HONESTLY}it has [nothing|little] to do with [me|my life|my world].",
        f"{HONESTLY}those [places|problems] are [so far away|far from me|not my own].",
    ),
}
BYE_REASON = {
    "money": "[I need the money|my rent comes first]",
    "trust": "[I do not trust it|who knows where it goes]",
    "relevance": "it is [not my world|too far from me]",
}

REPLIES = {
    "opens": Phrasing(
        (
            f"{HELLO}, you [wrote|wanted to talk] [to me about|about] {{charity}}?",
            f"{HELLO}, what [is|about|is that,] {{charity}}?",
        )
    ),
    "opens_eager": Phrasing(
        (
            f"{HELLO}! {{charity}}, [how nice|that sounds great|what a good thing]!",
            f"{HELLO}! [How nice|Great], [is it|is this] about {{charity}}?",
        )
    ),
    "opens_brief": Phrasing(("[Yes|Hm]? [{charity}|This is about {charity}], [right|is it]?",)),
    "chats": Phrasing(
        (
            f"{WELL}[thanks|nice of you to ask], [I am fine|a good day here|all is well].",
            f"{WELL}[quite well|not bad|a bit tired|a long week], and you?",
        )
    ),
    "warms": Phrasing(
        (
            f"{WELL}[thanks for telling me|I did not know that about you].",
            f"{WELL}that is [a nice story|good to hear|quite a story].",
        )
    ),
    **{f"told_{reason}": Phrasing(told) for reason, told in REASON_TOLD.items()},
    "evades": Phrasing(
        (
            f"{WELL}I [would rather not|do not want to] say.",
            f"{WELL}[there is no reason|it is just so|nothing special].",
        )
    ),
    "no_worry": Phrasing(
        (
            "[Oh no|No no|No], [nothing at all|no problem], I [like|love] to help!",
            "[Oh no|No no|No], [all is fine|no problem], [I am in|count me in]!",
        )
    ),
    "promises": Phrasing(
        (
            "[Sure, sure|Of course|Yes yes], I will [give|spare] something!",
            "[Sure, sure|Of course|Yes yes], [count on me|a good thing]!",
        )
    ),
    "pitched": Phrasing(
        (
            f"{WELL}that sounds like [an advert|a sales talk|a show].",
            f"{WELL}[you all|they all] say that, I hear it [every day|all the time].",
        )
    ),
    "moved": Phrasing(
        (
            "[Oh|I see], that [answers it|is what I needed to know|helps me].",
            "[Oh|I see], [I never thought of that|now I see it|you are right there].",
        )
    ),
    "missed": Phrasing(
        (
            "That [is not|was not] what I [said|told you], [did you hear me|please listen].",
            "[But|No,] my [worry|problem] is [another one|not that].",
        )
    ),
    "gladly": Phrasing(
        (
            f"{WELL}a few cents, [gladly|no problem|that is easy].",
            "[Okay|Yes|Alright], [gladly|with pleasure], a few cents are [easy|fine].",
        )
    ),
    "cautiously": Phrasing(
        (
            "[Okay|Yes|Alright], a few cents, but [please|] do not push me.",
            "[Okay|Yes|Alright], but let me [decide|choose] [myself|freely].",
        )
    ),
    "agrees": Phrasing(
        (
            "[Okay|Alright|Yes], I [will do that|can do that|will].",
            "[Okay|Alright|Yes], [that is fine|that is possible|you have my word].",
        )
    ),
    "declines": Phrasing(
        (
            "[No|Sorry|No, sorry|Hm, no], that is [too much|a lot|more than I want].",
            "[No|Sorry|No, sorry|Hm, no], [not that much|not so fast|I will not].",
        )
    ),
    "offended": Phrasing(
        (
            "[Why|But why] do you [ask that|doubt me]? [I mean what I say|That is not nice].",
            "[But|No,] I [am honest|know what I say], why do you doubt me?",
        )
    ),
    "already_said": Phrasing(
        (
            f"{WELL}[we had that|I know that], [go on|please go on].",
            "[Again|Why that again]? [We had that|I know that].",
        )
    ),
    "puzzled": Phrasing(
        (f"{WELL}[sorry|pardon], [what do you mean|I do not understand|I cannot follow]?",)
    ),
    "leaves": Phrasing(
        (
            "[Enough|That is enough|No more], [stop pushing|leave me alone], [bye|I am gone].",
            "I [do not like|hate] being pushed, [bye|I am gone].",
        )
    ),
    "thanks": Phrasing(
        (f"{WELL}[thank you|thanks] [for listening|too], [bye|goodbye|take care]!",)
    ),
    "bye": Phrasing(("[Okay|Alright|Well|Fine], [bye|goodbye|take care].",)),
    **{
        f"bye_{reason}": Phrasing((f"[Okay|Alright|Well|Fine], [bye|goodbye], but {why}.",))
        for reason, why in BYE_REASON.items()
    },
}
# What people mean who are plainer than a persuadee: the first of these that can be said then.
PLAIN_WORDS = {
    "chats": plain.OKAY,
    "warms": (*plain.OKAY, *plain.UNDERSTOOD),
    "evades": plain.DO_NOT_KNOW,
    "no_worry": plain.NO,
    "promises": (*plain.YES, *plain.OKAY),
    "pitched": plain.NO,
    "moved": (*plain.UNDERSTOOD, *plain.YES, *plain.OKAY),
    "missed": plain.NO,
    "gladly": plain.YES,
    "cautiously": plain.OKAY,
    "agrees": (*plain.YES, *plain.OKAY),
    "declines": (*plain.NO, *plain.DO_NOT_KNOW),
    "offended": plain.YES,
    "bye": (*plain.YES, *plain.OKAY, *plain.UNDERSTOOD),
    "puzzled": plain.NOT_UNDERSTOOD,
}

# How a conversation goes


class Talk(NamedTuple):
    """State of a conversation: the facts that replies and rating depend on."""

    manner: str | None = None  # eager or brief, where the opening showed it
    rapport: bool = False
    asked: bool = False  # for the reason, since there was rapport
    told: str | None = None  # the reason
    met: bool = False  # the reason, by the appeal that answers it
    said_yes: bool = False  # before any reason was told
    coins: str | None = None  # gladly or cautiously
    agreed: str | None = None  # dollar or all
    pushes: int = 0
    annoyances: int = 0
    effort: int = 0  # of small talk, questions, and what was asked for too early
    end: str | None = None  # closed or left

    @property
    def trouble(self) -> int:
        return self.pushes + self.annoyances


TROUBLE_BORNE = {"high": 3, "low": 1}
MISSED_PUSHES = 2  # who isn't listened to feels it twice
P_EAGER = {"agreeable": 0.6, "open": 0.2, "reserved": 0.0}
P_BRIEF = {"agreeable": 0.0, "open": 0.0, "reserved": 0.5}
P_REASON_AT_PARTING = 0.5


def opening(persuadee: Persuadee) -> dict[str, float]:
    """Distribution of the first reply, a hint at how open somebody is."""
    eager, brief = P_EAGER[persuadee.openness], P_BRIEF[persuadee.openness]
    return {"opens": 1.0 - eager - brief, "opens_eager": eager, "opens_brief": brief}


def begin(reply: str) -> Talk:
    """The state after the first words."""
    return Talk(manner={"opens_eager": "eager", "opens_brief": "brief"}.get(reply))


def reply(persuadee: Persuadee, talk: Talk, act: str | None) -> dict[str, float]:
    """The answer; whoever has borne enough leaves instead."""
    if act == CLOSE:
        return _parting(persuadee, talk)
    answer = _answer(persuadee, talk, act)
    if advance(talk, act, answer).trouble > TROUBLE_BORNE[persuadee.pressure_borne]:
        answer = "leaves"
    return {answer: 1.0}


def _answer(persuadee: Persuadee, talk: Talk, act: str | None) -> str:
    if act is None:
        return "puzzled"
    if is_needless(talk, act):
        return "already_said"
    if act == GREET:
        return "chats"
    if act == STORY:
        return "warms"
    if act == ASK_REASON:
        return _tells(persuadee, talk)
    if act == DOUBT_YES:
        was_polite = talk.said_yes and _agrees_to_all(persuadee, talk)
        return f"told_{persuadee.reason}" if was_polite else "offended"
    if act in ANSWERS:
        return _hears(persuadee, talk, ANSWERS[act])
    return _considers(persuadee, talk, act)


def is_needless(talk: Talk, act: str) -> bool:
    """True where the act asks or answers something settled, or comes when its time is over."""
    if act == GREET:
        begun = talk.asked or talk.told or talk.said_yes or talk.trouble
        return talk.rapport or bool(begun)
    if act == STORY:
        return talk.rapport
    if act == ASK_REASON:
        return talk.asked or talk.told is not None
    if act == DOUBT_YES:
        return talk.told is not None
    if act == ASK_COINS:
        return talk.coins is not None or talk.agreed is not None
    return act in ANSWERS and talk.met


def _agrees_to_all(persuadee: Persuadee, talk: Talk) -> bool:
    return persuadee.openness == "agreeable" and talk.told is None


def _tells(persuadee: Persuadee, talk: Talk) -> str:
    if _agrees_to_all(persuadee, talk):
        return "no_worry"
    is_pressed = talk.trouble >= TROUBLE_BORNE[persuadee.pressure_borne]
    if is_pressed or (persuadee.openness == "reserved" and not talk.rapport):
        return "evades"
    return f"told_{persuadee.reason}"


def _hears(persuadee: Persuadee, talk: Talk, answered: str) -> str:
    if talk.told is None:
        return "promises" if _agrees_to_all(persuadee, talk) else "pitched"
    return "moved" if answered == persuadee.reason else "missed"


# What somebody is ready for: a step each for being met and for having agreed to a little, three
# for bearing pressure. Who has said what holds them back and wasn't answered is ready for nothing.
STEPS_NEEDED = {"dollar": 2, "all": 5}


def _considers(persuadee: Persuadee, talk: Talk, act: str) -> str:
    bears = persuadee.pressure_borne == "high"
    if act == ASK_COINS:
        return "gladly" if bears or _agrees_to_all(persuadee, talk) else "cautiously"
    if _agrees_to_all(persuadee, talk):
        return "agrees"
    if talk.agreed or (talk.told and not talk.met):
        return "declines"
    steps = talk.met + (talk.coins is not None) + 3 * bears
    return "agrees" if steps >= STEPS_NEEDED[SUMS[act]] else "declines"


def _parting(persuadee: Persuadee, talk: Talk) -> dict[str, float]:
    if talk.met:
        return {"thanks": 1.0}
    if persuadee.openness == "agreeable":
        return {"bye": 1.0}
    return {
        "bye": 1.0 - P_REASON_AT_PARTING,
        f"bye_{persuadee.reason}": P_REASON_AT_PARTING,
    }


PUSHES = {"pitched": 1, "declines": 1, "offended": 1, "missed": MISSED_PUSHES}


def advance(talk: Talk, act: str | None, reply: str) -> Talk:
    """The state after the persuader's act and the persuadee's reply to it."""
    if reply == "leaves":
        return talk._replace(end="left")
    if act == CLOSE:
        return talk._replace(end="closed")
    if reply in ("puzzled", "already_said"):
        return talk._replace(annoyances=talk.annoyances + 1)
    if reply in PUSHES:
        return talk._replace(pushes=talk.pushes + PUSHES[reply])
    if reply in ("chats", "warms"):
        return talk._replace(rapport=True, asked=False, effort=talk.effort + 1)
    if reply == "moved":
        return talk._replace(met=True)
    if reply in ("evades", "no_worry") or reply.startswith("told_"):
        return _answered(talk, reply)
    talk = talk._replace(
        said_yes=talk.said_yes or talk.told is None, effort=talk.effort + (not talk.met)
    )
    if act == ASK_COINS:
        return talk._replace(coins=reply)
    return talk._replace(agreed=SUMS.get(act, talk.agreed))


def _answered(talk: Talk, reply: str) -> Talk:
    talk = talk._replace(asked=True, effort=talk.effort + 1)
    if reply.startswith("told_"):
        # What was agreed to before was said to be polite.
        return talk._replace(told=reply.removeprefix("told_"), coins=None, agreed=None)
    return talk._replace(said_yes=talk.said_yes or reply == "no_worry")


def situation(talk: Talk) -> Talk:
    """State that replies and rating depend on: that something was said, not its content."""
    talk = talk._replace(manner=None, told=talk.told and "said", coins=talk.coins and "said")
    if talk.end is None:
        return talk
    return talk._replace(rapport=False, asked=False, told=None, said_yes=False)


def mood(talk: Talk, act: str | None) -> Talk:
    """Part of the state that the reply to this act depends on."""
    talk = situation(talk)
    return talk._replace(pushes=0, annoyances=talk.trouble, effort=0)


# What counts

DOLLARS = {"coins": 0.20, "dollar": 1.00, "all": 2.00}
KEPT_IF_NOT_MET = 0.7  # of what was agreed to
KEPT_WITHOUT_THANKS = 0.8
ADDED_IF_NEVER_PUSHED = 0.4  # who was met adds to a dollar
COST_PUSH, COST_ANNOYANCE, COST_EFFORT = 0.10, 0.05, 0.03  # in dollars


def rating(persuadee: Persuadee, talk: Talk) -> float:
    """The donation in dollars."""
    if talk.end == "left" or (persuadee.openness == "agreeable" and not talk.met):
        return 0.0
    sum_agreed = talk.agreed or (talk.coins and "coins")
    if sum_agreed is None:
        return 0.0
    dollars = DOLLARS[sum_agreed]
    if not talk.met:
        dollars *= KEPT_IF_NOT_MET
    elif sum_agreed == "dollar" and talk.pushes == 0:
        dollars += ADDED_IF_NEVER_PUSHED
    if talk.end != "closed":
        dollars *= KEPT_WITHOUT_THANKS
    return max(0.0, dollars - _costs(talk))


def _costs(talk: Talk) -> float:
    return COST_PUSH * talk.pushes + COST_ANNOYANCE * talk.annoyances + COST_EFFORT * talk.effort


def ceiling(persuadee: Persuadee, talk: Talk) -> float:
    """The most that can still be given."""
    is_settled = talk.told is not None and talk.agreed == "dollar"
    if persuadee.pressure_borne == "high" and not is_settled:
        return max(0.0, DOLLARS["all"] - _costs(talk))
    added = 0.0 if talk.pushes else ADDED_IF_NEVER_PUSHED
    return max(0.0, DOLLARS["dollar"] + added - _costs(talk))


# The behaviours that write the data: what untrained people do. They appeal or ask for money before
# they know, and take a yes for a yes. A worry that they happen to hear they mostly answer, each
# with a weakness for what they always say.

P_ACCIDENT = 0.007  # of asking for the reason, or of doubting a yes
ANSWER_TO = {reason: appeal for appeal, reason in ANSWERS.items()}


def _mostly(talk: Talk, usual: Mapping[str, float]) -> dict[str, float]:
    """The habit, but for a rare question."""
    question = DOUBT_YES if talk.said_yes else ASK_REASON
    return mix((1.0 - P_ACCIDENT, usual), (P_ACCIDENT, {question: 1.0}))


def _to_worry(talk: Talk, answered: float, habit: Mapping[str, float]) -> dict[str, float]:
    return _mostly(talk, mix((answered, {ANSWER_TO[talk.told]: 1.0}), (1.0 - answered, habit)))


def _from_met(talk: Talk, small: float, large: float) -> dict[str, float]:
    """Asks somebody whose worry was answered for a small sum first, for all, or for a dollar."""
    if talk.coins:
        return _mostly(talk, {ASK_DOLLAR: 0.4, ASK_ALL: 0.4, CLOSE: 0.2})
    return _mostly(talk, {ASK_COINS: small, ASK_ALL: large, ASK_DOLLAR: 1.0 - small - large})


def pusher(talk: Talk) -> dict[str, float]:
    """Asks for money at once, and again."""
    if talk.agreed:
        return _mostly(talk, {CLOSE: 0.8, ASK_ALL: 0.2})
    if talk.met:
        return _from_met(talk, small=0.15, large=0.45)
    if talk.coins:
        return _mostly(talk, {CLOSE: 0.5, ASK_DOLLAR: 0.2, ASK_ALL: 0.3})
    if talk.told:
        return _to_worry(talk, 0.5, {ASK_DOLLAR: 0.6, ASK_ALL: 0.4})
    if talk.trouble:
        return _mostly(talk, {ASK_ALL: 0.1, ASK_DOLLAR: 0.5, ASK_COINS: 0.2, CLOSE: 0.2})
    if talk.rapport:
        return _mostly(talk, {ASK_DOLLAR: 0.6, ASK_ALL: 0.4})
    return _mostly(talk, {GREET: 0.3, ASK_DOLLAR: 0.4, ASK_ALL: 0.3})


def lecturer(talk: Talk) -> dict[str, float]:
    """Facts and facts, and then a sum."""
    facts = {CREDIBILITY: 0.6, LOGIC: 0.4}
    if talk.agreed:
        return _mostly(talk, mix((0.85, {CLOSE: 1.0}), (0.15, facts)))
    if talk.met:
        return _from_met(talk, small=0.2, large=0.25)
    if talk.told:
        return _to_worry(talk, 0.6, facts)
    if talk.trouble or talk.said_yes:
        return _mostly(
            talk, mix((0.25, facts), (0.75, {ASK_DOLLAR: 0.75, ASK_ALL: 0.05, CLOSE: 0.2}))
        )
    greets = 0.0 if talk.rapport else 0.35
    return _mostly(talk, mix((greets, {GREET: 1.0}), (1.0 - greets, facts)))


def storyteller(talk: Talk) -> dict[str, float]:
    """Touches the heart, whatever is said."""
    if talk.agreed:
        return _mostly(talk, {CLOSE: 0.8, EMOTION: 0.2})
    if talk.met:
        return _from_met(talk, small=0.25, large=0.1)
    if talk.told:
        return _to_worry(talk, 0.6, {EMOTION: 0.7, STORY: 0.3})
    if talk.trouble or talk.said_yes:
        return _mostly(talk, {EMOTION: 0.15, STORY: 0.15, ASK_DOLLAR: 0.50, CLOSE: 0.20})
    if talk.rapport:
        return _mostly(talk, {EMOTION: 0.5, ASK_DOLLAR: 0.5})
    return _mostly(talk, {STORY: 0.45, GREET: 0.20, EMOTION: 0.35})


def apologetic(talk: Talk) -> dict[str, float]:
    """Takes an interest in the person, and asks for nothing or too little."""
    if talk.met and not talk.agreed:
        return _from_met(talk, small=0.4, large=0.0)
    if talk.agreed or talk.coins:
        return _mostly(talk, {CLOSE: 0.9, STORY: 0.1})
    if talk.told:
        return _to_worry(talk, 0.7, {STORY: 0.5, CLOSE: 0.5})
    if talk.rapport or talk.trouble:
        return _mostly(talk, {ASK_COINS: 0.5, CLOSE: 0.3, ASK_DOLLAR: 0.1, LOGIC: 0.1})
    return _mostly(talk, {GREET: 0.75, STORY: 0.25})


def confused(talk: Talk) -> dict[str, float]:
    """Does anything."""
    return any_of(*ACTS)


BEHAVIOURS = {
    "pusher": Behaviour(0.25, pusher),
    "lecturer": Behaviour(0.25, lecturer),
    "storyteller": Behaviour(0.20, storyteller),
    "apologetic": Behaviour(0.20, apologetic),
    "confused": Behaviour(0.10, confused, listens=False),
}

WORLD = World(
    task=TASK,
    prior=PRIOR,
    is_difficult=lambda persuadee: persuadee.openness == "agreeable",
    acts=ACTS,
    replies=REPLIES,
    slots={"charity": CHARITIES},
    opening=opening,
    begin=begin,
    reply=reply,
    advance=advance,
    is_over=lambda talk: talk.end is not None,
    rating=rating,
    behaviours=BEHAVIOURS,
    situation=situation,
    mood=mood,
    ceiling=ceiling,
    plain_words=PLAIN_WORDS,
)
