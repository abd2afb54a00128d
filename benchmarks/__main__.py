"""``python -m benchmarks``."""

import sys

from pyrocache.errors import PyroCacheError

try:
    from benchmarks.command import app
except ModuleNotFoundError as missing:
    sys.exit(f"The benchmarks need the package {missing.name}; get it with: pip install '.[bench]'")

if __name__ == "__main__":
    try:
        app(prog_name="python -m benchmarks")
    except PyroCacheError as error:
        sys.exit(str(error))
