"""Child processes start from whatever a program has made of its interpreter, and never start further ones."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from pyrocache import ConfigurationError, LocalCluster, PyroCacheError, ValueTooLarge
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from tests.support.processes import ROOT, free_address, free_port, is_gone
from tests.support.secrets import SECRET
from tests.support.waiting import eventually

USE = """
from pyrocache import LocalCluster
with LocalCluster(nodes=1) as cluster:
    assert cluster.client().set("key", 1)
    print("works")
"""


def run(
    program: str, directory: Path, *options: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program as a script in a process of its own. Its end is bounded."""
    script = directory / "program.py"
    script.write_text(program)
    environment = {"PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, *options, str(script)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60.0,
        cwd=directory,
        env={**os.environ, **environment},
    )


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


# What it imports ---------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_sitecustomize_that_prints_and_reads_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        'print(\'{"address": "nobody:1"}\', flush=True)\n'
        "print('noise' * 50_000, file=sys.stderr)\n"
        "sys.stdin.read()\n"
    )
    done = run(USE, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout.endswith("works\n"), done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("-I", "-S"),
        *(pytest.param(few, marks=pytest.mark.full) for few in [(), ("-S",), ("-I",), ("-E", "-s"), ("-P",)]),
    ],
    ids=" ".join,
)
def test_children_import_the_pyrocache_of_their_parent(tmp_path: Path, options: tuple[str, ...]) -> None:
    library = tmp_path / "by hand"
    shutil.copytree(ROOT / "pyrocache", library / "pyrocache", ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("node", "nameserver"):
        with (library / "pyrocache" / module / "process.py").open("a") as source:
            source.write(f"open({str(tmp_path / module)!r}, 'w').write(__file__)\n")
    paths = [str(library), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    done = run(f"import sys\nsys.path[:0] = {paths}\n{USE}", tmp_path, *options, PYTHONPATH="")
    assert done.stdout == "works\n", done.stderr
    for module in ("node", "nameserver"):
        assert (tmp_path / module).read_text().startswith(str(library))


@pytest.mark.parametrize("where", ["beside the script", "in the working directory"])
def test_a_module_of_the_users_replaces_none_of_the_standard_library(tmp_path: Path, where: str) -> None:
    script, working = tmp_path / "scripts", tmp_path / "working"
    script.mkdir()
    working.mkdir()
    own = script if where == "beside the script" else working
    (own / "resource.py").write_text("raise SystemExit('not this one')")  # only a node imports it
    prelude = f"import os, sys\nos.chdir({str(working)!r})\nsys.path.insert(0, '')\n"
    done = run(prelude + USE, script)
    assert done.stdout == "works\n", done.stderr


# What runs it ------------------------------------------------------------------------------------------------

OTHER_EXECUTABLES = (None, "python", "python3.11", "missing")


@pytest.mark.parametrize(
    "name",
    ["", "uwsgi", *(pytest.param(other, marks=pytest.mark.full) for other in OTHER_EXECUTABLES)],
)
def test_an_executable_that_is_not_python_is_not_used(tmp_path: Path, name: str | None) -> None:
    runs = tmp_path / "runs"
    path = str(tmp_path / name) if name else name
    if name and name != "missing":
        executable(tmp_path / name, f"#!/bin/sh\necho ran >> {runs}\necho cpython\n")
    done = run(f"import sys\nsys.executable = {path!r}\n{USE}", tmp_path)
    assert done.stdout == "works\n", done.stderr
    # Whatever is not called Python is never run, and the others once, to see what they are.
    times = runs.read_text().count("ran") if runs.exists() else 0
    assert times == (1 if name in ("python", "python3.11") else 0)


def test_without_any_python_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    for prefix in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, prefix, str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r"^No Python interpreter was found.*`pyrocache nodes --with"
    ):
        LocalCluster(nodes=1)


def test_a_python_that_runs_the_program_again_starts_no_chain(tmp_path: Path) -> None:
    # As a frozen program would whose file is called python.
    runs, fake = tmp_path / "runs", tmp_path / "python"
    program = (
        f"import sys\nopen({str(runs)!r}, 'a').write('run ')\nsys.executable = sys._base_executable = {str(fake)!r}\n"
        f"sys.prefix = sys.exec_prefix = sys.base_prefix = sys.base_exec_prefix = {str(tmp_path)!r}\n{USE}"
    )
    executable(fake, f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'program.py'}\n")
    done = run(program, tmp_path)
    assert "No Python interpreter was found" in done.stderr
    assert runs.read_text() == "run run "


@pytest.mark.full
def test_a_sitecustomize_that_makes_a_cluster_starts_no_chain(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"open({str(tmp_path / 'runs')!r}, 'a').write('run ')\nfrom pyrocache import LocalCluster\n"
        "LocalCluster(nodes=1)\n"
    )
    done = run(USE, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout == "works\n", done.stderr
    assert (tmp_path / "runs").read_text() == "run " * 5  # the program, and twice a name server and a node


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.full)])
def test_a_worker_that_imports_a_script_with_a_cluster_says_so(tmp_path: Path, method: str) -> None:
    program = f"""
import multiprocessing, sys
from pyrocache import LocalCluster
cluster = LocalCluster(nodes=1)
worker = multiprocessing.get_context({method!r}).Process(target=print, args=("ran",))
worker.start()
worker.join(30)
print("status", worker.exitcode)
cluster.stop()
"""
    done = run(program, tmp_path)
    if method == "spawn":
        assert done.stdout == "status 1\n", done.stderr
    assert 'make it under `if __name__ == "__main__":`' in done.stderr
    assert done.stderr.count("errors.ConfigurationError") == 1


# What goes wrong ---------------------------------------------------------------------------------------------


def test_a_process_that_does_not_start_is_quoted_in_short(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'start.py' in ' '.join(sys.orig_argv):\n"
        "    print('noise\\n' * 10_000 + 'x' * 100_000, file=sys.stderr)\n    raise SystemExit('the reason')\n"
    )
    done = run(USE, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    message = done.stderr[done.stderr.index("PyroCacheError: ") :]
    first, *quoted = message.splitlines()
    assert first.endswith("nameserver.process ended with status 1 before it was ready. It printed:")
    assert quoted[-1].endswith("the reason")
    assert len(quoted) <= 5
    assert len(message) < 3000


def test_a_process_that_is_killed_while_it_starts_says_so() -> None:
    process = start_nameserver(quiet=True)
    process.signal(signal.SIGKILL)
    with pytest.raises(PyroCacheError, match="was killed by signal 9 before it was ready"):
        process.wait_until_ready()


def test_a_process_that_does_not_start_in_time_is_killed() -> None:
    process = start_nameserver(quiet=True)
    process.pause()
    with pytest.raises(PyroCacheError, match=r"did not start within 0\.2 s"):
        process.wait_until_ready(0.2)
    assert is_gone(process.pid)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_settings_are_neither_in_the_arguments_nor_in_the_environment_of_a_child() -> None:
    process = start_node({"nameserver": free_address(), "namespace_limit": "abcdef0123456789"}, quiet=True)
    try:
        eventually(lambda: "start.py" in Path(f"/proc/{process.pid}/cmdline").read_text())
        for name in ("cmdline", "environ"):
            assert "abcdef0123456789" not in Path(f"/proc/{process.pid}/{name}").read_text(), name
    finally:
        process.kill()


def test_the_reason_of_a_child_is_the_whole_message() -> None:
    with pytest.raises(PyroCacheError) as caught:
        ChildProcess(
            "pyrocache.node.process", {"host": "nowhere", "secret": SECRET.for_child()}, quiet=True
        ).wait_until_ready()
    assert "\n" not in str(caught.value)
    assert "nowhere" in str(caught.value)


def test_no_temporary_directory_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with LocalCluster(nodes=1) as cluster:
        assert cluster.client().set("key", 1)


# What it shares with its parent --------------------------------------------------------------------------------


@pytest.mark.full
def test_the_parents_input_is_its_own(tmp_path: Path) -> None:
    program = USE.replace('print("works")', "import sys\n    print(sys.stdin.read())")
    assert run(program, tmp_path, stdin="for the program").stdout == "for the program\n"


def test_an_interrupt_of_the_parents_process_group_reaches_no_child(tmp_path: Path) -> None:
    program = """
import os, signal
from pyrocache import LocalCluster
with LocalCluster(nodes=1) as cluster:
    cache = cluster.client()
    cache.set("key", 1)
    try:
        os.killpg(0, signal.SIGINT)  # as Ctrl-C in a terminal does, and "interrupt" in a notebook
    except KeyboardInterrupt:
        print(cache.get("key"), cluster)
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60.0,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert done.stdout.startswith("1 <LocalCluster"), done.stderr
    assert "1 of 1 nodes alive" in done.stdout


# Its arguments -------------------------------------------------------------------------------------------------


def test_the_port_of_the_name_server_can_be_chosen() -> None:
    port = free_port()
    with LocalCluster(nodes=1, port=port) as cluster:
        assert cluster.nameserver == f"127.0.0.1:{port}"
        with pytest.raises(
            PyroCacheError, match=rf"^Cannot listen on 127\.0\.0\.1:{port} .* another port"
        ) as it:
            LocalCluster(nodes=1, port=port)
        assert "\n" not in str(it.value)


@pytest.mark.parametrize("port", [-1, 65536, "9090", None, True])
def test_a_port_that_makes_no_sense_is_refused(port: object) -> None:
    with pytest.raises(ConfigurationError, match="A port must be a number"):
        LocalCluster(nodes=1, port=port)  # type: ignore[arg-type]


@pytest.mark.full
def test_a_value_of_200_mb_fits_by_default() -> None:
    with LocalCluster(nodes=1) as cluster, cluster.client(timeout=30.0) as cache:
        value = bytes(200_000_000)
        cache.set("key", value)
        assert cache.get("key") == value


def test_the_largest_value_can_be_chosen_as_far_as_it_can_be_received() -> None:
    with LocalCluster(nodes=1, max_memory="8MiB", max_value="6MiB") as cluster, cluster.client() as cache:
        assert cache.set("key", bytes(5 * 2**20))
        with pytest.raises(ValueTooLarge, match=str(6 * 2**20)):
            cache.set("key", bytes(6 * 2**20))
    with pytest.raises(ConfigurationError, match=r"with 8\.0 MiB of memory, the largest can have \d+ bytes"):
        LocalCluster(nodes=1, max_memory="8MiB", max_value="32MiB")
