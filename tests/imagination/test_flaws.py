"""Flaws of imagined dialogues: found, counted in the dataset card, rewritten or kept apart."""

import pytest
from imagination_client import TASK, FakeClient, failing_first_time, imagine, words

from ilql_jax.settings import SettingError
from imagination.dataset_card import dataset_card, warnings_of
from imagination.dialogue import Dialogue, Turn
from imagination.engine import EngineConfig, EngineError
from imagination.flaws import (
    ECHOES,
    NAMES_PERSONA,
    NO_END,
    OTHER_LANGUAGE,
    RECITES,
    REPEATS,
    SPEAKS_FOR_OTHER,
    WISHES,
    flaws,
)
from imagination.languages import languages_of, speaks_another

PERSONA = {"use": "mountain trails", "purse": "tight budget", "manner": "evasive"}
HELLO = ("I want to buy a bicycle.", "What do you want it for?")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((*HELLO, "Mountain trails, mostly."), ()),
        ((*HELLO, "Hm.", "What do you want it for?", "Bye."), (REPEATS,)),
        ((*HELLO, "i want to buy a bicycle!"), (REPEATS,)),
        (("What is the other one?", "What other one is there?", "Bye."), ()),
        (("What is the other one?", "What is the other one?", "Bye."), (ECHOES,)),
        (("Yes, please.", "This one?", "Yes, please."), ()),
        ((*HELLO, "Trails.\\nSeller: Then take this one!"), (SPEAKS_FOR_OTHER,)),
        ((HELLO[0], "User: for the mountains.", "Right."), (SPEAKS_FOR_OTHER,)),
        # In the midst of a turn, as in a line of its own.
        ((HELLO[0], "Sure! Customer: For the trails.", "Right."), (SPEAKS_FOR_OTHER,)),
        (("I need a bicycle... (Seller: Of course) Thanks!", "Well.", "Bye."), (SPEAKS_FOR_OTHER,)),
        ((HELLO[0], "There is one more thing a customer: may want.", "Oh."), ()),
        # A sentence within other words; what is polite or short may be said again.
        (("I see. I want to buy a bicycle.", "Fine.", "Oh. I want to buy a bicycle."), (REPEATS,)),
        (("Thank you so much! Hello.", "Hi.", "Bye. Thank you so much!"), ()),
        (("I like this one. I like this one. Do you?", "Yes.", "Good."), (REPEATS,)),
        (("I want one. I want one. I want one.", "Yes.", "Good."), (REPEATS,)),
        (("I want one. I want one!", "Thank you! Thank you! Thank you!", "Good."), ()),
        ((HELLO[0], "Fine. I want to buy a bicycle. And you?", "Yes."), (ECHOES,)),
        (("I ride mountain trails on a tight budget.", "Take this.", "Fine."), (NAMES_PERSONA,)),
        (("Mountain trails, please.", "What else?", "A tight budget."), (NAMES_PERSONA,)),
        (("I am evasive.", "What for?", "Mountain trails."), ()),  # one phrase, and one word
        (HELLO, (NO_END,)),
        ((*HELLO, "For the trails. Is it dear?"), (NO_END,)),
        (("A concrete bicycle is named.", "This one.", "Good."), (RECITES,)),
        ((f"1. You meet the {TASK.agent_role}, speak first.", "Hello.", "Bye."), (RECITES,)),
        # As a small model wrote them once a critic had asked for more.
        (("The human's feeling at the end of the dialogue fits.", "Oh.", "Yes."), (RECITES,)),
        ((HELLO[0], "The human's hidden traits: mountains.", "Well."), (RECITES,)),
        ((HELLO[0], "I sell in a small shop. How do you ride?", "Up hills."), ()),
        (
            (HELLO[0], "You give your full answer or best guess straight away.", "Well."),
            (RECITES,),
        ),
        (
            (
                "Ich suche ein Fahrrad, das nicht zu teuer ist.",
                "Das ist ein gutes Rad, und es ist auch für die Berge.",
                "Das nehme ich, aber ich weiß noch nicht, wie ich es nach Hause bringe.",
            ),
            (OTHER_LANGUAGE,),
        ),
    ],
)
def test_flaws_are_found_by_the_words(texts, found):
    assert tuple(flaws(said(*texts), TASK)) == found


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("我想买一辆自行车。", "好的。", "我想买一辆自行车。"), REPEATS),
        (("新しい自転車を買いたいです。", "新しい自転車を買いたいです。", "はい。"), ECHOES),
        (("我想买车。", "非常感谢！", "好。非常感谢！"), None),  # polite
        (("我想买车。", "好。", "这辆多少钱？"), NO_END),
    ],
)
def test_words_without_spaces_between_them_are_told_too(texts, found):
    assert {*flaws(said(*texts), TASK)} - {OTHER_LANGUAGE} == ({found} if found else set())


def said(*texts, persona=PERSONA, **source):
    turns = [
        Turn(speaker, text.replace("\\n", "\n"))
        for speaker, text in zip(("human", "agent") * 3, texts, strict=False)
    ]
    return Dialogue("d", "t", tuple(turns), persona=persona, source=source)


@pytest.mark.parametrize(
    ("persona", "texts", "is_found"),
    [
        ({"taste": "sweet things"}, ("Hello.", "What do you like?", "Sweet things."), True),
        ({"taste": "sweet things"}, ("Hello.", "What do you like?", "Things with sugar."), False),
        ({"taste": "sweet"}, ("Hello.", "What do you like?", "Something sweet."), False),  # asked
        ({"taste": "sweet"}, ("I like it sweet.", "Tea?", "Fine."), True),
        ({"taste": "sweet", "time": "none"}, ("I like it sweet.", "Tea?", "Fine."), False),
        ({"taste": "sweet things", "time": "in a hurry"}, ("Hello.", "Tea?", "Fine."), False),
        ({}, ("I like it sweet.", "Tea?", "Fine."), False),
        ({"mood": "容易焦虑", "taste": "博物馆"}, ("我容易焦虑，也喜欢博物馆。", "好。"), True),
        ({"mood": "焦虑", "taste": "博物馆"}, ("我很焦急。", "好。", "这博物多馆。"), False),
    ],
)
def test_traits_named_over_several_turns_or_the_only_one_are_named_outright(
    persona, texts, is_found
):
    assert (NAMES_PERSONA in flaws(said(*texts, persona=persona), TASK)) == is_found


GERMAN = "Ich suche ein Rad, das nicht zu teuer ist, und es ist für die Berge."
ENGLISH = "I would like to know what you have for the mountains, and what it would cost."


@pytest.mark.parametrize(
    ("language", "texts", "is_found"),
    [
        ("Danish", (ENGLISH, ENGLISH, "Bye."), True),
        ("Brazilian Portuguese", (ENGLISH, ENGLISH, "Bye."), True),
        ("English (UK)", (ENGLISH, ENGLISH, "Bye."), False),
        ("Swiss German", (GERMAN, "Gern.", "Danke."), False),
        ("Klingon", (ENGLISH, ENGLISH, "Bye."), False),
        # One turn among others.
        ("English", (ENGLISH, f"{ENGLISH} {ENGLISH}", GERMAN, ENGLISH, f"{ENGLISH} Yes."), True),
        ("", (ENGLISH, f"{ENGLISH} {ENGLISH}", GERMAN, ENGLISH, f"{ENGLISH} Yes."), True),
        ("English", (ENGLISH, "What is α?", "No, a β."), False),  # few letters are no language
    ],
)
def test_turns_in_another_language_than_asked_for_are_found(language, texts, is_found):
    assert (OTHER_LANGUAGE in flaws(said(*texts, language=language), TASK)) == is_found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I would like to know what you have for the mountains.", ("english",)),
        ("Ich weiß noch nicht, was das für ein Rad ist.", ("german",)),
        ("Je ne sais pas, mais c'est pour les vacances avec vous.", ("french",)),
        ("No sé qué es, pero me gusta mucho el color y la forma.", ("spanish",)),
        ("山に登るための自転車が欲しいです。", ("japanese",)),
        ("Jag vet inte vad det är, men jag tycker om färgen.", ("swedish",)),
        ("Bicycle, please.", ()),
    ],
)
def test_languages_are_told_by_common_words(text, found):
    assert languages_of(text) == found
    assert speaks_another(text, "German") == (bool(found) and found != ("german",))
    assert not speaks_another(text, "Klingon")  # nothing is known of it


@pytest.mark.parametrize(
    "text",
    [
        "Det er en god cykel, og den har 21 gear, så den kan klare bakkerne.",  # not Swedish
        "Szukamy hotelu na tydzień, by dojechać tam do wieczora i odpocząć.",  # not English
    ],
)
def test_words_that_languages_share_tell_none_of_them(text):
    assert languages_of(text) == ()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("Danish", "Godmorgen, jeg vil gerne have en kop kaffe, men den må ikke være for varm."),
        ("Norwegian", "God morgen, jeg vil gjerne ha en kopp kaffe med melk, men ikke for varm."),
        ("Polish", "Szukamy hotelu nad morzem, by dojechać tam do wieczora i odpocząć po pracy."),
        ("Finnish", "En tiedä, mikä se on, mutta minä pidän väristä ja haluan sen."),
        ("Czech", "Hledáme hotel u moře na týden v červenci, ale aby nebyl moc drahý."),
        ("Hungarian", "Nem tudom, hogy mi az, de a színe nagyon tetszik nekem."),
        ("Romanian", "Căutăm un hotel la mare pentru o săptămână în iulie, nu foarte scump."),
        ("Flemish", "Ik weet niet wat het is, maar ik vind de kleur mooi."),
        ("Mandarin", "我想买一辆自行车去山里骑。"),
    ],
)
def test_no_language_is_taken_for_another(language, text):
    assert not speaks_another(text, language)
    assert not speaks_another(text, language, is_turn=True)
    assert speaks_another(ENGLISH, language, is_turn=True)


@pytest.mark.parametrize(
    ("languages", "row"),
    [
        (("Klingon",) * 4, "not checked |  |"),
        (("Klingon", "German", "German", "German"), "0 of 3 checked | 0.0% |"),
        (("German",) * 4, "0 | 0.0% |"),
    ],
)
def test_the_card_says_where_the_language_was_not_checked(languages, row):
    dialogues = [
        said("Guten Tag.", "Hallo.", "Danke.", language=language, kind="imagined")
        for language in languages
    ]
    assert f"| {OTHER_LANGUAGE} | {row}" in dataset_card(dialogues, TASK)


def test_the_card_counts_flaws_of_what_an_llm_wrote():
    imagined = imagine(FakeClient(), dialogues=4).dialogues  # all of them say the same again
    card = dataset_card(imagined, TASK)
    assert "## Flaws" in card and f"| {REPEATS} | 4 | 100.0% |" in card
    of_world = [Dialogue("d", "t", imagined[0].turns, 1.0, source={"kind": "simulated"})]
    assert "## Flaws" not in dataset_card(of_world, TASK)


def never_good(request):
    return request.schema.placeholder().failing() if request.step == "engine/critique" else None


def saying(*texts):
    """Answers scripts with these lines, and whoever rewrites with others that have no flaw."""

    def answer(request):
        if request.step == "engine/script":
            sides = ("human", "agent") * len(texts)
            turns = [{"speaker": s, "text": t} for s, t in zip(sides, texts, strict=False)]
            return request.schema(turns=turns)
        return failing_first_time()(request)

    return answer


SCRIPT = {"way": "script", "rewards": "outcome"}
FLAWED = (*HELLO, "Hm.", "What do you want it for?", "Bye.")


def test_flaws_are_rewritten_with_what_was_found_as_the_reason():
    client = FakeClient(saying(*FLAWED))
    imagined = imagine(client, dialogues=2, **SCRIPT, flaws="rewrite")
    (refine, _) = [words(r) for r in client.requests if r.step == "engine/refine"]
    assert WISHES[REPEATS] in refine and "'What do you want it for?'" in refine
    for dialogue in imagined.dialogues:
        assert dialogue.source["critique"]["changed"] == [[REPEATS]]
        assert dialogue.turns[1].text == "A rewritten answer." and not dialogue.source["rejected"]
    assert not imagined.rejected


def test_flaws_that_stay_are_rewritten_no_more_than_so_often_and_kept_apart():
    def stubborn(request):
        if request.step == "engine/refine":
            turns = zip(("human", "agent") * 3, FLAWED, strict=False)
            return request.schema(turns=[{"speaker": s, "text": t} for s, t in turns])
        fine = request.label == "advice-0"
        texts = (*HELLO, "Trails.") if fine else FLAWED
        return saying(*texts)(request)

    client = FakeClient(stubborn)
    settings = {**SCRIPT, "flaws": "rewrite", "critique_rounds": 2}
    imagined = imagine(client, dialogues=2, **settings)
    assert client.steps()["engine/refine"] == 2
    assert [d.id for d in imagined.dialogues] == ["advice-0"]
    assert [(d.id, d.source["rejected"]) for d in imagined.rejected] == [("advice-1", [REPEATS])]
    card = dataset_card(imagined.dialogues, TASK, rejected=imagined.rejected)
    assert card.startswith("# advice: 1 dialogues") and "1 of 2 dialogues are in rejected" in card
    assert f"| {REPEATS} | 1 |" in card.split("## Kept apart")[1]


def test_flaws_are_dropped_where_that_is_set():
    with pytest.raises(EngineError, match=rf"None of 2 .*{REPEATS} \(2 times\).*flaws=count"):
        imagine(FakeClient(saying(*FLAWED)), dialogues=2, **SCRIPT, flaws="drop")
    with pytest.raises(SettingError, match="where critique_rounds is 0"):
        EngineConfig(dialogues=1, critique_rounds=0, flaws="rewrite")


def test_what_fails_its_critique_is_kept_apart_unless_told():
    def strict(request):
        if request.step == "engine/critique" and request.label != "advice-0":
            return request.schema.placeholder().failing()
        return None

    imagined = imagine(FakeClient(strict), dialogues=3)
    assert [d.id for d in imagined.dialogues] == ["advice-0"]
    assert [d.id for d in imagined.rejected] == ["advice-1", "advice-2"]
    assert TASK.criteria[0] in imagined.rejected[0].source["rejected"]
    assert "2 kept apart" in imagined.line()
    kept = imagine(FakeClient(strict), dialogues=3, failed_critique="keep")
    assert len(kept.dialogues) == 3 and not kept.rejected
    with pytest.raises(EngineError, match="failed_critique=keep"):
        imagine(FakeClient(never_good), dialogues=2)


@pytest.mark.parametrize(
    ("judge", "warned"), [((1, 0.8, 0.5, 0.2, 0), True), ((0, 0.2, 0.5, 1, 1), False)]
)
def test_reward_sources_that_disagree_are_a_warning_at_the_top_of_the_card(judge, warned):
    turns = (Turn("human", "Hello there."), Turn("agent", "Hello."), Turn("human", "Bye."))
    dialogues = [
        Dialogue(f"d{i}", "t", turns, h, source={"rewards": {"judge": j, "human": h}})
        for i, (j, h) in enumerate(zip(judge, (0, 0.2, 0.5, 0.8, 1), strict=True))
    ]
    card = dataset_card(dialogues, TASK)
    assert ("Warning: judge and human disagree" in card.split("##")[0]) == warned
    assert bool(warnings_of(dialogues)) == warned
