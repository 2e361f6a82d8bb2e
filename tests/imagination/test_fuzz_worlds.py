"""World files with slips and worse: told with persona, state, act or phrasing, or accepted."""

import dataclasses
import random
import sys

import pytest
from coffee import COFFEE, coffee_file
from fuzzing import held

from imagination.simulation import BehaviourAgent, SimulatedHuman, load_world, sample_conversations
from imagination.simulation.grammar import Phrasing
from imagination.simulation.validation import MOST_SOLVED_TURNS, validate
from imagination.simulation.world import Behaviour, World, WorldError
from imagination.speakers import converse


@pytest.fixture(scope="module")
def coffee(tmp_path_factory) -> World:
    return load_world(coffee_file(tmp_path_factory.mktemp("worlds")))


def fails(*_):
    raise RuntimeError("no such thing")


ODD = (None, "text", 1, -1.0, float("nan"), float("inf"), 10**400, True, [], {}, (), [1], {"a": 1})
ODD += (
    {"a": "b"},
    {None: 1.0},
    {"greets": None},
    {"greets": "1"},
    {"greets": 0.5},
    "",
    b"x",
    ("a",),
)
FUNCTIONS = ("opening", "begin", "reply", "advance", "is_over", "rating", "situation", "mood")
FUNCTIONS += ("ceiling", "is_difficult")
TABLES = ("prior", "acts", "replies", "slots", "behaviours")
TEMPLATES = (
    "",
    " ",
    "[",
    "]",
    "a|b",
    "[a|b",
    "{nobody}",
    "[|]",
    "\ud800",
    "[" * 5000,
    "[a|b]" * 40,
)


def damaged(rng: random.Random, world: World) -> World:
    """A world with one slip."""
    kind = rng.randrange(5)
    if kind == 0:
        name, value = rng.choice(FUNCTIONS), rng.choice(ODD)
        wrong = rng.choice([lambda *_: value, fails, value])
        return dataclasses.replace(world, **{name: wrong})
    if kind == 1:
        return dataclasses.replace(world, **{rng.choice(TABLES): rng.choice(ODD)})
    if kind == 2:
        name = rng.choice(TABLES)
        table = dict(getattr(world, name))
        table[rng.choice([*table, *ODD[:4]])] = rng.choice(ODD)
        return dataclasses.replace(world, **{name: table})
    if kind == 3:
        name = rng.choice(("acts", "replies"))
        table = dict(getattr(world, name))
        text = rng.choice(TEMPLATES)
        wrong = rng.choice([Phrasing(text), Phrasing([text]), Phrasing(["Yes."], also=text)])
        table[rng.choice(list(table))] = wrong
        return dataclasses.replace(world, **{name: table})
    value = rng.choice(ODD)
    wrong = rng.choice([Behaviour(value, lambda chat: {"ask": 1.0}), Behaviour(1.0, value)])
    wrong = rng.choice([wrong, Behaviour(1.0, fails), Behaviour(1.0, lambda chat: value)])
    return dataclasses.replace(world, behaviours={"waiter": wrong})


@pytest.mark.parametrize("part", range(2))
def test_a_slip_is_told_or_the_world_can_be_played(part, coffee):
    for seed in range(80 * part, 80 * part + 80):
        world = damaged(random.Random(seed), coffee)
        with held("world files", seed, names="world"):
            validate(world)
            talks = sample_conversations(world, "average", 5, 0, "d")
            converse(BehaviourAgent(world), SimulatedHuman(world), talks, world.task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rating": lambda *_: None}, r"rating of persona \(coffee, open\) in state .* is None"),
        ({"rating": lambda *_: "good"}, r"rating of persona .* is good; task\.reward_range"),
        ({"rating": fails}, r"rating of persona .* it raised RuntimeError\('no such thing'\)"),
        ({"reply": lambda *_: None}, r"reply of persona .* to act .*'None', but must be a dict"),
        ({"reply": fails}, r"reply of persona .* in state .* to act .* it raised RuntimeError"),
        ({"reply": lambda *_: {"greets": "1"}}, r"reply of persona .* probability of 'greets' is"),
        ({"begin": lambda reply: [reply]}, r"begin with reply 'greets' is .* cannot be hashed"),
        ({"advance": lambda *_: {}}, r"advance from state .* after act .* cannot be hashed"),
        ({"advance": fails}, r"advance from state .* after act .* it raised RuntimeError"),
        ({"prior": {("coffee", "open"): "1"}}, r"prior over personas: probability of .* is '1'"),
        ({"prior": {("coffee", "open"): -1.0}}, r"prior over personas: probability of"),
        ({"prior": {("coffee", "open"): 0.5}}, r"prior over personas: probabilities must sum to 1"),
        ({"prior": {"ab": 1.0}}, r"prior: the key 'ab' must be a tuple"),
        ({"slots": {"name": []}}, r"slot 'name' has no values; give at least one"),
        ({"slots": {"name": "Ada"}}, r"slot 'name' has the values 'Ada', but they must be a list"),
        ({"is_difficult": fails}, r"is_difficult of persona .*: it raised RuntimeError"),
        ({"behaviours": {"w": Behaviour(1.0, fails)}}, r"behaviour 'w' in state .* it raised"),
        ({"task": None}, r"world: task is 'None', but must be a Task"),
        ({"plain_words": None}, r"plain_words is 'None', but must be a dict"),
        ({"plain_words": {"nods": ["Yes"]}}, r"plain_words of 'nods'; the world's replies are gr"),
        ({"plain_words": {"greets": "Hi"}}, r"plain_words of reply 'greets' has the templates"),
        ({"plain_words": {"greets": ["[Hi"]}}, r"plain_words of reply 'greets': template '\[Hi'"),
    ],
)
def test_each_promised_check_names_its_place(changes, message, coffee):
    with pytest.raises(WorldError, match=message):
        validate(dataclasses.replace(coffee, **changes))


@pytest.mark.parametrize(
    ("phrasing", "message"),
    [
        (Phrasing([]), r"reply 'shrugs' has no templates"),
        (Phrasing("Well."), r"reply 'shrugs' has the templates 'Well.', but they must be a list"),
        (Phrasing(["Well."], also="Hm."), r"reply 'shrugs', also has the templates 'Hm.'"),
        (Phrasing(["[Oh|]"]), r"reply 'shrugs': template '\[Oh\|\]' says nothing"),
        (Phrasing(["a\ud83d"]), r"reply 'shrugs' has .* half of a sign"),
        (Phrasing(["[a|b]" * 40]), r"reply 'shrugs': template .* has 1099511627776 forms"),
        (Phrasing(["[" * 5000]), r"reply 'shrugs': template .* too many brackets|not closed"),
        (["Well."], r"reply 'shrugs' is .* must be a Phrasing"),
    ],
)
def test_a_phrasing_that_cannot_be_is_named(phrasing, message, coffee):
    with pytest.raises(WorldError, match=message):
        validate(dataclasses.replace(coffee, replies={**coffee.replies, "shrugs": phrasing}))


def late(function: str, wrong: str) -> str:
    """The world's file with a function that goes wrong once `LATER` is not empty."""
    wrapped = f"{function}=lambda *given: {wrong} if LATER else {function}(*given),"
    assert f"{function}={function}," in COFFEE
    return f"LATER = []\n{COFFEE}".replace(f"{function}={function},", wrapped)


@pytest.mark.parametrize(
    ("function", "wrong", "message"),
    [
        ("reply", "1 / 0", r"reply of persona .* in state Chat\(.* to act .*: it raised ZeroDivis"),
        ("reply", "None", r"reply of persona .* in state Chat.*'None', but must be a dict"),
        ("advance", "[]", r"advance from state .* after act .* cannot be hashed"),
        ("advance", "{}['x']", r"advance from state .* it raised KeyError\('x'\)"),
        ("rating", "'good'", r"rating of persona .* is good; task\.reward_range is 0\.0 to 1\.0"),
    ],
)
def test_a_slip_in_a_state_that_is_reached_later_is_told(function, wrong, message, tmp_path):
    path = tmp_path / f"late_{function}_{len(wrong)}.py"
    text = late(function, wrong)
    path.write_text(text, encoding="utf-8")
    line = text[: text.index("if LATER")].count("\n") + 1
    world = load_world(path)
    talks = sample_conversations(world, "average", 5, 0, "d")
    sys.modules[f"imagination_world_{path.stem}"].LATER.append(1)
    with pytest.raises(WorldError, match=rf"{message}.* \({path}, line {line}\)$"):
        converse(BehaviourAgent(world), SimulatedHuman(world), talks, world.task)


def test_turns_without_end_are_told(coffee):
    task = dataclasses.replace(coffee.task, max_turns=10**6)
    with pytest.raises(WorldError, match=f"max_turns is 1000000, .* to {MOST_SOLVED_TURNS}"):
        validate(dataclasses.replace(coffee, task=task))


FILES = {
    "raises": ("raise ValueError('at import')", r"the file could not be run: ValueError"),
    "exits": ("import sys; sys.exit(0)", r"the file could not be run: SystemExit"),
    "recursion": ("def f(): f()\nf()", r"could not be run: RecursionError"),
    "syntax": ("WORLD = (", r"could not be run: SyntaxError"),
    "nul": ("WORLD = 1\0", r"could not be run: (SyntaxError|ValueError)"),
    "nothing": ("", r"no world in it \(WORLD is NoneType\)"),
    "other": ("WORLD = {}", r"no world in it \(WORLD is dict\)"),
    "maker_raises": ("def make_world(): 1 / 0", r"make_world\(\) could not be run: ZeroDivision"),
    "maker_other": ("def make_world(): return 5", r"what make_world\(\) returned is int"),
    "maker_asks": ("def make_world(x): pass", r"make_world\(\) could not be run: TypeError"),
    "no_arguments": (COFFEE.split("WORLD = World(")[0] + "WORLD = World()", r"run: TypeError"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_run_is_told(name, tmp_path):
    text, message = FILES[name]
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    with pytest.raises(WorldError, match=message):
        load_world(tmp_path / f"{name}.py")


def test_any_name_of_a_world_is_told(tmp_path):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "latin.py").write_bytes(b"WORLD = '\xff'")
    names = ["", " ", ".", "..", "...", ".py", "a..b", ".teaching", "teaching.", "1.2", "no.such"]
    names += [
        "os.path",
        "imagination.simulation.world",
        "a b.c",
        "\0.py",
        "é.ü",
        "\ud800.x",
        "/",
        "~",
    ]
    names += [
        "x" * 5000,
        "x" * 5000 + ".py",
        "x." * 5000,
        "../..",
        "teaching.py",
        "__main__.x",
        "a-b.c",
    ]
    for name in [*names, tmp_path / "folder.py", tmp_path / "latin.py", tmp_path]:
        with held("world files", repr(name)[:80], names="world"):
            load_world(name)
            raise AssertionError("there is no such world")
