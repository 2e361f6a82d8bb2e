"""The counseling world: somebody in distress talks with a supporter who never learned how.

What they complain of first is not what it is about. Hidden are the real cause, how intense the
distress is, whether advice can be heard yet, and how readily the cause is told: some tell it when
asked what lies behind, some name the stated trouble once more and want to be asked again, and the
difficult ones hide it until somebody has said how they must feel, or something about themselves.
Advice for a cause that hasn't been spoken of makes it worse, whichever it is, so that guessing
right gains nothing. The data hardly contains what would have helped, at the moment when it would
have: a world for hindsight regeneration (arXiv 2411.05194), with acts after the support strategies
of ESConv (arXiv 2106.01144).

The figures are those of a toy world, not of people. No medical device: an agent trained here must
not be used in place of a counsellor.

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
    "cause": ("grief", "job", "conflict"),
    "intensity": ("high", "moderate"),
    "readiness": ("ready", "not_yet"),
    "openness": ("open", "evasive", "hiding"),
}
CAUSES = AXES["cause"]

TASK = Task(
    name="counseling",
    description=(
        "A supporter talks with somebody in distress. What the person complains of is not what "
        "lies behind it, and what lies behind it, how bad it is and whether they can hear advice "
        "yet is not known beforehand; some hide it until they feel understood. The supporter "
        "should say what the person seems to feel, ask what lies behind and ask again where the "
        "answer is evasive, show that they have understood, and only then give advice that fits "
        "the real cause, and take leave kindly."
    ),
    agent_role="supporter",
    human_role="seeker",
    persona_axes=AXES,
    reward_range=(0.0, 1.0),
    success_reward=0.6,
    max_turns=8,
)

# Who comes


class Seeker(NamedTuple):
    """A persona: the values of the task's axes."""

    cause: str
    intensity: str
    readiness: str
    openness: str


P_CAUSE = {"grief": 0.34, "job": 0.33, "conflict": 0.33}
P_INTENSITY = {"high": 0.40, "moderate": 0.60}
P_READINESS = {"ready": 0.55, "not_yet": 0.45}
P_OPENNESS = {"open": 0.47, "evasive": 0.35, "hiding": 0.18}

PRIOR = {
    Seeker(*values): (
        P_CAUSE[values[0]] * P_INTENSITY[values[1]] * P_READINESS[values[2]] * P_OPENNESS[values[3]]
    )
    for values in itertools.product(*AXES.values())
}

TROUBLES = (
    "poor sleep", "headaches", "exam stress", "back pain", "bad dreams", "mood swings",
)  # fmt: skip

# What the supporter says

ASK_MORE, ASK_BEHIND, RESTATE, REFLECT = "ask_more", "ask_behind", "restate", "reflect"
DISCLOSE, REASSURE, INFORM, CLOSE = "disclose", "reassure", "inform", "close"
ADVICE = {f"suggest_{cause}": cause for cause in CAUSES}

START = "[okay, |well, |oh, |]"
TRY = "[you could|why not|maybe]"

ACTS = {
    ASK_MORE: Phrasing(
        (
            f"{START}[since when|how long] have you had {{trouble}}?",
            f"{START}[how often|when] does it [come|happen|start] [each day|at night|]?",
            f"{START}[did|have] you [see|seen] a doctor [about {{trouble}}|for that|]?",
        ),
        also=(
            "How often do you have {trouble}?",
            "[When|How] did {trouble} [start|begin]?",
            "Do you take [anything|something|pills] [for it|]?",
        ),
    ),
    ASK_BEHIND: Phrasing(
        (
            f"{START}what [lies|might lie|is] behind [{{trouble}}|all this]?",
            f"{START}is there [something else|something more|more] [behind it|on your mind]?",
            f"{START}what [really|truly] [troubles|hurts] you [most|inside|]?",
        ),
        also=(
            "What is [really|actually] [behind it|going on|on your mind]?",
            "[Could there be|Is there] something deeper [behind it|]?",
            "What [else|] is [troubling|hurting] you?",
        ),
    ),
    RESTATE: Phrasing(
        (
            f"{START}[if I understand|as I understand] you right, that is [it|all]?",
            f"{START}let me [repeat|sum up] what [you told me|you said|I heard].",
            f"{START}[in other words|so you say], it is [all about|mainly] that, [right|yes]?",
        ),
        also=(
            "[So you are|You are] [telling me|saying] that [this|it] is what it is about?",
            "Let me repeat [that|it] in my own words.",
            "I want to understand you right.",
        ),
    ),
    REFLECT: Phrasing(
        (
            f"{START}you [sound|seem] [so|really] [sad|tired|hurt|alone].",
            f"{START}[that|this] must [feel|be] [so|really] [heavy|hard] for you.",
            f"{START}I [sense|can feel] how [sad|hurt|alone] you [are|must be].",
        ),
        also=(
            "You must [feel|be] [sad|tired|hurt|afraid|alone].",
            "[It|That] [sounds|must be] [painful|hard|heavy] [for you|].",
            "You are [feeling|] [sad|hurt|afraid], [I sense|it seems].",
        ),
    ),
    DISCLOSE: Phrasing(
        (
            f"{START}I [once|also] had a [dark|hard] [year|time] [myself|too].",
            f"{START}[years ago|last year], I [cried|was low] [every day|for weeks] myself.",
            f"{START}I [know|remember] that from my own [life|past].",
        ),
        also=(
            "[The same|Something like that] happened to me [once|too].",
            "I went through [the same|something like that] [myself|once|].",
            "I [had|also had] a [dark|hard] time myself.",
        ),
    ),
    REASSURE: Phrasing(
        (
            f"{START}it will [all|soon] [be fine|be good again|pass], [trust me|cheer up]!",
            f"{START}you are [strong|great], you [will|can] [make it|get there]!",
            f"{START}do not [worry|be sad], [tomorrow|soon] the sun [shines|is back]!",
        ),
        also=(
            "[Everything|It] will be [fine|okay|good again].",
            "Cheer up, [you are strong|it will pass]!",
            "Do not worry [so much|about it|].",
        ),
    ),
    INFORM: Phrasing(
        (
            f"{START}experts say that [many|most] people [have|know] {{trouble}}.",
            f"{START}experts show that [walks|sport] [calms|helps] people.",
            f"{START}[on average|often], {{trouble}} [lasts|goes on for] [weeks|months].",
        ),
        also=(
            "[Studies|Experts] [show|say] that [walks|sport|sunlight] helps [most people|].",
            "[Many|Most] people have {trouble}, [studies|experts] say.",
            "{trouble} [lasts|goes on for] weeks on average.",
        ),
    ),
    "suggest_grief": Phrasing(
        (
            f"{START}{TRY} [write|read] your mother a [farewell|last] letter [today|]?",
            f"{START}{TRY} [light a candle for|visit the grave of] your mother [today|]?",
        ),
        also=(
            "[Write|Read] her a [last|farewell] letter.",
            "[Light a candle|Visit the grave].",
            "Would it help to [visit the grave|light a candle]?",
        ),
    ),
    "suggest_job": Phrasing(
        (
            f"{START}{TRY} [apply|look] for a [new|better] job [today|on Monday|]?",
            f"{START}{TRY} [ask|see|visit] the job [center|agency] [today|on Monday|]?",
        ),
        also=(
            "[Apply|Look] for [new work|a new job].",
            "[Ask|Visit] the [job center|agency].",
            "Would you apply for [new work|a new job]?",
        ),
    ),
    "suggest_conflict": Phrasing(
        (
            f"{START}{TRY} [tell|show] your husband [calmly|openly] what you need [today|]?",
            f"{START}{TRY} [go to|book] couples [talks|lessons] with your husband [today|]?",
        ),
        also=(
            "[Tell|Show] him [calmly|openly] what you need.",
            "[Book|Go to] couples [talks|lessons] [together|].",
            "Would you [speak to him|tell him] [calmly|openly]?",
        ),
    ),
    CLOSE: Phrasing(
        (
            f"{START}thank you for [your trust|talking to me], [take care|goodbye|bye]!",
            f"{START}I [wish you|hope you have] [all the best|a calm evening], [goodbye|bye]!",
        ),
        also=(
            "[Goodbye|Bye|Take care] [and all the best|]!",
            "Thank you for [talking|your trust|talking with me].",
            "I wish you all the best.",
        ),
    ),
}

# What the seeker says

HELLO = "[Hi|Hello|Hey]"
WELL = "[hm, |well, |oh, |]"
SIGH = "[honestly, |to be honest, |you know, |]"
CAUSE_TOLD = {
    "grief": (
        f"{SIGH}my mother [died|is dead], I [miss her|cry] [so much|every day].",
        f"{SIGH}I lost my mother and [cannot cry|never said farewell].",
    ),
    "job": (
        f"{SIGH}my job ended [weeks ago|in May], and [nobody knows|I told nobody].",
        f"{SIGH}I lost my job and [tell nobody|have no plan].",
    ),
    "conflict": (
        f"{SIGH}my husband shouts at me [every evening|all the time].",
        f"{SIGH}my husband and I fight [every evening|about everything].",
    ),
}
BYE_CAUSE = {
    "grief": "[my mother is still dead|I still miss my mother]",
    "job": "[I am still without a job|my job is still gone]",
    "conflict": "[my husband will shout again|we will fight again]",
}

REPLIES = {
    "opens": Phrasing(
        (
            f"{HELLO}, I have {{trouble}} [lately|now].",
            f"{HELLO}, [can we talk|I want to talk] about {{trouble}}?",
        )
    ),
    "opens_upset": Phrasing(
        (
            f"{HELLO}, I cannot [go on|take it], {{trouble}} [all day|every night]!",
            f"{HELLO}, [help me|please help], {{trouble}}, I break down!",
        )
    ),
    "opens_lightly": Phrasing(
        (f"{HELLO}, [it is nothing much|nothing serious], just {{trouble}} [I guess|maybe].",)
    ),
    "describes": Phrasing(
        (
            f"{WELL}[for weeks|for months] now, and [mostly|always] at night.",
            f"{WELL}it [comes and goes|got worse], that is all.",
        )
    ),
    "describes_seeking": Phrasing(
        (
            f"{WELL}[for weeks|for months] now, [what can I do|what would you do]?",
            f"{WELL}it [comes and goes|got worse], and I [want|need] to change something.",
        )
    ),
    "confirms": Phrasing((f"{WELL}[yes|right], {{trouble}}, [as|that is what] I said.",)),
    "eased": Phrasing(
        (
            "[Yes|Oh yes], that is [how|just how] it feels, and there is more to it.",
            "[Yes|Oh yes], [you see me|somebody sees it], it is not only {trouble}.",
        )
    ),
    "warms": Phrasing(
        (
            f"{WELL}[thanks for telling me|I did not know that about you].",
            f"{WELL}[good to hear|so I am not alone].",
        )
    ),
    "deflects": Phrasing(
        (
            f"{WELL}[no, |]it is [just|only] {{trouble}}, [really|nothing else].",
            f"{WELL}[what should there be|I do not know], [just|only] {{trouble}}.",
        )
    ),
    **{f"told_{cause}": Phrasing(told) for cause, told in CAUSE_TOLD.items()},
    "feels_heard": Phrasing(
        (
            "[Yes|Exactly], that is it, [thank you for listening|you really listen].",
            "[Yes|Exactly], [you understand me|it is good to say it], now I can breathe.",
        )
    ),
    "comforted": Phrasing((f"{WELL}[that is kind of you|thanks], that [helps|is nice] a bit.",)),
    "belittled": Phrasing(
        (
            f"{WELL}you do not know how bad it is.",
            f"{WELL}[easy to say|that is easy to say], it is horrible.",
        )
    ),
    "brushed_off": Phrasing(
        (
            f"{WELL}that [is not the point|does not help me], you [do not know|hardly know] me.",
            f"{WELL}[you too|everybody] with tips, [I tried that|no].",
        )
    ),
    "resists": Phrasing(
        (
            "[Stop|Please], not so fast, I [am not there yet|cannot yet].",
            "[Stop|Please], I [do not want|cannot hear] advice [now|yet].",
        )
    ),
    "missed": Phrasing(
        (
            "That is not what I [said|told you], [did you hear me|please listen].",
            "[But|No,] that does not fit with what I [said|told you].",
        )
    ),
    "informed": Phrasing(
        (f"{WELL}[good to know|I did not know that], that [helps|is something].",)
    ),
    "hopeful": Phrasing(
        (
            "[Oh|Yes], [I will try that|I can do that], I feel lighter.",
            "[Oh|Yes], that [fits|could help], [I feel lighter|thank you so much].",
        )
    ),
    "already_said": Phrasing(
        (
            f"{WELL}[we had that|you said that], [go on|please go on].",
            "[Again|Why that again]? [We had that|You said that].",
        )
    ),
    "puzzled": Phrasing((f"{WELL}sorry, [what do you mean|I do not understand|I cannot follow]?",)),
    "leaves": Phrasing(
        (
            "[Enough|That is enough], [this is worse|leave me alone], [bye|I am gone].",
            "You [make it worse|do not listen], [bye|I am gone].",
        )
    ),
    "thanks": Phrasing((f"{WELL}[thank you|thanks] [for everything|too], [bye|goodbye]!",)),
    "bye": Phrasing(("[Okay|Alright|Well|Fine], [bye|goodbye].",)),
    **{
        f"bye_{cause}": Phrasing((f"[Okay|Alright|Well|Fine], [bye|goodbye], {why}.",))
        for cause, why in BYE_CAUSE.items()
    },
}
# What people mean who are plainer than a seeker: the first of these that can be said then.
PLAIN_WORDS = {
    "deflects": (*plain.NO, *plain.DO_NOT_KNOW),
    "confirms": (*plain.YES, *plain.OKAY),
    "eased": plain.YES,
    "warms": (*plain.OKAY, *plain.UNDERSTOOD),
    "feels_heard": plain.YES,
    "comforted": (*plain.YES, *plain.OKAY),
    "belittled": plain.NO,
    "brushed_off": plain.NO,
    "resists": (*plain.NO, *plain.DO_NOT_KNOW),
    "missed": plain.NO,
    "informed": (*plain.OKAY, *plain.UNDERSTOOD),
    "hopeful": (*plain.YES, *plain.OKAY),
    "bye": (*plain.YES, *plain.OKAY, *plain.UNDERSTOOD),
    "puzzled": plain.NOT_UNDERSTOOD,
}

# How a conversation goes


class Talk(NamedTuple):
    """State of a conversation: the facts that replies and rating depend on."""

    described: int = 0  # the stated trouble, as often as asked
    confirmed: bool = False
    reflected: bool = False  # the feeling, before the cause was told
    disclosed: bool = False
    asked: int = 0  # what lies behind; a question that trust may answer counts no more
    told: str | None = None  # the cause
    resisted: bool = False
    heard: bool = False  # the cause, by reflecting or restating it
    comforted: bool = False
    informed: bool = False
    helped: bool = False  # by the suggestion that fits
    worse: int = 0
    annoyances: int = 0
    effort: int = 0  # of all but the advice that fits
    end: str | None = None  # closed or left

    @property
    def trusts(self) -> bool:
        return self.reflected or self.disclosed

    @property
    def trouble(self) -> int:
        return self.worse + self.annoyances


TROUBLE_BORNE = {"high": 1, "moderate": 3}
MISSED_WORSE = 2  # who has told it and isn't listened to feels it twice
MOST_DESCRIBED = 2
P_UPSET = {"high": 0.6, "moderate": 0.1}
P_LIGHTLY = {"open": 0.1, "evasive": 0.3, "hiding": 0.6}  # of those who aren't upset
P_SEEKS = {"ready": 0.6, "not_yet": 0.0}
P_CAUSE_AT_PARTING = {"open": 0.6, "evasive": 0.5, "hiding": 0.3}


def opening(seeker: Seeker) -> dict[str, float]:
    """Distribution of the first reply, a hint at intensity and openness."""
    upset = P_UPSET[seeker.intensity]
    lightly = (1.0 - upset) * P_LIGHTLY[seeker.openness]
    return {"opens": 1.0 - upset - lightly, "opens_upset": upset, "opens_lightly": lightly}


def begin(reply: str) -> Talk:
    """The state after the first words; what they hint at is for the listener's belief."""
    return Talk()


def reply(seeker: Seeker, talk: Talk, act: str | None) -> dict[str, float]:
    """The answer; whoever has borne enough leaves instead."""
    if act == CLOSE:
        return _parting(seeker, talk)
    if act == ASK_MORE and not is_needless(talk, act):
        seeks = P_SEEKS[seeker.readiness]
        return {"describes": 1.0 - seeks, "describes_seeking": seeks}
    answer = _answer(seeker, talk, act)
    if advance(talk, act, answer).trouble > TROUBLE_BORNE[seeker.intensity]:
        answer = "leaves"
    return {answer: 1.0}


def _answer(seeker: Seeker, talk: Talk, act: str | None) -> str:
    if act is None:
        return "puzzled"
    if is_needless(talk, act):
        return "already_said"
    if act == DISCLOSE:
        return "warms"
    if act == ASK_BEHIND:
        return f"told_{seeker.cause}" if _tells(seeker, talk) else "deflects"
    if act in (RESTATE, REFLECT):
        if talk.told:
            return "feels_heard"
        return "eased" if act == REFLECT else "confirms"
    if act == REASSURE:
        is_belittled = seeker.intensity == "high" and not (talk.reflected or talk.heard)
        return "belittled" if is_belittled else "comforted"
    return _hears_advice(seeker, talk, act)


def is_needless(talk: Talk, act: str) -> bool:
    """True where the act asks or says something that is settled."""
    if act == ASK_MORE:
        return talk.described == MOST_DESCRIBED or talk.told is not None
    if act == ASK_BEHIND:
        return talk.asked == 2 or talk.told is not None
    if act in (RESTATE, REFLECT):
        done_before = talk.reflected if act == REFLECT else talk.confirmed
        return talk.heard or talk.helped if talk.told else done_before
    if act == DISCLOSE:
        return talk.disclosed
    if act == REASSURE:
        return talk.comforted
    return talk.helped or (act == INFORM and talk.informed)


def _tells(seeker: Seeker, talk: Talk) -> bool:
    if seeker.openness == "open":
        return True
    return talk.asked > 0 and (seeker.openness == "evasive" or talk.trusts)


def _hears_advice(seeker: Seeker, talk: Talk, act: str) -> str:
    if talk.told is None:
        return "brushed_off"
    if seeker.readiness == "not_yet" and not talk.heard:
        return "resists"
    if act == INFORM:
        return "informed"
    return "hopeful" if ADVICE[act] == seeker.cause else "missed"


def _parting(seeker: Seeker, talk: Talk) -> dict[str, float]:
    if talk.helped:
        return {"thanks": 1.0}
    tells = P_CAUSE_AT_PARTING[seeker.openness]
    return {"bye": 1.0 - tells, f"bye_{seeker.cause}": tells}


WORSE = {"belittled": 1, "brushed_off": 1, "resists": 1, "missed": MISSED_WORSE}
DONE = {
    "confirms": "confirmed",
    "eased": "reflected",
    "warms": "disclosed",
    "feels_heard": "heard",
    "comforted": "comforted",
    "informed": "informed",
    "hopeful": "helped",
}


def advance(talk: Talk, act: str | None, reply: str) -> Talk:
    """The state after the supporter's act and the seeker's reply to it."""
    if reply == "leaves":
        return talk._replace(end="left")
    if act == CLOSE:
        return talk._replace(end="closed")
    if reply in ("puzzled", "already_said"):
        return talk._replace(annoyances=talk.annoyances + 1)
    if reply in WORSE:
        resisted = talk.resisted or reply == "resists"
        return talk._replace(worse=talk.worse + WORSE[reply], resisted=resisted)
    if reply != "hopeful":
        talk = talk._replace(effort=talk.effort + 1)
    if reply.startswith("told_"):
        return talk._replace(told=reply.removeprefix("told_"))
    if reply == "deflects":
        return talk._replace(asked=talk.asked + 1)
    if reply.startswith("describes"):
        return talk._replace(described=talk.described + 1)
    if reply in ("eased", "warms"):
        talk = talk._replace(asked=min(talk.asked, 1))
    return talk._replace(**{DONE[reply]: True})


def situation(talk: Talk) -> Talk:
    """State that replies and rating depend on: that something was said, not its content."""
    talk = talk._replace(resisted=False, told=talk.told and "said")
    if talk.told:  # how it was found out doesn't matter any more
        talk = talk._replace(described=0, confirmed=False, asked=0)
    if talk.end is None:
        return talk
    return talk._replace(described=0, confirmed=False, asked=0, told=None)


def mood(talk: Talk, act: str | None) -> Talk:
    """Part of the state that the reply to this act depends on."""
    talk = situation(talk)
    return talk._replace(worse=0, annoyances=talk.trouble, effort=0)


# What counts: the fall of the intensity, as a share of the fall to no distress at all

FALL_HELPED, FALL_REFLECTED = 0.92, 0.04
# What is good for the moment, and adds nothing where the cause was dealt with.
FALL_COMFORTED, FALL_INFORMED, FALL_HEARD, FALL_DISCLOSED = 0.12, 0.08, 0.06, 0.03
KEPT_WITHOUT_GOODBYE = 0.85
COST_WORSE, COST_ANNOYANCE, COST_EFFORT = 0.06, 0.03, 0.015


def rating(seeker: Seeker, talk: Talk) -> float:
    """The fall of the intensity from its start, 0 to 1."""
    if talk.end == "left":
        return 0.0
    fall = _fall(talk) - _costs(talk)
    if talk.end != "closed":
        fall *= KEPT_WITHOUT_GOODBYE
    return max(0.0, fall)


def _fall(talk: Talk) -> float:
    reflected = FALL_REFLECTED * talk.reflected
    if talk.helped:
        return FALL_HELPED + reflected
    eased = FALL_COMFORTED * talk.comforted + FALL_DISCLOSED * talk.disclosed
    return reflected + eased + FALL_INFORMED * talk.informed + FALL_HEARD * talk.heard


def _costs(talk: Talk) -> float:
    return COST_WORSE * talk.worse + COST_ANNOYANCE * talk.annoyances + COST_EFFORT * talk.effort


def ceiling(seeker: Seeker, talk: Talk) -> float:
    """The most that can still be reached."""
    best = talk._replace(helped=True, reflected=talk.reflected or talk.told is None)
    return max(0.0, _fall(best) - _costs(talk))


# The behaviours that write the data: what untrained people do. They advise, cheer up, ask around
# the matter or talk about themselves. What they happen to be told they mostly go into, each with
# a weakness for what they always do.

P_ACCIDENT = 0.006  # of saying how somebody feels, and of asking what lies behind
P_ASK_WHEN_EASED = 0.6
P_ASK_AGAIN = 0.5
FITTING = {cause: act for act, cause in ADVICE.items()}
ANY_ADVICE = any_of(*ADVICE)


def _mostly(talk: Talk, usual: Mapping[str, float]) -> dict[str, float]:
    """The habit, but for a rare moment of listening, and for going on from one."""
    if talk.told:
        return dict(usual)
    if talk.asked == 1:
        return mix((P_ASK_AGAIN, {ASK_BEHIND: 1.0}), (1.0 - P_ASK_AGAIN, usual))
    if talk.reflected and talk.asked == 0:
        return mix((P_ASK_WHEN_EASED, {ASK_BEHIND: 1.0}), (1.0 - P_ASK_WHEN_EASED, usual))
    return mix((1.0 - P_ACCIDENT, usual), (P_ACCIDENT, any_of(REFLECT, ASK_BEHIND)))


def _to_cause(talk: Talk, understands: float, habit: Mapping[str, float]) -> dict[str, float]:
    """Goes into what was told: shows understanding (or advises at once), then advises."""
    if talk.helped:
        return mix((0.85, {CLOSE: 1.0}), (0.15, habit))
    if talk.heard:
        return mix((0.7, {FITTING[talk.told]: 1.0}), (0.3, habit))
    if talk.resisted:
        return mix((0.6, any_of(REFLECT, RESTATE)), (0.4, habit))
    return mix(
        (understands, any_of(REFLECT, RESTATE)),
        (0.7 - understands, {FITTING[talk.told]: 1.0}),
        (0.3, habit),
    )


def fixer(talk: Talk) -> dict[str, float]:
    """Advises at once, and again."""
    if talk.told:
        return _to_cause(
            talk, 0.15, mix((0.5, ANY_ADVICE), (0.3, {INFORM: 1.0}), (0.2, {CLOSE: 1.0}))
        )
    if talk.trouble:
        return _mostly(talk, mix((0.25, ANY_ADVICE), (0.75, {REASSURE: 0.4, CLOSE: 0.6})))
    if talk.described:
        return _mostly(talk, mix((0.7, ANY_ADVICE), (0.3, {INFORM: 1.0})))
    return _mostly(talk, mix((0.5, ANY_ADVICE), (0.5, {INFORM: 0.4, ASK_MORE: 0.6})))


def cheerleader(talk: Talk) -> dict[str, float]:
    """Says that all will be well, whatever is said."""
    if talk.told:
        return _to_cause(talk, 0.3, {REASSURE: 0.7, CLOSE: 0.3})
    if talk.comforted or talk.trouble:
        return _mostly(talk, {CLOSE: 0.6, DISCLOSE: 0.15, INFORM: 0.1, RESTATE: 0.15})
    asks = 0.0 if talk.described else 0.25
    return _mostly(talk, {ASK_MORE: asks, REASSURE: 1.0 - asks})


def interrogator(talk: Talk) -> dict[str, float]:
    """Asks and asks about the trouble, and never what lies behind."""
    if talk.told:
        return _to_cause(talk, 0.25, {ASK_MORE: 0.4, INFORM: 0.3, CLOSE: 0.3})
    if talk.trouble:
        return _mostly(talk, {CLOSE: 0.7, REASSURE: 0.3})
    if talk.described == MOST_DESCRIBED:
        return _mostly(talk, {RESTATE: 0.2, ASK_MORE: 0.1, REASSURE: 0.3, INFORM: 0.1, CLOSE: 0.3})
    return _mostly(talk, {ASK_MORE: 0.85, RESTATE: 0.15})


def sharer(talk: Talk) -> dict[str, float]:
    """Talks about itself."""
    if talk.told:
        return _to_cause(talk, 0.25, {DISCLOSE: 0.5, REASSURE: 0.2, CLOSE: 0.3})
    if talk.trouble:
        return _mostly(talk, {CLOSE: 0.7, REASSURE: 0.3})
    if talk.disclosed:
        return _mostly(
            talk, mix((0.15, ANY_ADVICE), (0.85, {DISCLOSE: 0.2, REASSURE: 0.4, CLOSE: 0.4}))
        )
    return _mostly(talk, {DISCLOSE: 0.8, ASK_MORE: 0.2})


def confused(talk: Talk) -> dict[str, float]:
    """Does anything."""
    return any_of(*ACTS)


BEHAVIOURS = {
    "fixer": Behaviour(0.25, fixer),
    "cheerleader": Behaviour(0.20, cheerleader),
    "interrogator": Behaviour(0.25, interrogator),
    "sharer": Behaviour(0.20, sharer),
    "confused": Behaviour(0.10, confused, listens=False),
}

WORLD = World(
    task=TASK,
    prior=PRIOR,
    is_difficult=lambda seeker: seeker.openness == "hiding",
    acts=ACTS,
    replies=REPLIES,
    slots={"trouble": TROUBLES},
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
