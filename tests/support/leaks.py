"""Where a key shows that nobody may see: texts, and what the system tells everybody of processes."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path


def shows(content: bytes, keys: Iterable[bytes]) -> bool:
    """Return whether one of the keys is in ``content``: as it is, or as text in one of the usual forms."""
    lowered = content.lower()
    forms = [
        form
        for key in map(bytes, keys)
        for form in (key, key.hex().encode(), repr(key)[2:-1].encode(), base64.b64encode(key).rstrip(b"="))
    ]
    return any(form in content or form.lower() in lowered for form in forms)


def files_that_show(keys: Iterable[bytes], pids: Iterable[int]) -> list[str]:
    """Return the files with arguments or environments of processes in which a key shows."""
    files = [Path(f"/proc/{pid}/{name}") for pid in pids for name in ("cmdline", "environ")]
    contents = {str(file): file.read_bytes() for file in files}
    assert all(contents.values()), "each process has arguments and an environment"
    return [name for name, content in contents.items() if shows(content, keys)]
