"""Details of one conversation, drawn from lists by seed and number, whatever the task.

A task has some dozens of personas, and an LLM that is given the same persona twice begins twice
with the same words. So each imagined human has a name, an age, a home, a day, a way to begin and a
way of talking of its own: more combinations than there will be dialogues.
"""

from __future__ import annotations

import random
from collections.abc import Collection

_NAMES = """
Aaliyah Abel Adrián Agnes Ahmed Aiko Aisha Alba Alejandro Alice Amara Amir Ana Anders Andrea Anika
Anton Arjun Astrid Ayşe Baraka Beatriz Benedikt Bilal Birgit Bruno Camila Carlos Carmen Cedric Chen
Chiara Chloe Clara Dagny Daniel Daria David Deepa Diego Dmitri Dolores Edith Elena Elias Elif Emeka
Emil Emma Enzo Erik Esther Ewa Fatima Felix Fiona Franz Gabriel Georg Gita Grace Greta Hana Hannah
Haruto Hassan Helena Henrik Hugo Ibrahim Ida Ingrid Irina Isaac Isabel Ivan Jamal Jan Jasmin Jin
João Johanna Jonas Joseph Juan Julia Kaito Kamila Karim Katarina Kofi Kwame Lars Laura Leila Leon
Li Lina Lorenzo Lucía Lukas Magda Malik Marco Maria Marta Mateo Maya Mehmet Mei Mila Mohammed Nadia
Naoko Nia Nikolai Nina Noah Nora Olga Oliver Olivia Omar Oskar Pablo Paola Paul Pavel Petra Pierre
Priya Rahul Rania Raquel Ravi Rebecca Rosa Ruth Sadia Samuel Sara Sebastian Selma Sergei Silvia
Simon Sofia Stefan Sven Tara Tariq Theo Thi Thomas Tomasz Ursula Valentina Vera Victor Viktoria
Wanjiru Wei William Yara Yasmin Yuki Yusuf Zainab Zoe Zofia
"""
NAMES = tuple(_NAMES.split())
AGES = range(18, 80)
HOMES = (
    "a village in the mountains",
    "a fishing town",
    "the outskirts of a large city",
    "the centre of a capital",
    "a farm a long way from anywhere",
    "a new housing estate",
    "a harbour city",
    "a small island",
    "a student town",
    "an old mining town",
    "a suburb with a long way to work",
    "a town at a border",
    "a flat above a bakery",
    "a shared house",
    "a village with one shop",
    "a city that was left a year ago for another",
    "a block of flats by the railway",
    "a valley where everybody knows everybody",
    "a place abroad, since a few months",
    "a market town",
    "a spa town",
    "a houseboat",
    "a street full of cafés",
    "the edge of a forest",
    "a town in the plains",
    "a hill with a view of the city",
    "an industrial quarter that is changing",
    "the parents' house",
    "a cottage by a lake",
    "a hot city in the south",
    "a windy coast in the north",
    "a town that tourists drive past",
)
DAYS = (
    "came straight from work",
    "slept badly",
    "has the whole afternoon free",
    "is waiting for a train",
    "has a sick child at home",
    "had good news this morning",
    "argued with a neighbour today",
    "is between two appointments",
    "has just had lunch",
    "is in the middle of moving house",
    "has had this in mind for weeks",
    "was told by a friend to do this",
    "promised somebody to settle this today",
    "had nearly given up the idea",
    "tried once before, without luck",
    "came in on the spur of the moment",
    "is on the way to a party",
    "has visitors this week",
    "just finished a long project",
    "is saving for something",
    "came instead of somebody else",
    "read something about it last night",
    "has a birthday tomorrow",
    "had a long phone call about it",
    "has a cold",
    "is bored",
    "is in high spirits",
    "has an exam or a deadline next week",
    "is back from a journey",
    "has a day off and much to do",
    "is a little homesick",
    "lost a bet",
    "was caught by the rain",
    "has just started a new job",
    "looks after a friend's dog",
    "was up early",
)
BEGINNINGS = (
    "with a greeting and your name",
    "without a greeting",
    "with an apology for the trouble",
    "with a remark on the day",
    "with a question",
    "in the middle of the matter",
    "with what you do not want",
    "with what somebody told you",
    "with how you came here",
    "with a small joke",
    "with a doubt whether this is the right place",
    "with half a sentence that trails off",
    "with thanks in advance",
    "with what went wrong before",
    "with how much time you have",
    "with something about yourself that matters little",
    "with something you noticed here",
    "with a wish, plainly said",
    "with a hint only",
    "with a complaint that is not meant badly",
    "with a comparison to something you know",
    "with an example from your week",
    "with a confession that you know little of this",
    "with a request for a moment's patience",
)
FIRST_THINGS = (
    "and come to the point at once",
    "and come to the point in the second sentence",
    "and say only half of what you came for",
    "and leave the point for your next turn",
    "and ask what the other needs to know",
    "and ask whether you may ask something",
    "and name the occasion",
    "and say for whom it is",
    "and say what you tried so far",
    "and say what you hope for",
    "and say what you are afraid of",
    "and say that you are not sure what to ask",
    "in one short sentence",
    "in two or three words and nothing more",
    "in one long sentence",
    "and correct yourself once",
    "and wait",
    "and mention somebody you know",
    "and give one detail too many",
    "and stay vague",
)
LENGTHS = (
    "short sentences",
    "half sentences",
    "a sentence at a time",
    "long sentences with many commas",
    "few words",
    "now short, now long",
)
TONES = (
    "dry",
    "warm",
    "matter-of-fact",
    "hesitant",
    "cheerful",
    "formal",
    "casual",
    "a little ironic",
    "polite",
    "blunt",
    "thoughtful",
    "hurried",
    "chatty",
    "tired",
    "precise",
    "enthusiastic",
)
HABITS = (
    "asks back",
    "repeats the other's last word",
    "likes comparisons",
    "says 'well' and 'you know'",
    "gives numbers",
    "tells small stories",
    "thinks aloud",
    "answers a question with a detail nobody asked for",
    "agrees before disagreeing",
    "changes the subject once",
    "uses plain words only",
    "uses an old-fashioned word now and then",
    "leaves things unsaid",
    "jokes about themselves",
    "says what they feel",
    "sticks to the facts",
)

# Words of an axis -> the detail that it decides itself.
_DECIDED = {
    "name": "name",
    **dict.fromkeys(("age", "generation"), "age"),
    **dict.fromkeys(("home", "place", "city", "country", "region", "origin", "location"), "home"),
    **dict.fromkeys(("mood", "occasion", "day", "situation"), "today"),
    **dict.fromkeys(("manner", "style", "tone", "speech", "talk", "talks"), "way of talking"),
}


def draw_details(seed: int, index: int, axes: Collection[str] = ()) -> dict[str, str]:
    """Draws the details of the human of one dialogue.

    Args:
        seed: Seed of the dataset.
        index: Number of the dialogue in it.
        axes: Names of the task's persona axes; what they decide is left out.

    Returns:
        What -> how it is, for the prompt.
    """
    dice = random.Random(f"{seed}/details/{index}")
    choose = dice.choice
    drawn = {
        "name": choose(NAMES),
        "age": str(choose(AGES)),
        "home": choose(HOMES),
        "today": choose(DAYS),
        "first words": f"{choose(BEGINNINGS)}, {choose(FIRST_THINGS)}",
        "way of talking": f"{choose(TONES)}, {choose(LENGTHS)}; {choose(HABITS)}",
    }
    decided = {_DECIDED.get(word) for axis in axes for word in axis.casefold().split()}
    return {what: text for what, text in drawn.items() if what not in decided}
