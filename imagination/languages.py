"""Guesses the language of a text by its commonest words, or by its script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Words that are common in one of these languages and rare in the others.
_COMMON = {
    "english": "the and is are was you your it that this with have for not what would do my of to "
    "on from about which who they can i'm don't it's i a in we me be no an as at if so by but all",
    "german": "der die das und ist nicht ich du sie wir mit für auf ein eine auch aber wie noch "
    "zu was den dem im nach kann möchte",
    "french": "le les et est vous nous je pas une des du que qui avec pour dans mais c'est sur",
    "spanish": "el los las y es usted yo una del que con para pero muy como está por qué más",
    "italian": "il gli e è sono che non una della con per ma molto come anche questo di mi ho",
    "portuguese": "o os e é você eu uma do da que com para mas muito como não está isso mais",
    "dutch": "de het en is een ik jij je niet met voor maar ook wat hoe van dat dit nog zijn",
    "polish": "jest nie się na że jak ale czy już tak co ja dla mnie przez bardzo może",
    "swedish": "och är det jag du inte en ett med för men som på har vad kan den att av om",
    "turkish": "ve bir bu için ben sen ne çok ama değil mi var daha gibi kadar da de ile",
}
_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
# Begin of a letter's name in Unicode -> languages that are written so.
_SCRIPTS = {
    "CJK": ("chinese", "japanese"),
    "HIRAGANA": ("japanese",),
    "KATAKANA": ("japanese",),
    "HANGUL": ("korean",),
    "CYRILLIC": ("russian", "ukrainian", "bulgarian", "serbian"),
    "ARABIC": ("arabic", "persian", "urdu"),
    "DEVANAGARI": ("hindi", "marathi", "nepali"),
    "GREEK": ("greek",),
    "HEBREW": ("hebrew",),
    "THAI": ("thai",),
}
_OF_SCRIPT = {language for languages in _SCRIPTS.values() for language in languages}
_FEWEST = 8  # words from which a guess can be made
_LEAST_COMMON = 3  # of them among the commonest of the language
_CLEARLY = 2  # times as many common words as of any other language


def is_known(language: str) -> bool:
    """True for a language that texts can be told to be in or not."""
    return language.casefold() in _WORDS or language.casefold() in _OF_SCRIPT


def languages_of(text: str) -> tuple[str, ...]:
    """Languages that a text may be in, in lower case; () where its words do not tell."""
    letters = [character for character in text if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    for script, languages in _SCRIPTS.items():
        if scripts[script] > len(letters) / 2:
            has_kana = script == "CJK" and any(scripts[kana] for kana in ("HIRAGANA", "KATAKANA"))
            return ("japanese",) if has_kana else languages
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold())
    if len(words) < _FEWEST:
        return ()
    counts = Counter({name: sum(word in own for word in words) for name, own in _WORDS.items()})
    (best, most), (_, next_most) = counts.most_common(2)
    return (best,) if most >= max(_LEAST_COMMON, _CLEARLY * next_most) else ()


def speaks_another(text: str, language: str) -> bool:
    """True where a text is clearly in another language; false where that cannot be told."""
    found = languages_of(text) if is_known(language) else ()
    return bool(found) and language.casefold() not in found
