"""Let tests in one process use a program that runs in another.

The program is not trusted. It never sees its tests, and they do not share its interpreter: nothing
that it changes, reads or raises there makes a test pass. Values go over as copies, by pickle with
its classes limited to a few (the way that its documentation names "Restricting Globals"); all else
stays where it is and goes over as a number, for which the other side has a `Remote`.

Standard library only: `child.py` imports this file by its place.
"""

import builtins
import io
import operator
import pickle
import struct
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO

# copied as they are, where an object has exactly this class and not one that derives from it
_PLAIN_CLASSES = {
    (one.__module__, one.__qualname__): one
    for one in (
        *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset),
        *(range, slice, deque, OrderedDict, Counter, defaultdict),
        *(date, datetime, time, timedelta, timezone, Decimal, Fraction),
    )
}
_PLAIN = frozenset([type(None), *_PLAIN_CLASSES.values()])
_CHANGEABLE = (list, dict, set, bytearray, deque)
# a value of a class that derives from one of these is compared as what it derives from
_BASES: dict[type, Callable[[Any], Any]] = {
    **{base: base for base in (int, float, complex, bytes, list, tuple, dict, set, frozenset)},
    str: str.__str__,
}
_MOST_PRINTED = 1 << 16

# what a test may do with an object of the program, by the method that Python looks for
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{f"__{one}__": getattr(builtins, one) for one in ("len", "iter", "next", "bool", "str")},
    **{f"__{one}__": getattr(builtins, one) for one in ("repr", "hash", "int", "float", "abs")},
    **{f"__{one}__": getattr(builtins, one) for one in ("round", "reversed", "format", "divmod")},
    **{
        f"__{one}__": getattr(operator, one)
        for one in ("getitem", "setitem", "delitem", "index", "neg", "pos", "invert", "add", "sub")
    },
    **{
        f"__{one}__": getattr(operator, one)
        for one in ("mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift", "xor")
    },
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__radd__": lambda one, other: other + one,
    "__rsub__": lambda one, other: other - one,
    "__rmul__": lambda one, other: other * one,
    "__rtruediv__": lambda one, other: other / one,
    "__enter__": lambda one: type(one).__enter__(one),
    "__exit__": lambda one, *error: type(one).__exit__(one, None, None, None),
    "__instancecheck__": lambda one, other: isinstance(other, one),
}
_COMPARISONS = {f"__{one}__": getattr(operator, one) for one in ("eq", "lt", "le", "gt", "ge")}
# of objects of the tests, the program may read attributes; of these it would reach all of Python
_CLOSED = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(types.GeneratorType, types.CoroutineType, types.CodeType, types.FrameType),
    *(types.TracebackType, BaseException),
)


class Lost(BaseException):
    """The other side has ended, or sends what is no message."""


class Remote:
    """An object of the other side."""

    def __init__(self, line: "Line", number: int) -> None:
        # an attribute that is set the usual way is one of the object on the other side
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _ask(self, "call", arguments, named)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __contains__(self, sought: Any) -> bool:
        # an object that claims to hold everything has to show it
        items = _ask(self, "operate", "__iter__", ())
        return any(one is sought or one == sought for one in items)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _ask(remote: Remote, action: str, *details: Any) -> Any:
    own = object.__getattribute__
    return own(remote, "_line").ask(action, own(remote, "_number"), *details)


def _operation(name: str) -> Callable[..., Any]:
    return lambda self, *others: _ask(self, "operate", name, others)


def _comparison(name: str) -> Callable[[Remote, Any], Any]:
    """Return a comparison that no object of the program can claim to pass.

    Two of its objects are compared by the program, one with a value of the tests here.
    """

    def compare(self: Remote, other: Any) -> Any:
        if isinstance(other, Remote):
            return bool(_ask(self, "operate", name, (other,)))
        value = _ask(self, "value")
        if value:
            return _COMPARISONS[name](value[0], other)
        return False if name == "__eq__" else NotImplemented

    return compare


for _name in _OPERATIONS:
    setattr(Remote, _name, _operation(_name))
for _name in _COMPARISONS:
    setattr(Remote, _name, _comparison(_name))


class Line:
    """One end of the connection between a program and its tests.

    Args:
        reader, writer: pipes from and to the other side.
        program: what the side of the program does when it is asked to "load" itself, and for a
            "name" of it; the side of the tests has none, and may not be looked into.
    """

    def __init__(
        self,
        reader: BinaryIO,
        writer: BinaryIO,
        program: dict[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._program, self._is_trusted = program or {}, program is None
        self._shown: list[Any] = []  # objects of this side, by number
        self._numbers: dict[int, int] = {}  # of them, by id
        self._remotes: dict[int, Any] = {}  # objects of the other side, by number

    def ask(self, action: str, *details: Any) -> Any:
        """Let the other side do something; return what it returns, raise what it raises."""
        self._send(("ask", action, details))
        while True:
            message = self._receive()
            if message[0] == "ask":
                self._answer(*message[1:])
                continue

            kind, found, printed, changed = message
            if self._is_trusted and printed:
                sys.stdout.write(printed)
            if kind == "raise":
                error, arguments = found
                # what calls it may take this for the end of an iteration, and test nothing more
                if issubclass(error, StopIteration) and details[1:2] != ("__next__",):
                    error = RuntimeError
                raise error(*arguments)
            return found if action != "call" else _take_changes(details[1], changed, found)

    def serve(self) -> None:
        """Answer the tests until they end."""
        while True:
            message = self._receive()
            if message[0] != "ask":
                raise Lost
            self._answer(*message[1:])

    def _answer(self, action: str, details: tuple[Any, ...]) -> None:
        """Do what the other side asks for, and send what came of it."""
        changed: list[Any] = []
        try:
            found: Any = self._do(action, *details)
            kind = "return"
            if action == "call":
                changed = [one if type(one) in _CHANGEABLE else None for one in details[1]]
        except Lost:
            raise
        except BaseException as error:
            kind, found = "raise", (type(error), error.args)
        printed = "" if self._is_trusted else _printed()
        try:
            self._send((kind, found, printed, changed))
        except Lost:
            raise
        except BaseException as error:  # what cannot be pickled
            self._send(("raise", (type(error), ()), "", []))

    def _do(self, action: str, target: Any, *details: Any) -> Any:
        if action in self._program:
            return self._program[action](target)

        here = self._shown[target]
        if action == "value":
            return _as_base(here)
        if action == "call":
            arguments, named = details
            return here(*arguments, **named)
        if action == "operate":
            name, others = details
            return (_OPERATIONS | _COMPARISONS)[name](here, *others)

        if self._is_trusted and (isinstance(here, _CLOSED) or details[0].startswith("_")):
            raise AttributeError(details[0])
        if action == "getattr":
            return getattr(here, details[0])
        return setattr(here, *details)

    # messages

    def _send(self, message: Any) -> None:
        written = io.BytesIO()
        _Writer(written, self).dump(message)
        content = written.getvalue()
        try:
            self._writer.write(struct.pack("<Q", len(content)) + content)
            self._writer.flush()
        except OSError:
            raise Lost from None

    def _receive(self) -> tuple[Any, ...]:
        try:
            head = self._reader.read(8)
            content = self._reader.read(struct.unpack("<Q", head)[0])
            message = _Reader(io.BytesIO(content), self).load()
        except (MemoryError, RecursionError):
            raise
        except Exception:  # whatever the other side sends
            raise Lost from None
        if type(message) is not tuple or not message:
            raise Lost
        return message

    def show(self, one: Any) -> tuple[Any, ...] | None:
        """Return what stands for an object in a message; None of one that is copied."""
        if isinstance(one, Remote):
            return ("yours", object.__getattribute__(one, "_number"))
        if type(one) in _PLAIN or (isinstance(one, type) and one in _PLAIN):
            return None
        if isinstance(one, types.ModuleType):
            return ("module", one.__name__)

        number = self._numbers.get(id(one))
        if number is None:
            number = self._numbers[id(one)] = len(self._shown)
            self._shown.append(one)
        if isinstance(one, type) and issubclass(one, BaseException):
            bases = [base.__name__ for base in one.__mro__ if base.__module__ == "builtins"]
            return ("exception", number, one.__module__, one.__name__, bases[0])
        return ("object", number)

    def find(self, shown: tuple[Any, ...]) -> Any:
        """Return the object that a part of a message stands for."""
        kind, what, *more = shown
        if kind == "yours":
            return self._shown[what]
        if kind == "module":
            # one that is installed with Python, as this side has it
            if what.partition(".")[0] not in sys.stdlib_module_names:
                raise ImportError(what)
            __import__(what)
            return sys.modules[what]

        if what not in self._remotes:
            if kind == "exception":
                self._remotes[what] = _exception_class(*more)
            else:
                self._remotes[what] = Remote(self, what)
        return self._remotes[what]


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, line: Line) -> None:
        super().__init__(file, protocol=5)
        self._line = line

    def persistent_id(self, obj: Any) -> Any:
        return self._line.show(obj)


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, line: Line) -> None:
        super().__init__(file)
        self._line = line

    def persistent_load(self, pid: Any) -> Any:
        return self._line.find(pid)

    def find_class(self, module_name: str, global_name: str) -> Any:
        return _PLAIN_CLASSES[module_name, global_name]


def _as_base(one: Any) -> tuple[Any, ...]:
    """Return a value as what its class derives from, such as a named tuple as a tuple."""
    for base, copy in _BASES.items():
        if isinstance(one, base):
            return (copy(one),)
    return ()


def _exception_class(module: str, name: str, base: str) -> type[BaseException]:
    """Return the class of an error there: Python's own, or one that derives alike.

    One of a module counts as that module's where the tests have imported it. Those of unittest do
    not: a program that raises SkipTest would have its test skipped.
    """
    found = None
    if module == "builtins" or (module in sys.modules and module.partition(".")[0] != "unittest"):
        found = vars(sys.modules[module]).get(name)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        above = getattr(builtins, base)
        if not issubclass(above, BaseException):
            raise TypeError(base)
        found = type(str(name), (above,), {"__init__": lambda self, *arguments: None})
    return found


def _take_changes(arguments: tuple[Any, ...], changed: Any, found: Any) -> Any:
    """Do to the lists and tables that went over what the program did to its copies."""
    for mine, theirs in zip(arguments, changed, strict=False):
        if type(mine) not in _CHANGEABLE or type(theirs) is not type(mine):
            continue
        if found is theirs:
            found = mine
        if isinstance(mine, (list, bytearray)):
            mine[:] = theirs
        else:
            mine.clear()
            mine.extend(theirs) if isinstance(mine, deque) else mine.update(theirs)
    return found


def _printed() -> str:
    """Return what the program has printed since it was last asked."""
    printed = getattr(sys.stdout, "buffer", None)
    if not isinstance(printed, io.BytesIO):
        return ""
    text = printed.getvalue()[:_MOST_PRINTED].decode(errors="replace")
    printed.seek(0)
    printed.truncate()
    return text


class Names(dict[str, Any]):
    """Names of the tests, else of Python, else of the program as it has them now.

    Args:
        line: to the program.
        asked: a name that is the program's although Python has it too.
    """

    def __init__(self, line: Line, asked: str | None) -> None:
        super().__init__(__name__="__main__")
        self._line, self._asked = line, asked

    def __missing__(self, name: str) -> Any:
        if name != self._asked and hasattr(builtins, name):
            raise KeyError(name)
        is_there, found = self._line.ask("name", name)
        if not is_there:
            raise KeyError(name)
        return found
