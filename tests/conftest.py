"""Fixtures shared by all levels."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.runtime.stop_request import ENDING
from tests.support.certificates import Certificates, new_certificates
from tests.support.nodes import private_cluster
from tests.support.processes import default_signals

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("default"), max_examples=15)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.register_profile("fuzz", settings.get_profile("default"), max_examples=3000)

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="run the tests marked `full` too, which takes minutes more; the default where $CI is set",
    )


def pytest_configure(config: pytest.Config) -> None:
    default_signals()
    _keep_bytecode()
    _use_another_secret(config)
    usual = "default" if config.getoption("--full") else "quick"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", usual))


def _use_another_secret(config: pytest.Config) -> None:
    """Let this process and those that it starts share a secret of their own, and see no settings of the user."""
    if not hasattr(config, "workerinput"):  # a worker inherits the variable
        directory = tempfile.TemporaryDirectory(prefix="pyrocache-tests-")
        config.add_cleanup(directory.cleanup)
        os.environ["XDG_CONFIG_HOME"] = directory.name
        for variable in [name for name in os.environ if name.startswith("PYROCACHE_")]:
            del os.environ[variable]


def _keep_bytecode() -> None:
    """Let this process and those that it starts write what they compile, even if $PYTHONDONTWRITEBYTECODE is set.

    Tests start hundreds of interpreters, which would spend half of their start compiling this package.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    """Leave the tests themselves out of garbage collections, which many tests wait for."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Collect what earlier tests have left, before a test in which a warning is an error: it is not this test's."""
    if item.get_closest_marker("filterwarnings"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Restore the handlers of signals: one that a test leaves behind is inherited by every process that is forked."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A private certificate authority, for the certificates that tests need."""
    return new_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LocalCluster]:
    """Three nodes for tests that do no harm to them."""
    with private_cluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cache(shared_cluster: LocalCluster) -> Iterator[PyroCacheClient]:
    """A client of the shared cluster, which is empty."""
    with PyroCacheClient(shared_cluster.nameserver) as client:
        client.clear()
        yield client


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Three nodes that the test may harm."""
    with private_cluster(nodes=3) as cluster:
        yield cluster
