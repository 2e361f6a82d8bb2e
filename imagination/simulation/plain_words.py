"""Plain words of people in the place of a world's human: yes, no, "I don't get it".

Simulated humans never say these. A world lists them with the replies that they stand for
(`World.plain_words`). They are compared as a whole: nearness takes "I don't get it" for "I get it".
"""

from __future__ import annotations

import re

YES = (
    "[Yes|Yeah|Yep|Yup|Yes please|Yes I do|Yes I can|Yes it is|Of course|Definitely|Absolutely]",
    "[Yes|] [that|it|this|] sounds [good|great|perfect]",
    "[Great|Perfect|Good|Exactly|Right|Correct|True|I agree]",
)
OKAY = (
    "[Ok|Okay|Sure|Alright|All right|Fine|Fine with me|That is [fine|okay|ok]|Why not|I guess]",
    "[Ok|Okay|Fine|Alright] [then|thanks|thank you]",
)
NO = (
    "[No|Nope|Nah|No thanks|No thank you|Not really|No not really|Not at all|Never]",
    "[No|] [not [for me|now|today]|that is not for me]",
    "[No|] I [do not think so|do not want [that|to]|would rather not|disagree]",
    "[No|] I [can not|could not|do not|will not]",
)
UNDERSTOOD = (
    "[Yes|Ok|Okay|Ah|] [I|] [got|get|understand|understood] [it|that|this] [now|]",
    "[Yes|Ok|Okay|Ah|] I [see|understand|understood] [now|]",
    "[Yes|Ok|Okay|Ah|] [that|it|this|] makes sense [now|]",
    "[Yes|Ok|Okay|Ah|] [that|it|] is [all|] clear [now|]",
)
NOT_UNDERSTOOD = (
    "[No|] I [still|] [do|did|can|could] not [get|understand|follow] [it|that|this|you|] [at all|]",
    "[Huh|What|Pardon|What was that|What do you mean|What does [that|it|this] mean]",
    "I am [still|] [confused|lost|not following|not sure I understand]",
    "[No|] [that|it|this] is [confusing|unclear|not clear]",
    "[No|] [that|it|this|] [makes no|does not make any|does not make] sense [to me|]",
)
DO_NOT_KNOW = (
    "[I have|] no [idea|clue] [at all|]",
    "I do not know",
    "[Dunno|Idk|Who knows|Hard to say|[I am|] not sure]",
)

_WORD = re.compile(r"[^\W_]+")
_SAID_BESIDES = re.compile("sorry|please|hm+|um|uh|oh|well|so|really|actually|honestly")
_SPELLED_OUT = (
    (re.compile(r"\b(do|does|did|is|was|would|could)n'?t\b"), r"\1 not"),
    (re.compile(r"\b(?:can'?t|cannot)\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bi'?m\b"), "i am"),
    (re.compile(r"\b(it|that|what)'s\b"), r"\1 is"),
    (re.compile(r"\bi've\b"), "i have"),
    (re.compile(r"\bi'd\b"), "i would"),
)


def plainly(text: str) -> str:
    """A text as plain words are compared: small letters, no signs, "do not" for "don't"."""
    text = text.lower().replace("’", "'")
    for contraction, words in _SPELLED_OUT:
        text = contraction.sub(words, text)
    words = _WORD.findall(text)
    return " ".join([word for word in words if not _SAID_BESIDES.fullmatch(word)] or words)
