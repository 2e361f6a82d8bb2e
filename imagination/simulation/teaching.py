"""The teaching world: explain a topic to a student of unknown background.

Hidden are the student's level, the style of explanation that helps, patience, and whether the
student overstates what they know (the difficult ones; a concrete check question shows the truth).
Read from the top: who comes, what is said, how students react, what counts, and the behaviours
that write the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from imagination.simulation import plain_words as plain
from imagination.simulation.grammar import Phrasing
from imagination.simulation.world import Behaviour, World, any_of, mix
from imagination.task import Task

LEVELS = ("novice", "intermediate", "expert")
STYLES = ("example", "analogy", "definition")

TASK = Task(
    name="teaching",
    description=(
        "A tutor explains a topic to a student. How much the student knows already, which style "
        "of explanation helps them, and how patient they are is not known beforehand, and some "
        "students claim to know more than they do. The tutor should find out what matters "
        "without asking more than needed, explain at the right level and in the right style, "
        "make sure that the explanation was understood, and bring the lesson to a close."
    ),
    agent_role="tutor",
    human_role="student",
    persona_axes={
        "level": LEVELS,
        "style": STYLES,
        "patience": ("patient", "impatient"),
        "claims": ("honest", "overstates"),
    },
    reward_range=(0.0, 1.0),
    success_reward=0.8,
    max_turns=8,
)

# Who comes


class Student(NamedTuple):
    """A persona: the values of the task's axes."""

    level: str
    style: str
    patience: str
    claims: str


P_LEVEL = {"novice": 0.40, "intermediate": 0.35, "expert": 0.25}
P_STYLE = {"example": 0.40, "analogy": 0.30, "definition": 0.30}
P_IMPATIENT = 0.35
P_OVERSTATES = 0.16  # of those who can: nobody claims more than an expert knows


def _prior() -> dict[Student, float]:
    prior = {}
    for level, p_level in P_LEVEL.items():
        p_overstates = 0.0 if level == "expert" else P_OVERSTATES
        for style, p_style in P_STYLE.items():
            for patience, p_patience in (("patient", 1 - P_IMPATIENT), ("impatient", P_IMPATIENT)):
                p = p_level * p_style * p_patience
                prior[Student(level, style, patience, "honest")] = p * (1 - p_overstates)
                if p_overstates:
                    prior[Student(level, style, patience, "overstates")] = p * p_overstates
    return prior


TOPICS = (
    "recursion", "gravity", "photosynthesis", "inflation", "probability", "evolution",
    "electricity", "vaccines", "black holes", "neural networks", "supply and demand",
    "plate tectonics",
)  # fmt: skip

# What the tutor says

LEVEL_WORDS = {
    "novice": "[from zero|from the beginning|for beginners]",
    "intermediate": "[beyond the basics|at medium level|building on the basics]",
    "expert": "[in full depth|at expert level|in all detail]",
}
STYLE_WORDS = {
    "example": "[by example|with an example|using a concrete case]",
    "analogy": "[by analogy|with an analogy|using a comparison]",
    "definition": "[by definition|with a definition|defined precisely]",
}


def explain(level: str, style: str) -> str:
    """Name of the act that explains at this level in this style."""
    return f"explain_{level}_{style}"


EXPLAIN = {explain(level, style): (level, style) for level in LEVELS for style in STYLES}
ASK_LEVEL, CHECK_LEVEL, ASK_STYLE = QUESTIONS = ("ask_level", "check_level", "ask_style")
CHECK_UNDERSTANDING, WRAP_UP = "check_understanding", "wrap_up"


def _explanation(level: str, style: str) -> Phrasing:
    how, with_what = LEVEL_WORDS[level], STYLE_WORDS[style]
    return Phrasing(
        (
            f"[Sure|Okay|So], [let me explain|here is] {{topic}} {how}, {with_what}.",
            f"[Sure|Okay|So], [let us go through|we look at] it {how}, {with_what}.",
            f"[Let me show you|Here is how] it [works|fits together] {how}, {with_what}.",
        ),
        also=(
            f"[I can|I'd like to] [teach|tell] you [about|] {{topic}} {with_what} {how}",
            f"{how}, {with_what}",
            f"[I'll|I will|Let me] explain [it|this|{{topic}}] {how} {with_what}.",
            f"Here is {{topic}} {with_what}, {how}",
        ),
    )


ACTS = {
    ASK_LEVEL: Phrasing(
        (
            "[Sure|Okay|First], [what|how much] do you [already|] know about {topic}?",
            "[Sure|Okay|First], how [familiar are you|much experience do you have] with it?",
            "[Are you|Would you say you are] a beginner or [an expert|more advanced]?",
            "[Tell me|May I ask] how well you know it [already|so far]?",
        ),
        also=(
            "What is your [level|background|experience] [in|with] {topic}?",
            "Have you [studied|learned|heard] about {topic} before?",
            "[What do|Do] you know anything about it already?",
            "How would you [rate|describe] your knowledge of {topic}?",
            "[What|How much] do you already know about [this|it|the topic]?",
        ),
    ),
    CHECK_LEVEL: Phrasing(
        (
            "[Quick|Small] test: how would you solve this [problem|exercise]?",
            "[Here is|Try] a [small|short] problem on {topic}: [can you solve it|what comes out]?",
            "[Please|First] try this [small|short] exercise: what comes out?",
        ),
        also=(
            "[Can you|Try to] solve this [problem|question|task|exercise] [for me|]?",
            "Let me [test|quiz|check] you with a [question|problem|small exercise] [on {topic}|].",
            "Let me give you a [small|short|quick] [test|problem|exercise] [on {topic}|] first.",
            "[Please solve|Solve] [this|the following|a small] [problem|exercise|question].",
            "What would you answer to this [problem|test question|exercise]?",
        ),
    ),
    ASK_STYLE: Phrasing(
        (
            "[Do you|Would you] [prefer|like] an example, an analogy or a definition?",
            "[What helps you|What works] most: examples, analogies or definitions?",
            "[How|In which way] do you [like|prefer] to learn [new things|something new]?",
            "[Which|What] kind of explanation [helps you most|do you prefer]?",
        ),
        also=(
            "What style of [explanation|teaching|learning] do you [prefer|like]?",
            "[How|In what way] would you like me to explain [it|{topic}]?",
            "How do you learn best?",
            "[Examples, analogies or definitions|An example, an analogy or a definition]?",
            "Should I [use|give] an example, an analogy or a definition?",
            "[Would|Does] an [example|analogy] or [an analogy|a definition] help you [more|most]?",
        ),
    ),
    **{name: _explanation(*how) for name, how in EXPLAIN.items()},
    CHECK_UNDERSTANDING: Phrasing(
        (
            "[Can|Could] you [say|put] [it|that] in your own words [now|please]?",
            "[Now|So], what [is|was] the main idea [in your own words|of {topic}]?",
            "[Did that make sense|Is that clear]? [Tell me|Say] it back.",
        ),
        also=(
            "[Can|Could] you [explain|repeat|summarize] [that|it] back to me?",
            "Did you understand [that|it|everything]?",
            "Does that make sense [to you|]?",
            "How would you explain {topic} to a friend now?",
            "Sum it up in your own words.",
        ),
    ),
    WRAP_UP: Phrasing(
        (
            "[Very good|Well done|Great], that is all [for today|for now]. [Goodbye|Take care]!",
            "[Very good|Well done|Great], we are done [with {topic}|here]. [Goodbye|Take care]!",
            "[Very good|Well done|Great], you can [go on|move on] alone. [Goodbye|Take care]!",
        ),
        also=(
            "[Bye|Goodbye|See you|Have a nice day]!",
            "That is [it|everything] for today, goodbye [and good luck|]!",
            "[Goodbye and|I wish you] good luck [with {topic}|]!",
            "We are done, good luck with {topic}!",
            "Let us stop here. Thanks for learning with me!",
        ),
    ),
}

# What the student says

HELLO = "[Hi|Hello|Hey], can you [teach me about|explain] {topic}?"
WHY = "I [learn best from|really like]"
LIKED = {
    "example": "[examples|concrete examples|worked examples]",
    "analogy": "[analogies|good analogies|comparisons]",
    "definition": "[definitions|exact definitions|precise definitions]",
}
LEVEL_TOLD = {
    "novice": (
        "I am [a complete beginner|totally new to this|just starting out].",
        "I know [almost nothing|very little|nothing at all] [about it|about {topic}].",
    ),
    "intermediate": (
        "I know [the basics|some of it|a bit], but not [more|everything].",
        "I am [somewhere in the middle|not a beginner, but no expert].",
    ),
    "expert": (
        "I [already|] know {topic} [very well|inside out|in detail].",
        "I am [quite advanced|an expert|very experienced] [here|in this].",
    ),
}
LEVEL_SHOWN = {
    "novice": (
        "[Hmm|Sorry], I [have no idea|do not know] [how to start|what that means].",
        "[Hmm|Sorry], I cannot solve [that|any of it].",
    ),
    "intermediate": (
        "I [can do|got] the first half, then I [am stuck|give up].",
        "[Half of it is|The first part is] clear, the [rest|other half] is not.",
    ),
    "expert": (
        "[That is easy|No problem], I [solved|got] [all of it|everything].",
        "[That is easy|No problem], the answer [is clear|follows at once].",
    ),
}

REPLIES = {
    "asks": Phrasing(
        (
            HELLO,
            "[Hi|Hello|Hey], I [want|would like] to [learn|understand] {topic}.",
            "[Hi|Hello|Hey], [what is {topic} about|how does {topic} work]?",
        )
    ),
    "asks_hurried": Phrasing(
        (
            f"{HELLO} I am [in a hurry|short of time].",
            "[Hi|Hello|Hey], quick question about {topic}, I am [in a hurry|short of time].",
        )
    ),
    **{
        f"asks_{style}": Phrasing((f"{HELLO} {WHY} {liked}.", f"{WHY} {liked}. {HELLO}"))
        for style, liked in LIKED.items()
    },
    **{f"claims_{level}": Phrasing(told) for level, told in LEVEL_TOLD.items()},
    **{f"shows_{level}": Phrasing(shown) for level, shown in LEVEL_SHOWN.items()},
    **{
        f"likes_{style}": Phrasing(
            (
                f"[I prefer|I like|Best would be] {liked}[, please|].",
                f"[For me it is|Usually it is] {liked} that [help|work].",
            )
        )
        for style, liked in LIKED.items()
    },
    "content": Phrasing(
        (
            "[Ah|Oh|Nice], that [helps a lot|is just right for me].",
            "[Ah|Oh|Nice], now [I see|I get it|it makes sense].",
        )
    ),
    "lost": Phrasing(
        (
            "[Wait|Sorry], that [was|is] [too hard|far too advanced] for me.",
            "[Wait|Sorry], you lost me, [I did not follow|that went over my head].",
        )
    ),
    "bored": Phrasing(
        (
            "[Hmm|Well], I [knew|know] [all of that|that] [already|before].",
            "[Hmm|Well], that is [too easy|too simple] for me.",
        )
    ),
    "other_style": Phrasing(
        (
            "[Nearly|Almost], but could you [say|explain] it [differently|another way]?",
            "[Nearly|Almost], but this way [is not for me|does not help me].",
        )
    ),
    **{
        f"other_style_{style}": Phrasing(
            (
                f"[Nearly|Almost], but I [need|would rather have] {liked}.",
                f"[Nearly|Almost], but {liked} would [help|work better].",
            )
        )
        for style, liked in LIKED.items()
    },
    "can_say": Phrasing(
        (
            "[Yes|Sure], [one part leads to the next|each part has its job].",
            "[Yes|Sure], I could [explain|teach] it to a friend.",
        )
    ),
    "cannot_say": Phrasing(
        (
            "[No|Honestly], I could not [say it|explain it] myself [yet|].",
            "[No|Honestly], I would [mix it up|get it wrong].",
        )
    ),
    "already_said": Phrasing(
        (
            "[You know that already|We had that already], [go on|let us move on].",
            "[Again|Why that again]? [We had that already|I answered that].",
        )
    ),
    "puzzled": Phrasing(
        (
            "[Sorry|Excuse me], I do not [understand|follow] what you [mean|are saying].",
            "[Sorry|Excuse me], what [do you mean|was that]?",
        )
    ),
    "leaves": Phrasing(
        (
            "This is [too long|too slow] for me, I [have to go|am leaving].",
            "[Enough|That is enough], I will [look it up|learn it] [myself|elsewhere].",
        )
    ),
    "thanks": Phrasing(("[Thank you|Thanks], that was [very helpful|a good lesson]!",)),
    "unsure": Phrasing(("[Okay|Fine], but I [am still unsure|still have doubts].",)),
}
# What people mean who are plainer than a student: the first of these that can be said then.
PLAIN_WORDS = {
    "lost": (*plain.NOT_UNDERSTOOD, *plain.NO, *plain.DO_NOT_KNOW),
    "other_style": (*plain.NOT_UNDERSTOOD, *plain.NO, *plain.DO_NOT_KNOW),
    "cannot_say": (*plain.NO, *plain.NOT_UNDERSTOOD, *plain.DO_NOT_KNOW),
    "content": (*plain.UNDERSTOOD, *plain.YES, *plain.OKAY),
    "can_say": (*plain.YES, *plain.OKAY, *plain.UNDERSTOOD),
    "claims_novice": (*plain.NO, *plain.DO_NOT_KNOW),
    "shows_novice": (*plain.NO, *plain.DO_NOT_KNOW, *plain.NOT_UNDERSTOOD),
    "shows_expert": (*plain.YES, *plain.UNDERSTOOD),
    "thanks": (*plain.YES, *plain.OKAY, *plain.UNDERSTOOD),
    "unsure": (*plain.NO, *plain.NOT_UNDERSTOOD, *plain.DO_NOT_KNOW),
    "puzzled": plain.NOT_UNDERSTOOD,
}

# How a conversation goes


class Lesson(NamedTuple):
    """State of a lesson: the facts that replies and rating depend on."""

    hurried: bool = False
    claimed: str | None = None
    shown: str | None = None
    style: str | None = None
    explained: tuple[str, str] | None = None
    reaction: str | None = None  # content, lost, bored or other_style
    confirmed: bool = False
    questions: int = 0  # in a row
    misses: int = 0
    annoyances: int = 0
    end: str | None = None  # wrapped or left

    @property
    def level_known(self) -> bool:
        return self.shown is not None or self.reaction in ("content", "other_style")


QUESTIONS_BORNE = {"patient": 4, "impatient": 2}
TROUBLE_BORNE = {"patient": 3, "impatient": 1}
P_HURRY_SAID = 0.4
P_STYLE_HINTED = 0.3
P_STYLE_NAMED = 0.5


def opening(student: Student) -> dict[str, float]:
    """Distribution of the student's first reply; hurry or a liking may show at once."""
    p_hurried = P_HURRY_SAID if student.patience == "impatient" else 0.0
    return {
        "asks": 1.0 - p_hurried - P_STYLE_HINTED,
        "asks_hurried": p_hurried,
        f"asks_{student.style}": P_STYLE_HINTED,
    }


def begin(reply: str) -> Lesson:
    """The state after the first words."""
    style = reply.removeprefix("asks_")
    return Lesson(hurried=reply == "asks_hurried", style=style if style in STYLES else None)


def reply(student: Student, lesson: Lesson, act: str | None) -> dict[str, float]:
    """The student's answer; whoever has borne enough leaves instead."""
    answers: dict[str, float] = {}
    for answer, probability in _answer(student, lesson, act).items():
        if _has_enough(student, advance(lesson, act, answer)):
            answer = "leaves"
        answers[answer] = answers.get(answer, 0.0) + probability
    return answers


def _has_enough(student: Student, lesson: Lesson) -> bool:
    return lesson.end is None and (
        lesson.questions > QUESTIONS_BORNE[student.patience]
        or lesson.misses + lesson.annoyances > TROUBLE_BORNE[student.patience]
    )


def _answer(student: Student, lesson: Lesson, act: str | None) -> dict[str, float]:
    if act is None:
        return {"puzzled": 1.0}
    if is_needless(lesson, act):
        return {"already_said": 1.0}
    if act == ASK_LEVEL:
        return _claim(student)
    if act == CHECK_LEVEL:
        return {f"shows_{student.level}": 1.0}
    if act == ASK_STYLE:
        return {f"likes_{student.style}": 1.0}
    if act == CHECK_UNDERSTANDING:
        return {"can_say" if lesson.reaction == "content" else "cannot_say": 1.0}
    if act == WRAP_UP:
        return {"thanks" if lesson.reaction == "content" else "unsure": 1.0}
    return _reaction(student, *EXPLAIN[act])


def is_needless(lesson: Lesson, act: str) -> bool:
    """True where the act asks for something that was said or shown already."""
    return (
        (act == ASK_LEVEL and (lesson.claimed is not None or lesson.level_known))
        or (act == CHECK_LEVEL and lesson.level_known)
        or (act == ASK_STYLE and (lesson.style is not None or lesson.reaction == "content"))
        or (act == CHECK_UNDERSTANDING and lesson.confirmed)
    )


def _claim(student: Student) -> dict[str, float]:
    if student.claims == "honest":
        return {f"claims_{student.level}": 1.0}
    if student.level == "intermediate":
        return {"claims_expert": 1.0}
    return {"claims_intermediate": 0.5, "claims_expert": 0.5}


def _reaction(student: Student, level: str, style: str) -> dict[str, float]:
    too_high = LEVELS.index(level) - LEVELS.index(student.level)
    if too_high > 0:
        return {"lost": 1.0}
    if too_high < 0:
        return {"bored": 1.0}
    if style == student.style:
        return {"content": 1.0}
    return {"other_style": 1.0 - P_STYLE_NAMED, f"other_style_{student.style}": P_STYLE_NAMED}


def advance(lesson: Lesson, act: str | None, reply: str) -> Lesson:
    """The state after the tutor's act and the student's reply to it."""
    if reply == "leaves":
        return lesson._replace(end="left")
    if reply in ("puzzled", "already_said", "cannot_say"):
        return lesson._replace(annoyances=lesson.annoyances + 1)
    if act == WRAP_UP:
        return lesson._replace(end="wrapped")
    kind, _, value = reply.rpartition("_")
    if act in EXPLAIN:
        reaction = "other_style" if reply.startswith("other_style") else reply
        return lesson._replace(
            explained=EXPLAIN[act],
            reaction=reaction,
            style=value if kind == "other_style" else lesson.style,
            confirmed=False,
            questions=0,
            misses=lesson.misses + (reaction != "content"),
        )
    if act == CHECK_UNDERSTANDING:
        return lesson._replace(confirmed=True)
    field = {ASK_LEVEL: "claimed", CHECK_LEVEL: "shown", ASK_STYLE: "style"}[act]
    return lesson._replace(**{field: value, "questions": lesson.questions + 1})


def situation(lesson: Lesson) -> Lesson:
    """State that replies and rating depend on: that something is known, not its content."""
    return lesson._replace(
        hurried=False,
        claimed=lesson.claimed and "said",
        shown=lesson.shown and "shown",
        style=lesson.style and "said",
        explained=None,
    )


def mood(lesson: Lesson, act: str | None) -> Lesson:
    """Part of the state that the reply to this act depends on."""
    lesson = situation(lesson)
    return lesson._replace(misses=0, annoyances=lesson.misses + lesson.annoyances)


# What counts

LEVEL_MATCHED, STYLE_MATCHED, CONFIRMED, WRAPPED = 0.40, 0.25, 0.15, 0.20
LEVEL_MISSED = 0.10
COST_MISS, COST_ANNOYANCE, COST_TEST = 0.20, 0.06, 0.02
KEPT_WHEN_LEAVING = 0.5


def rating(student: Student, lesson: Lesson) -> float:
    """Rating of a lesson: the gain in understanding, less the bother.

    The student's reaction to the last explanation says already how well it fitted.
    """
    gain = 0.0
    if lesson.reaction in ("content", "other_style"):
        gain += LEVEL_MATCHED
        gain += STYLE_MATCHED * (lesson.reaction == "content")
        gain += CONFIRMED * lesson.confirmed
        gain += WRAPPED * (lesson.end == "wrapped")
    elif lesson.reaction is not None:
        gain += LEVEL_MISSED
    if lesson.end == "left":
        gain *= KEPT_WHEN_LEAVING
    return max(0.0, gain - _costs(lesson))


def _costs(lesson: Lesson) -> float:
    return (
        COST_MISS * lesson.misses
        + COST_ANNOYANCE * lesson.annoyances
        + COST_TEST * (lesson.shown is not None)
    )


def ceiling(student: Student, lesson: Lesson) -> float:
    """The best rating that can still follow: what was a bother stays one."""
    return max(0.0, 1.0 - _costs(lesson))


# The behaviours that write the data. Each does some things well; none does all.


def _explain(levels: Mapping[str, float], styles: Mapping[str, float]) -> dict[str, float]:
    return {
        explain(level, style): p_level * p_style
        for level, p_level in levels.items()
        for style, p_style in styles.items()
    }


def _style(lesson: Lesson, used: float, habit: Mapping[str, float]) -> dict[str, float]:
    """The style that was heard with probability `used`, otherwise the habit."""
    if lesson.style is None:
        return dict(habit)
    return mix((used, {lesson.style: 1.0}), (1.0 - used, habit))


def _finish(lesson: Lesson, check: float, wrap: float) -> dict[str, float]:
    """Checks understanding (once) with one probability, else wraps up or goes on asking."""
    if lesson.confirmed:
        check = 0.0
    idle = any_of(ASK_LEVEL, CHECK_LEVEL, ASK_STYLE)
    return mix(
        (check, {CHECK_UNDERSTANDING: 1.0}),
        ((1.0 - check) * wrap, {WRAP_UP: 1.0}),
        ((1.0 - check) * (1.0 - wrap), idle),
    )


def _nearer_level(lesson: Lesson) -> str:
    """One level further from the last explanation, in the direction of the complaint."""
    step = {"lost": -1, "bored": 1}.get(lesson.reaction, 0)
    return LEVELS[max(0, min(len(LEVELS) - 1, LEVELS.index(lesson.explained[0]) + step))]


def _explain_again(lesson: Lesson) -> dict[str, float]:
    """Takes the complaint about the last explanation to heart."""
    tried = lesson.explained[1]
    if lesson.reaction == "other_style":
        others = any_of(*(style for style in STYLES if style != tried))
        return _explain({lesson.explained[0]: 1.0}, _style(lesson, 0.8, others))
    return _explain({_nearer_level(lesson): 1.0}, _style(lesson, 0.5, {tried: 1.0}))


def lecturer(lesson: Lesson) -> dict[str, float]:
    """Explains at once, at a level and in a style of its own liking; ends well."""
    if lesson.explained is None:
        habit = {"definition": 0.5, "example": 0.3, "analogy": 0.2}
        levels = {"novice": 0.3, "intermediate": 0.45, "expert": 0.25}
        return _explain(levels, _style(lesson, 0.7, habit))
    if lesson.reaction == "content":
        return _finish(lesson, check=0.7, wrap=0.9)
    return mix((0.6, _explain_again(lesson)), (0.4, _finish(lesson, check=0.2, wrap=0.9)))


def believer(lesson: Lesson) -> dict[str, float]:
    """Asks for the level and believes the answer; often forgets the style, or to check."""
    if lesson.explained is None:
        if lesson.claimed is None:
            return mix((0.9, {ASK_LEVEL: 1.0}), (0.1, _explain(P_LEVEL, P_STYLE)))
        ask_style = 0.0 if lesson.style else 0.45
        habit = {"example": 0.6, "analogy": 0.2, "definition": 0.2}
        levels = mix((0.9, {lesson.claimed: 1.0}), (0.1, P_LEVEL))
        go = _explain(levels, _style(lesson, 0.85, habit))
        return mix((ask_style, {ASK_STYLE: 1.0}), (1.0 - ask_style, go))
    if lesson.reaction == "content":
        return _finish(lesson, check=0.4, wrap=0.7)
    return mix((0.3, _explain_again(lesson)), (0.7, _finish(lesson, check=0.3, wrap=0.7)))


def questionnaire(lesson: Lesson) -> dict[str, float]:
    """Asks and asks, which loses the impatient; then uses most of the answers."""
    if lesson.explained is None:
        answers = (lesson.claimed, lesson.shown, lesson.style)
        unasked = [q for q, answer in zip(QUESTIONS, answers, strict=True) if answer is None]
        heard_level = lesson.shown or lesson.claimed
        levels = mix((0.85, {heard_level: 1.0}), (0.15, P_LEVEL)) if heard_level else P_LEVEL
        go = _explain(levels, _style(lesson, 0.85, P_STYLE))
        if not unasked:
            return mix((0.8, go), (0.2, any_of(*QUESTIONS)))
        p_go = {1: 0.3, 2: 0.1, 3: 0.05}[len(unasked)]
        return mix((p_go, go), (0.95 - p_go, any_of(*unasked)), (0.05, any_of(*QUESTIONS)))
    if lesson.reaction == "content":
        return _finish(lesson, check=0.6, wrap=0.7)
    return mix((0.3, _explain_again(lesson)), (0.7, _finish(lesson, check=0.5, wrap=0.7)))


def examiner(lesson: Lesson) -> dict[str, float]:
    """Tests the level and uses what it sees; style by habit; tests on instead of ending."""
    if lesson.explained is None:
        if lesson.shown is None:
            return {CHECK_LEVEL: 0.9, ASK_LEVEL: 0.1}
        ask_style = 0.0 if lesson.style else 0.35
        habit = {"definition": 0.5, "analogy": 0.3, "example": 0.2}
        levels = mix((0.9, {lesson.shown: 1.0}), (0.1, P_LEVEL))
        go = _explain(levels, _style(lesson, 0.8, habit))
        return mix(
            (ask_style, {ASK_STYLE: 1.0}),
            (0.15, {CHECK_LEVEL: 1.0}),
            (0.85 - ask_style, go),
        )
    if lesson.reaction == "other_style":
        return mix((0.5, _explain_again(lesson)), (0.5, _finish(lesson, check=0.2, wrap=0.4)))
    return mix((0.35, {CHECK_LEVEL: 1.0}), (0.65, _finish(lesson, check=0.4, wrap=0.6)))


def confused(lesson: Lesson) -> dict[str, float]:
    """Does anything, and asks again what it has asked."""
    if lesson.questions:
        return mix((0.3, any_of(*QUESTIONS)), (0.7, any_of(*ACTS)))
    return any_of(*ACTS)


BEHAVIOURS = {
    "lecturer": Behaviour(0.20, lecturer),
    "believer": Behaviour(0.25, believer),
    "questionnaire": Behaviour(0.25, questionnaire),
    "examiner": Behaviour(0.20, examiner),
    "confused": Behaviour(0.10, confused, listens=False),
}

WORLD = World(
    task=TASK,
    prior=_prior(),
    is_difficult=lambda student: student.claims == "overstates",
    acts=ACTS,
    replies=REPLIES,
    slots={"topic": TOPICS},
    opening=opening,
    begin=begin,
    reply=reply,
    advance=advance,
    is_over=lambda lesson: lesson.end is not None,
    rating=rating,
    behaviours=BEHAVIOURS,
    situation=situation,
    mood=mood,
    ceiling=ceiling,
    plain_words=PLAIN_WORDS,
)
