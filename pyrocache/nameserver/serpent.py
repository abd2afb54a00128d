"""The serpent serializer, Pyro5's default, for stock clients of the name server.

Decodes plain values only: `ast.literal_eval` parses the text, and no instances of classes are made from it. It is slow
(about 1 µs per byte), so the server accepts short requests only. Pure.
"""

from __future__ import annotations

from typing import Any

import serpent

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing
from pyrocache.protocol.handshake import Serializer
from pyrocache.protocol.messages import as_call

_NUMBER = 1


def _dumps(value: Any) -> bytes:
    return serpent.dumps(value, module_in_classname=True)  # type: ignore[no-any-return]


def _loads(body: bytes | memoryview) -> Any:
    try:
        return serpent.loads(bytes(body))
    except Exception as error:  # SyntaxError, ValueError, RecursionError, MemoryError of the parser
        raise ProtocolError(f"A message's body is not plain serpent ({type(error).__name__}).") from None


def _loads_call(body: bytes | memoryview) -> tuple[str, str, list[Any], dict[str, Any]]:
    call = _loads(body)  # its arguments are a tuple, or a list
    return as_call(
        [list(part) if type(part) is tuple else part for part in call] if type(call) is tuple else call
    )


def _pack_result(sequence: int, result: Any) -> bytes:
    return framing.pack_message(framing.RESULT, sequence, _dumps(result), serializer=_NUMBER)


SERPENT = Serializer(_NUMBER, _dumps, _loads, _loads_call, _pack_result)
"""The serpent serializer, for a `Dispatcher`."""
