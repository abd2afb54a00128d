"""What identifies a memoized function: what it does, and nothing else."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest

from pyrocache.client.context import ClientContext
from pyrocache.client.features.identity import code_identity, content_identity, identity
from pyrocache.client.features.load_once import LoadOptions
from pyrocache.client.features.memoize import Memoizer
from pyrocache.config import ClientConfig
from pyrocache.errors import InvalidKey

CONTEXT = ClientContext(ClientConfig(), object())  # type: ignore[arg-type]


def memoize(function: Any, **settings: Any) -> Any:
    return Memoizer(CONTEXT, LoadOptions(), **settings)(function)


def function_of(source: str, module: str = "shop", name: str = "f") -> Any:
    names: dict[str, Any] = {"__name__": module}
    exec(source, names)
    return names[name]


def test_the_name_can_be_read_in_it() -> None:
    assert identity(identity).startswith("pyrocache.client.features.identity.identity:")
    assert len(identity(identity).partition(":")[2]) == 64


@pytest.mark.parametrize(
    "other",
    [
        "def f(x): return x + 2",
        "def f(x): return x - 1",
        "def f(x): return y + 1",
        "def f(y): return y + 1",
        "def f(x, /): return x + 1",
        "def f(x, *more): return x + 1",
        "async def f(x): return x + 1",
        "def f(x): return x + 1.0",
        "def f(x): return x + True",
        "def f(x=1): return x + 1",
        "def f(*, x): return x + 1",
        "def f(*, x=1): return x + 1",
        "def f(x): return (lambda: x + 1)()",
        "def f(x): return (lambda: x + 2)()",
        "def f(x): return x in {1, 2, 'a'}",
        "def f(x): return x in {1, 2, 'b'}",
        "def f(x): return 0.0 * x",
        "def f(x): return -0.0 * x",
        "def f(x): return f'{x!r}'",
        "def f(x): return f'{x!s}'",
        "def f(x):\n    try: return x + 1\n    except ValueError: return 1",
    ],
)
def test_code_that_does_something_else_is_another_function(other: str) -> None:
    original = "def f(x): return x + 1"
    for module in ("shop", "__main__"):
        assert identity(function_of(original, module)) != identity(function_of(other, module))
        assert identity(function_of(other, module)) == identity(function_of(other, module))
    assert identity(function_of(other, "__main__")) == identity(function_of(other, "__mp_main__"))


def test_neither_docstring_nor_lines_nor_comments_matter() -> None:
    plain = "def f(x):\n    def g(y):\n        return y + 300\n    return g(x) * 200"
    other = (
        '\n\ndef f(x):\n    "What it does."\n\n    def g(y):\n        "An inner one."\n        return y + 300  # why\n'
        "    return g(x) * 200"
    )
    assert identity(function_of(plain)) == identity(function_of(other))


def test_it_is_the_same_whatever_the_hash_seed_is() -> None:
    code = """
from pyrocache.client.features.identity import identity
def f(x, names=frozenset({"u", "v", "w"})):
    return x in {"a", "b", "c", 1} or (lambda: x in {"d", "e", "f"})()
f.__module__ = "shop"
print(identity(f))
"""
    command = [sys.executable, "-c", code]
    found = {
        subprocess.run(
            command, env={"PYTHONHASHSEED": str(seed)}, capture_output=True, check=True, cwd="."
        ).stdout
        for seed in range(1, 4)
    }
    assert len(found) == 1


# Closures ----------------------------------------------------------------------------------------------------


def scaled_by(factor: Any) -> Callable[[Any], Any]:
    def scale(number: Any) -> Any:
        return factor * number

    return scale


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def inner(*arguments: Any) -> Any:
        return function(*arguments)

    return inner


def test_closures_of_one_factory_are_told_apart_by_what_they_captured() -> None:
    assert identity(scaled_by(2)) == identity(scaled_by(2)) != identity(scaled_by(3))
    assert identity(scaled_by([1, {"a": 2}])) == identity(scaled_by([1, {"a": 2}]))
    assert identity(scaled_by(math.nan)) == identity(scaled_by(math.nan))
    assert identity(scaled_by(math)) == identity(scaled_by(math)) != identity(scaled_by(sys))
    assert identity(scaled_by(len)) != identity(scaled_by(max))


def test_a_decorator_without_wraps_does_not_make_two_functions_one() -> None:
    user, order = undecorated(lambda n: f"user {n}"), undecorated(lambda n: f"order {n}")
    assert identity(user) == identity(undecorated(lambda n: f"user {n}")) != identity(order)
    assert identity(undecorated(undecorated(len))) != identity(undecorated(len))
    assert identity(scaled_by([user])) != identity(scaled_by([order]))
    assert identity(scaled_by({"f": user})) != identity(scaled_by({"f": order}))


def test_lambdas_that_capture_different_values() -> None:
    first, second = ((lambda n, k=k: n * k) for k in (1, 2))
    assert identity(first) != identity(second)


def test_a_function_that_refers_to_itself_or_to_one_that_refers_to_it() -> None:
    def pair(step: int) -> tuple[Any, Any]:
        def even(n: int) -> bool:
            return n == 0 or odd(n - step)

        def odd(n: int) -> bool:
            return n != 0 and even(n - step)

        return even, odd

    assert identity(pair(1)[0]) == identity(pair(1)[0]) != identity(pair(2)[0])
    assert identity(pair(1)[0]) != identity(pair(1)[1])


def test_many_functions_that_all_refer_to_each_other_take_no_longer() -> None:
    def parser() -> Any:
        def a(n: int) -> Any: return n and (b, c, d, e, f, g, h, i, j)  # fmt: skip

        def b(n: int) -> Any: return n and (a, c, d, e, f, g, h, i, j)  # fmt: skip

        def c(n: int) -> Any: return n and (a, b, d, e, f, g, h, i, j)  # fmt: skip

        def d(n: int) -> Any: return n and (a, b, c, e, f, g, h, i, j)  # fmt: skip

        def e(n: int) -> Any: return n and (a, b, c, d, f, g, h, i, j)  # fmt: skip

        def f(n: int) -> Any: return n and (a, b, c, d, e, g, h, i, j)  # fmt: skip

        def g(n: int) -> Any: return n and (a, b, c, d, e, f, h, i, j)  # fmt: skip

        def h(n: int) -> Any: return n and (a, b, c, d, e, f, g, i, j)  # fmt: skip

        def i(n: int) -> Any: return n and (a, b, c, d, e, f, g, h, j)  # fmt: skip

        def j(n: int) -> Any: return n and (a, b, c, d, e, f, g, h, i)  # fmt: skip

        return a

    assert identity(parser()) == identity(parser())


def test_a_recursive_memoized_function_whose_cell_is_filled_after_the_decoration() -> None:
    def make(step: int) -> Any:
        def count(n: int) -> int:
            return 0 if n <= 0 else 1 + count(n - step)

        count = memoize(count)
        return count

    assert make(1)._plan.identity == make(1)._plan.identity != make(2)._plan.identity


def test_an_unfilled_cell() -> None:
    def make() -> Any:
        def early() -> Any:
            return late

        found = identity(early)
        late = 1
        return found, identity(early)

    before, after = make()
    assert before != after


def test_partials_and_bound_methods_in_a_cell() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    assert identity(scaled_by(functools.partial(add, 1))) == identity(scaled_by(functools.partial(add, 1)))
    assert identity(scaled_by(functools.partial(add, 1))) != identity(scaled_by(functools.partial(add, 2)))
    assert identity(scaled_by([1].index)) == identity(scaled_by([1].index)) != identity(scaled_by([2].index))
    assert identity(scaled_by(functools.lru_cache(add))) == identity(scaled_by(functools.lru_cache(add)))
    one, other = (memoize(add, name=name) for name in ("one", "other"))
    assert identity(scaled_by(one)) != identity(scaled_by(other))


def test_super_in_a_method() -> None:
    def make() -> Any:
        class Shop:
            def find(self) -> str:
                return super().__repr__()

        return Shop.find

    assert identity(make()) == identity(make())


def test_a_cell_that_is_no_key_is_refused_with_what_to_do() -> None:
    lock = threading.Lock()
    guarded = scaled_by(lock)
    with pytest.raises(
        InvalidKey, match=r"The variable 'factor' of scaled_by.*cannot be part of a key.*key=.*name="
    ):
        identity(guarded)
    with pytest.raises(InvalidKey, match="The variable 'factor' of scaled_by"):
        identity(undecorated(guarded))
    memoized = memoize(guarded)
    for _ in range(2):
        with pytest.raises(InvalidKey, match="'factor'"):
            memoized.key(1)


def test_with_key_such_a_cell_is_left_out_and_with_name_everything_is() -> None:
    lock, other_lock = threading.Lock(), threading.Lock()
    keyed = [memoize(scaled_by(cell), key=abs).key(-1) for cell in (lock, other_lock, 2, 3)]
    assert keyed[0] == keyed[1]
    assert len(set(keyed)) == 3
    assert len({memoize(function, name="same").key(1) for function in (scaled_by(lock), len, abs)}) == 1
    assert memoize(len, name="same").key(1) != memoize(len, name="other").key(1)


def test_a_default_that_is_no_key_matters_only_as_an_argument() -> None:
    def f(x: int, lock: Any = threading.Lock()) -> int:  # noqa: B008
        return x

    assert memoize(f, ignore=frozenset({"lock"})).key(1)
    with pytest.raises(InvalidKey, match="argument 'lock'"):
        memoize(f).key(1)
    with pytest.raises(InvalidKey, match=r"The defaults of .*\.f"):
        identity(undecorated(f))


def test_cells_are_read_once_at_the_first_call() -> None:
    calls: list[int] = []
    memoized = memoize(scaled_by(calls))
    calls.append(1)
    first = memoized.key(1)
    calls.append(2)
    assert memoized.key(1) == first
    assert memoize(scaled_by(calls)).key(1) != first


def test_a_cell_may_contain_itself() -> None:
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [2]
    other.append(other)
    again: list[Any] = [1]
    again.append(again)
    assert identity(scaled_by(one)) == identity(scaled_by(again)) != identity(scaled_by(other))


# What can be memoized ----------------------------------------------------------------------------------------


class Scaler:
    """Can be called."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, number: int) -> int:
        return self.factor * number

    def scale(self, number: int) -> int:
        return self.factor * number


def test_partials() -> None:
    def power(base: int, exponent: int) -> int:
        return base**exponent  # type: ignore[no-any-return]

    square, cube = (memoize(functools.partial(power, exponent=exponent)) for exponent in (2, 3))
    assert square.key(5) == memoize(functools.partial(power, exponent=2)).key(5) != cube.key(5)
    assert "power" in repr(square)
    assert "power" in square.key(5)[1]


def test_bound_methods_and_objects_that_can_be_called() -> None:
    for one, same, other in [
        (Scaler(2), Scaler(2), Scaler(3)),
        (Scaler(2).scale, Scaler(2).scale, Scaler(3).scale),
    ]:
        assert memoize(one).key(5) == memoize(same).key(5) != memoize(other).key(5)
    assert memoize(Scaler(2)).original(5) == 10


def test_implementations_of_a_single_dispatch_function_all_named_alike() -> None:
    @functools.singledispatch
    def area(shape: object) -> float:
        raise TypeError

    @area.register
    def _(shape: int) -> float:
        return shape**2

    square = memoize(_)
    area.register(int, square)

    @area.register
    def _(shape: float) -> float:
        return 3 * shape**2

    circle = memoize(_)
    area.register(float, circle)
    assert isinstance(square.original, FunctionType)
    assert square.key(2) != circle.key(2.0)
    assert area.dispatch(int) is square


def test_a_memoized_function_can_be_registered_for_single_dispatch() -> None:
    @functools.singledispatch
    def area(shape: object) -> float:
        raise TypeError

    @memoize
    def square(shape: int) -> float:
        return shape**2

    area.register(square)
    assert area.dispatch(int) is square


def class_over(base: type, limit: object = 1) -> Any:
    class Inner(base):  # type: ignore[misc, valid-type]
        most = limit

        def name(self) -> Any:
            return super().name() if limit else __class__  # type: ignore[name-defined]

        @property
        def other(self) -> Any:
            return self.name()

    return Inner


class One:
    def name(self) -> str:
        return "one"


class Two:
    def name(self) -> str:
        return "two"


def test_classes_of_a_factory_are_what_they_are_made_of() -> None:
    names = [identity(class_over(base, limit).name) for base in (One, Two) for limit in (1, 2)]
    assert len(set(names)) == 4
    assert identity(class_over(One).name) == names[0]
    nested = identity(class_over(class_over(One)).name)
    assert nested != identity(class_over(class_over(Two)).name)
    assert nested == identity(class_over(class_over(One)).name)


@pytest.mark.parametrize("values", [(1, True, 1.0), (0.0, -0.0), (0j, -0j), ((1,), [1])])
def test_variables_that_are_equal_are_of_different_types(values: tuple[object, ...]) -> None:
    def closure(value: object) -> Any:
        return lambda: value

    assert len({identity(closure(value)) for value in values}) == len(values)


def test_what_main_had_under_a_name_that_is_another_or_none_now_is_no_argument() -> None:
    script = """
import enum
from tests.unit.client.features.test_identity import memoize
from pyrocache.errors import InvalidKey
take = memoize(lambda value: None, name="take")
made = type("Op", (), {"run": lambda self: 1})
member = enum.Enum("Color", {"RED": 1}).RED
def op(): pass
removed = op
del op
for value in (made(), made, member, removed):
    try:
        print("accepted", take.key(value))
    except InvalidKey as error:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["refused"] * 4


def test_a_wrong_call_names_the_function() -> None:
    @memoize
    def take(one: int) -> None: ...

    with pytest.raises(TypeError, match=r"take: missing a required argument: 'one'"):
        take.key()


def test_code_is_the_same_whatever_its_lines_and_file() -> None:
    def of(*sources: str) -> str:
        return code_identity([compile(source, f"{source}.py", "exec") for source in sources])

    assert of("x = 1\ny = f(x)") == of("\n\nx = 1  # why\n\ny = f(\n  x)")
    assert len({of("x = 1"), of("x = 2"), of("x = True"), of("x = 1", "x"), of("x = 1", "y"), of()}) == 6


def test_a_variable_is_identified_by_what_it_does_or_by_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)

    def of(source: str) -> str:
        exec(source, vars(main))
        return content_identity(main.x)

    assert of("x = [1, (2, 'a')]") == of("x = [1, (2, 'a')]") != of("x = [1, (2, 'b')]")
    assert of("def x(a=1): return a") == of("def x(a=1):\n    return a") != of("def x(a=2): return a")
    assert of("class x:\n    def f(self): return 1") != of("class x:\n    def f(self): return 2")
    assert of("class x:\n    def f(self): return 1") == of("class x:\n\n    def f(self): return 1")
    assert of("import threading; x = threading.Lock") == of("x = threading.Lock")
    assert of("x = [1]; x.append(x)") == of("x = [1]; x.append(x)")


def test_a_variable_that_cannot_be_part_of_a_key_is_refused_with_the_reason() -> None:
    lock = threading.Lock()

    def around() -> object:
        return lock

    def default(x: object = lock) -> object:
        return x

    for value, part in {around: "The variable 'lock'", default: "The defaults"}.items():
        with pytest.raises(InvalidKey, match=f"^{part} of .*cannot be part of a key: ") as caught:
            content_identity(value)
        assert "memoized" not in str(caught.value)
    with pytest.raises(InvalidKey):
        content_identity(lock)
