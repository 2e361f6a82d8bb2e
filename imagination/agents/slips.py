"""Slips of a human played by an LLM: turns that no human in this role would say.

Counted on the words of a finished dialogue, and conservatively: a line that is only perhaps a slip
is none. The counts stand beside every result that such a human has a share in.
Farewells are known in English, Chinese and Japanese.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from imagination.dialogue import Dialogue
from imagination.languages import occurs
from imagination.task import Task
from imagination.transcript import USUAL_NAMES, leading_name

SLIPS = ("speaks_for_agent", "reveals_persona", "goes_on_after_end")

# Values that say nothing without their axis: "yes" in an utterance names no persona.
_NEED_THEIR_AXIS = {
    "yes", "no", "none", "true", "false", "high", "low", "medium", "small", "big", "large", "good",
    "bad", "some", "any", "all", "other", "more", "less", "many", "few", "much", "little", "often",
    "never", "always", "first", "last", "new", "old",
    "是", "否", "有", "无", "没有", "高", "低", "大", "小", "好", "坏", "多", "少",
    "はい", "いいえ",
}  # fmt: skip
# Words of a value or an axis that say nothing at all.
_FILLERS = {
    "a", "an", "and", "as", "at", "by", "for", "from", "has", "have", "in", "is", "it", "of", "on",
    "or", "the", "to", "with",
}  # fmt: skip

_LEAD = (
    r"(?:(?:ok|okay|thanks|thank you|thank you so much|thanks a lot|well|alright|all right|great|"
    r"good|anyway|so|and|then|cheers|take care|i have to go|i'm done here|that's all)[\s,.!-]+)*"
)
_FAREWELL = (
    r"(?:good\s?bye|bye(?:[\s-]bye)?|farewell|see (?:you|ya) (?:later|soon|around|tomorrow)|"
    r"talk to you later|have a (?:good|great|nice|lovely) (?:day|evening|night|weekend|one|trip))"
)
# After the farewell at most an address or the like: "Goodbye to all that is a book" is none.
_REST = r"(?:[\s,]+(?:for now|then|now|and thanks|and thank you|everyone|[\w-]+))?\s*[.!]*"
# The same in Chinese and Japanese.
_WIDE_LEAD = (
    r"(?:(?:好的?|嗯|那么?|谢谢[你您]?|非常感谢|多谢|はい|では|じゃあ?|それでは|"
    r"(?:どうも)?ありがとう(?:ございま(?:す|した))?)[，、,\s]*)*"
)
_WIDE_FAREWELL = (
    r"(?:再见|再見|拜拜|回头见|さようなら|さよなら|またね|また(?:明日|今度)|失礼します)"
)
_LEAVES = re.compile(rf"{_LEAD}{_FAREWELL}{_REST}|{_WIDE_LEAD}{_WIDE_FAREWELL}[了啦！。!.～~]*")


def slips(dialogue: Dialogue, task: Task) -> dict[str, int]:
    """Counts the slips of the human in a finished dialogue.

    Args:
        dialogue: With its persona, where it is known.
        task: Its task; gives the roles.

    Returns:
        speaks_for_agent: Human turns with a line or sentence that begins with the agent's role or
            "Agent:".
        reveals_persona: 1 where the first human turn names the values of two axes or more.
        goes_on_after_end: Human turns after one that took leave, further farewells apart.
    """
    texts = [turn.text for turn in dialogue.turns if turn.speaker == "human"]
    return {
        "speaks_for_agent": sum(_speaks_for_agent(text, task) for text in texts),
        "reveals_persona": int(bool(texts) and _named(texts[0], dialogue.persona) >= 2),
        "goes_on_after_end": _turns_after_leaving(texts),
    }


def _speaks_for_agent(text: str, task: Task) -> bool:
    names = {task.agent_role.lower(), *USUAL_NAMES["agent"]} - {task.human_role.lower()}
    return bool(leading_name(text, names))


def _named(text: str, persona: Mapping[str, str]) -> int:
    """Number of axes whose value is named: all its words occur, whole and unchanged."""
    values = {tuple(_value_words(axis, value)) for axis, value in persona.items()}
    return sum(bool(words) and all(occurs(word, text) for word in words) for words in values)


def _value_words(axis: str, value: str) -> list[str]:
    words = [word for word in _words(value) if word not in _FILLERS]
    if words and _NEED_THEIR_AXIS.issuperset(words):
        words += [word for word in _words(axis) if word not in _FILLERS]
    return words


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _turns_after_leaving(texts: list[str]) -> int:
    left = [_takes_leave(text) for text in texts]
    if not any(left):
        return 0
    return left[left.index(True) :].count(False)


def _takes_leave(text: str) -> bool:
    """True where the last sentence is a farewell and nothing but one (not a question)."""
    parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", text.lower())
    sentences = [part.strip() for part in parts if part.strip()]
    return bool(sentences) and _LEAVES.fullmatch(sentences[-1].replace("’", "'")) is not None
