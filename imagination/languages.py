"""Guesses the language of a text by its commonest words, or by its script, and finds its words."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

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
    "danish": "og jeg ikke til også hvad af noget mig dig lidt meget gerne bliver hvis når efter",
    "norwegian": "og jeg ikke til også hva noe meg deg litt mye gjerne blir hvis når etter",
    "finnish": "ja on ei se että minä sinä mutta olen hän mitä niin kun myös vain tämä voi ovat",
    "czech": "je že jsem to ale jak co tak není jsou také když pro už nebo mám bych mně",
    "hungarian": "és hogy nem egy az van ez meg csak mint már volt vagy kell nekem igen nagyon",
    "romanian": "și să nu este cu pe la mai dar sunt eu ce pentru foarte mult am vreau îmi",
    "turkish": "ve bir bu için ben sen ne çok ama değil mi var daha gibi kadar da de ile",
}
# Further common words of a language, which others have, too: they speak for it, but do not tell.
_SHARED = {
    "german": "in an so am es er da man hat mich",
    "french": "on me a tu il la en de un se ne si ce",
    "spanish": "me a no la de en un se le lo si mi al he",
    "italian": "a in la un se le no i io da si al ci",
    "portuguese": "a no na me se de um em as por ao",
    "dutch": "in we me was of had so om te die er op aan als bij zo",
    "polish": "i w z to do o a po by on we za",
    "swedish": "i de han man ut vi så till om jag",
    "danish": "i at det du en med som har den er et de der for have me så vil kan han vi men på om",
    "norwegian": "i at det du en med som har den er et de der for så vil kan han vi men på av om",
    "finnish": "me he ne no oli tai",
    "czech": "a i na se do s o v by on za po mi si ne",
    "hungarian": "a is de ne mi ha be el ki le",
    "romanian": "a o un de în din se o te me că",
    "turkish": "o on a at ya en",
}


def _by_word(*tables: Mapping[str, str]) -> dict[str, set[str]]:
    """Word -> the languages that it is common in."""
    languages = defaultdict(set)
    for language, words in (pair for table in tables for pair in table.items()):
        for word in words.split():
            languages[word].add(language)
    return languages


_TELLING = _by_word(_COMMON)
_USUAL = _by_word(_COMMON, _SHARED)
# Begin of a letter's name in Unicode -> languages that are written so, and in no other way.
_SCRIPTS = {
    "CJK": ("chinese", "japanese"),
    "HIRAGANA": ("japanese",),
    "KATAKANA": ("japanese",),
    "HANGUL": ("korean",),
    "CYRILLIC": ("russian", "ukrainian", "bulgarian"),
    "ARABIC": ("arabic", "persian", "urdu"),
    "DEVANAGARI": ("hindi", "marathi", "nepali"),
    "GREEK": ("greek",),
    "HEBREW": ("hebrew",),
    "THAI": ("thai",),
}
_OF_SCRIPT = {language for languages in _SCRIPTS.values() for language in languages}
_OTHER_NAMES = {
    "mandarin": "chinese",
    "cantonese": "chinese",
    "farsi": "persian",
    "castilian": "spanish",
    "flemish": "dutch",
}
_FEWEST = 8  # words, or letters of a script, from which a guess can be made
_LEAST_COMMON = 3  # words of a text among the commonest of its language
_LEAST_IN_TURN = 5  # the same of a text as short as a turn
_CLEARLY = 2  # times as many common words as of any other language


def known_language(name: str) -> str:
    """The language that texts can be told to be in or not; "" = none of these.

    Args:
        name: Its English name, also with a country or region: "Brazilian Portuguese".
    """
    words = [_OTHER_NAMES.get(word, word) for word in re.findall(r"[^\W\d_]+", name.casefold())]
    return next((word for word in words if word in _COMMON or word in _OF_SCRIPT), "")


@functools.lru_cache(maxsize=64)  # descriptions, asked for with each dialogue
def languages_of(text: str) -> tuple[str, ...]:
    """Languages that a text may be in, in lower case; () where its words do not tell."""
    if by_script := _by_script(text):
        return by_script
    words = _words_of(text)
    if len(words) < _FEWEST:
        return ()
    (best, most), (_, next_most) = _counts(words, _TELLING).most_common(2)
    usual = _counts(words, _USUAL)
    is_clear = most >= max(_LEAST_COMMON, _CLEARLY * next_most)
    return (best,) if is_clear and usual[best] == max(usual.values()) else ()


def speaks_another(text: str, language: str, is_turn: bool = False) -> bool:
    """True where a text is clearly in another language; false where that cannot be told.

    Args:
        text: Words that were said.
        language: English name of the language asked for.
        is_turn: The text is a single turn, of which more is asked.
    """
    wanted = known_language(language)
    if not wanted:
        return False
    if by_script := _by_script(text):
        return wanted not in by_script
    words = _words_of(text)
    if len(words) < _FEWEST:
        return False
    counts = _counts(words, _TELLING)
    most = max(count for name, count in counts.items() if name != wanted)
    least = _LEAST_IN_TURN if is_turn else _LEAST_COMMON
    return most >= max(least, _CLEARLY * _counts(words, _USUAL)[wanted])


def _by_script(text: str) -> tuple[str, ...]:
    """Languages that are written as most of a text's letters are; () for Latin ones."""
    if text.isascii():
        return ()
    letters = [character for character in text if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    for script, languages in _SCRIPTS.items():
        if scripts[script] > len(letters) / 2 and scripts[script] >= _FEWEST:
            has_kana = script == "CJK" and any(scripts[kana] for kana in ("HIRAGANA", "KATAKANA"))
            return ("japanese",) if has_kana else languages
    return ()


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold().replace("’", "'"))


def _counts(words: Iterable[str], languages: Mapping[str, set[str]]) -> Counter[str]:
    """Language -> number of words that are common in it."""
    counts = Counter(dict.fromkeys(_COMMON, 0))
    counts.update(name for word in words for name in languages.get(word, ()))
    return counts


# --- words ----------------------------------------------------------------------------------------

# Chinese and Japanese have no spaces between words, which are two characters long as a rule.
_WITHOUT_SPACES = r"\u3040-\u30ff\u3400-\u9fff"
_OTHER_WORD = rf"[^\W_{_WITHOUT_SPACES}]+"
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]{{1,2}}|{_OTHER_WORD}")
_SIGN = re.compile(rf"[{_WITHOUT_SPACES}]|{_OTHER_WORD}")
_RUN = re.compile(rf"[{_WITHOUT_SPACES}]+|{_OTHER_WORD}")


def words_of(text: str) -> list[str]:
    """The words of a text, of Chinese and Japanese two characters at a time."""
    return _WORD.findall(text.casefold())


def spaced_words(text: str) -> list[str]:
    """Words between spaces, and those of parts that have none between their words."""
    parts = text.split()
    return [word for part in parts for word in (words_of(part) if _is_unspaced(part) else [part])]


def occurs(phrase: str, text: str) -> bool:
    """True where the words of a phrase stand in a text, one behind the other.

    Chinese and Japanese ones may begin anywhere between other characters; a single character, which
    is part of many words, has to stand alone.
    """
    wanted = _signs(phrase)
    if " " in wanted:
        return f" {wanted} " in f" {_signs(text)} "
    return bool(wanted) and wanted in _RUN.findall(text.casefold())


@functools.lru_cache(maxsize=4096)  # values and criteria, asked for with each turn
def _signs(text: str) -> str:
    return " ".join(_SIGN.findall(text.casefold()))


def _is_unspaced(text: str) -> bool:
    return re.search(f"[{_WITHOUT_SPACES}]", text) is not None
