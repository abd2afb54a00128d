"""An IPython shell in the test's process, without a kernel or a terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def running_shell() -> Iterator[Any]:
    """Return an `InteractiveShell`, whose ``__main__`` is that of this process until the block ends."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    before = os.environ.get("IPYTHONDIR")
    with tempfile.TemporaryDirectory(prefix="ipython-") as directory:
        os.environ["IPYTHONDIR"] = directory
        try:
            shell = InteractiveShell.instance(config=config)
        finally:
            if before is None:
                del os.environ["IPYTHONDIR"]
            else:
                os.environ["IPYTHONDIR"] = before
        main = shell._orig_sys_modules_main_mod
        try:
            yield shell
        finally:
            shell.reset(new_session=False)
            shell.restore_sys_module_state()
            sys.modules["__main__"] = main
            InteractiveShell.clear_instance()
