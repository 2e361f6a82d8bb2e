"""Settings check types and bounds on creation, and say which of them shape no result."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from ilql_jax.errors import UserError
from ilql_jax.settings import (
    SettingError,
    Settings,
    runtime_fields,
    setting,
    settings_of,
)


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    width: int = setting("Width.", 8, least=1)
    remat: bool = setting("Compute again instead of keeping.", False, shapes_result=False)


INNER = Inner()


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    steps: int = setting("Optimizer steps.", least=1)
    expectile: float = setting("τ of V's loss.", 0.8, above=0, below=1)
    rate: float = setting("Peak.", 0.1, above=0, most=2)
    credit: str = setting("Decisions.", "utterance", choices=("utterance", "token"))
    batch: str = setting("Batches.", "", choices=("", "true", "false"))
    fade: tuple[float, float] = setting("Fractions.", (0.0, 1.0), least=0, most=1)
    ids: tuple[int, ...] = setting("Numbers.", ())
    limit: int | None = setting("Bound, or none.", None, least=0)
    log_every: int = setting("Steps between entries.", 50, least=1, shapes_result=False)
    inner: Inner = setting("Nested.", INNER)

    def __post_init__(self):
        super().__post_init__()
        if self.fade[0] > self.fade[1]:
            raise SettingError("fade", self.fade, "must rise")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0, but must be at least 1."),
        ({"steps": 1.0}, "steps is 1.0, but must be a whole number."),
        ({"steps": True}, "steps is True, but must be a whole number."),
        ({"expectile": 1.5}, "expectile is 1.5, but must lie in (0, 1)."),
        ({"expectile": 1}, "expectile is 1, but must lie in (0, 1)."),
        ({"expectile": math.nan}, "expectile is nan, but must be a finite number."),
        ({"rate": math.inf}, "rate is inf, but must be a finite number."),
        ({"rate": 0}, "rate is 0, but must lie in (0, 2]."),
        ({"rate": "1"}, "rate is '1', but must be a number."),
        ({"credit": "turn"}, "credit is 'turn', but must be utterance or token."),
        ({"batch": "maybe"}, """batch is 'maybe', but must be "", true or false."""),
        ({"fade": (0.0,)}, "fade is (0.0,), but must be a tuple of 2."),
        ({"fade": (0.0, 2.0)}, "fade is (0.0, 2.0), but must lie in [0, 1]."),
        ({"fade": (0.6, 0.4)}, "fade is (0.6, 0.4), but must rise."),
        ({"ids": (1, 0.5)}, "must be a tuple, and each of its elements a whole number."),
        ({"limit": -1}, "limit is -1, but must be at least 0."),
        ({"limit": "x"}, "limit is 'x', but must be a whole number or None."),
        ({"inner": None}, "inner is None, but must be of type Inner."),
    ],
)
def test_wrong_value_is_named_with_what_would_be_right(wrong, message):
    with pytest.raises(SettingError) as raised:
        Outer(**{"steps": 1} | wrong)
    assert str(raised.value).endswith(message)
    assert isinstance(raised.value, UserError) and isinstance(raised.value, ValueError)
    assert raised.value.name == next(iter(wrong))
    assert raised.value.value is wrong[raised.value.name]


def test_bounds_themselves_are_allowed_where_they_are_least_and_most():
    config = Outer(steps=1, rate=2.0, fade=(0.0, 1.0), limit=0)
    assert (config.rate, config.fade, config.limit) == (2.0, (0.0, 1.0), 0)


def test_values_from_json_and_numpy_become_those_of_code():
    config = Outer(steps=np.int64(3), rate=1, fade=[0, 1], ids=[1, 2])
    assert config == Outer(steps=3, rate=1.0, fade=(0.0, 1.0), ids=(1, 2))
    assert [type(config.steps), type(config.rate)] == [int, float]
    assert hash(config) == hash(Outer(steps=3, rate=1.0, ids=(1, 2)))
    assert config.fade == (0.0, 1.0) and type(config.fade[0]) is float


def test_a_setting_without_default_is_required():
    with pytest.raises(TypeError, match="steps"):
        Outer()


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(SettingError("steps", 0, "must be at least 1")))
    assert str(error) == "steps is 0, but must be at least 1."


def test_docs_and_runtime_fields_are_declared_beside_the_setting():
    assert {name: about.doc for name, about in settings_of(Inner).items()} == {
        "width": "Width.",
        "remat": "Compute again instead of keeping.",
    }
    assert runtime_fields(Inner) == {"remat"}
    assert runtime_fields(Outer) == {"log_every", "inner.remat"}
    assert settings_of(Outer)["rate"].most == 2
