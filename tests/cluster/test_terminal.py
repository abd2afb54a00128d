"""``pyrocache`` in a shell: values as bytes, probes, completion, pipes, locales, interrupts, and what can be copied."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from tests.support.commands import Outcome, call, run, shell_environment
from tests.support.nodes import private_cluster
from tests.support.processes import ROOT, environment, free_address
from tests.support.waiting import eventually

BINARY = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with private_cluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cache(cluster: LocalCluster) -> Iterator[PyroCacheClient]:
    with cluster.client() as cache:
        cache.clear()
        yield cache


def pyrocache(cluster: LocalCluster, *command: str, stdin: bytes = b"", **variables: str) -> Outcome:
    variables = {"PYROCACHE_NAMESERVER": cluster.nameserver, **variables}
    return call("pyrocache", *command, stdin=stdin, **variables)


@pytest.fixture
def shell(tmp_path: Path, cluster: LocalCluster) -> dict[str, str]:
    return shell_environment(tmp_path, cluster.nameserver)


# Values -------------------------------------------------------------------------------------------------------


def test_raw_writes_what_was_stored_and_nothing_else(cluster: LocalCluster, cache: PyroCacheClient) -> None:
    cache.set_many({"text": "grüße\n\t'", "bytes": BINARY, "empty": "", "array": bytearray(b"ab")})
    for key, raw in {"text": "grüße\n\t'".encode(), "bytes": BINARY, "empty": b"", "array": b"ab"}.items():
        told = pyrocache(cluster, "get", "--raw", key)
        assert (told.status, told.out.encode("utf-8", "surrogateescape"), told.err) == (0, raw, "")


@pytest.mark.parametrize("value", [None, 1, [b"a"], {"a": 1}])
def test_raw_refuses_what_is_neither_text_nor_bytes(
    cluster: LocalCluster, cache: PyroCacheClient, value: object
) -> None:
    cache["key"] = value
    refused = pyrocache(cluster, "get", "--raw", "key")
    assert refused.status == 1
    assert f"type {type(value).__name__}: leave --raw out" in refused.sentence


def test_raw_refuses_a_text_that_utf_8_does_not_have(cluster: LocalCluster, cache: PyroCacheClient) -> None:
    cache["key"] = "\ud800"
    assert "leave --raw out" in pyrocache(cluster, "get", "--raw", "key").sentence
    assert pyrocache(cluster, "get", "key") == Outcome(0, "'\\ud800'\n", "")


@pytest.mark.full
def test_a_value_from_standard_input_is_bytes_as_they_are(
    cluster: LocalCluster, cache: PyroCacheClient, shell: dict[str, str]
) -> None:
    assert pyrocache(cluster, "set", "key", "-", stdin=BINARY) == Outcome(0, "", "")
    assert cache["key"] == BINARY
    copy = "pyrocache get key --raw | pyrocache set copy - && pyrocache get --raw copy"
    copied = subprocess.run(["bash", "-c", copy], env=shell, capture_output=True, timeout=30)
    assert (copied.returncode, copied.stdout, copied.stderr) == (0, BINARY, b"")


def test_a_value_from_a_closed_standard_input_is_refused(shell: dict[str, str]) -> None:
    refused = subprocess.run(
        ["bash", "-c", "pyrocache set key - <&-"], env=shell, capture_output=True, text=True, timeout=30
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "There is no standard input to read the value from.\n"


def test_arguments_that_begin_with_a_dash(cluster: LocalCluster, cache: PyroCacheClient) -> None:
    refused = pyrocache(cluster, "set", "temperature", "-5")
    assert refused.status == 2
    assert "must come after --" in refused.sentence
    assert pyrocache(cluster, "set", "--ttl", "60", "--", "temperature", "-5") == Outcome(0, "", "")
    assert cache["temperature"] == "-5"


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no\nway")


def test_a_value_whose_repr_fails(cluster: LocalCluster, cache: PyroCacheClient) -> None:
    cache["huge"], cache["rude"] = 10**5000, Rude()
    for key, reason in {
        "huge": "type int fails (ValueError",
        "rude": "Rude fails (RuntimeError: no way)",
    }.items():
        refused = pyrocache(cluster, "get", key)
        assert refused.status == 1
        assert reason in refused.sentence


def test_scan_prints_keys(cluster: LocalCluster, cache: PyroCacheClient) -> None:
    cache.set_many(dict.fromkeys(["user:1", "user:2", "group", ("a", 1), 7]))
    cache.namespace("shop")["elsewhere"] = 1
    assert sorted(pyrocache(cluster, "scan").out.splitlines()) == [
        "'group'",
        "'user:1'",
        "'user:2'",
        "('a', 1)",
        "7",
    ]
    assert sorted(pyrocache(cluster, "scan", "user:").out.splitlines()) == ["'user:1'", "'user:2'"]
    assert pyrocache(cluster, "scan", "-n", "shop").out == "'elsewhere'\n"


# Options ------------------------------------------------------------------------------------------------------


def test_short_options(cluster: LocalCluster, cache: PyroCacheClient) -> None:
    at = ("-s", cluster.nameserver, "-t", "3")
    assert call("pyrocache", "set", "-n", "shop", *at, "key", "value") == Outcome(0, "", "")
    assert call("pyrocache", "get", "-n", "shop", "-r", *at, "key") == Outcome(0, "value", "")
    assert call("pyrocache", "delete", "-n", "shop", *at, "key") == Outcome(0, "", "")
    assert json.loads(call("pyrocache", "status", "-j", *at).out)["nodes"]
    assert json.loads(call("pyrocache", "stats", "-j", *at).out)["nodes"]
    assert call("pyrocache", "ping", *at) == Outcome(0, "3 nodes answer.\n", "")
    assert call("pyrocache", "-V").out == call("pyrocache", "--version").out


@pytest.mark.parametrize(
    "command", ["status", "stats", "ping", "scan", "get key", "set key value", "delete key"]
)
def test_a_timeout_bounds_every_command(cluster: LocalCluster, command: str) -> None:
    with cluster.client() as cache:
        index = int(cache.node_for("key").name.rpartition(".")[2]) - 1
    cluster.pause(index)
    took = []
    try:
        for _ in range(3):  # the machine may be busy
            begin = time.monotonic()
            failed = pyrocache(cluster, *command.split(), "--timeout", "0.3")
            took.append(time.monotonic() - begin)
            if took[-1] < 1.9:
                break
    finally:
        cluster.resume(index)
    assert failed.status == 1
    assert min(took) < 1.9  # the defaults are 2 and 5


@pytest.mark.parametrize(
    "command", ["get", "get key more", "get key --nowhere", "nothing", "--nothing", "get -x"]
)
def test_a_wrong_command_line_is_told_in_one_sentence(command: str) -> None:
    refused = call("pyrocache", *command.split())
    assert refused.status == 2
    assert re.fullmatch(r"pyrocache( get)?: .+\. See: pyrocache( get)? --help", refused.sentence)


# ping ---------------------------------------------------------------------------------------------------------


def test_ping_names_the_nodes_that_do_not_answer(cluster: LocalCluster) -> None:
    for index, told in ((1, "cache.node.2 does not answer"), (2, "cache.node.2, cache.node.3 do not answer")):
        cluster.pause(index)
        try:
            failed = pyrocache(cluster, "ping", "-t", "0.3")
            since = time.monotonic()
            others = pyrocache(cluster, "ping", "-t", "10", "cache.node.1")
            assert time.monotonic() - since < 8.0, "it does not wait for those that it was not asked about"
        finally:
            if index == 2:
                cluster.resume(1)
                cluster.resume(2)
        assert failed.status == 1
        assert failed.sentence.startswith(f"{told}. ")
        assert failed.sentence.endswith(f"pyrocache status --nameserver {cluster.nameserver}")
        assert others == Outcome(0, "1 node answers.\n", "")
    assert pyrocache(cluster, "ping") == Outcome(0, "3 nodes answer.\n", "")


def test_ping_of_a_node_that_is_not_there(cluster: LocalCluster) -> None:
    failed = pyrocache(cluster, "ping", "cache.node.9", "cache.node.1")
    assert failed.status == 1
    assert "cache.node.9: no such node" in failed.sentence


def test_ping_waits_until_the_cache_can_serve(cluster: LocalCluster) -> None:
    cluster.pause(0)
    resumed = Timer(0.8, cluster.resume, [0])
    resumed.start()
    try:
        told = pyrocache(cluster, "ping", "--timeout", "0.3", "--wait", "20")
    finally:
        resumed.join()
    assert told == Outcome(0, "3 nodes answer.\n", "")


def test_ping_does_not_wait_for_ever() -> None:
    begin = time.monotonic()
    failed = call("pyrocache", "ping", "--wait", "0.5", "-s", free_address())
    assert failed.status == 1
    assert "pyrocache nameserver" in failed.sentence
    assert time.monotonic() - begin >= 0.3


def test_ping_does_not_repeat_what_can_never_succeed() -> None:
    assert "timeout must be" in call("pyrocache", "ping", "--wait", "60", "-t", "0").sentence


# Completion ---------------------------------------------------------------------------------------------------

COMPLETIONS = {
    "pyrocache st": ["stats", "status", "stop"],
    "pyrocache get --ra": ["--raw"],
    "pyrocache get key --ti": ["--timeout"],
    "pyrocache nodes --eviction ": ["lru", "s3fifo"],
    "pyrocache nodes --eviction l": ["lru"],
    "pyrocache status --nameserver 127.0.0.1:9090 --js": ["--json"],
    "pyrocache get us": [],
}


def complete(command: list[str], shell: dict[str, str]) -> list[str]:
    told = subprocess.run(command, env=shell, capture_output=True, text=True, timeout=30)
    assert told.stderr == ""
    return told.stdout.splitlines()


@pytest.mark.full
def test_completion_in_bash(shell: dict[str, str]) -> None:
    script = "source <(pyrocache --show-completion)\n"
    for line in COMPLETIONS:
        words = re.split(r"(:)| ", line)  # as $COMP_WORDBREAKS does
        quoted = " ".join(f"'{word}'" for word in words if word is not None)
        script += f"COMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        script += "COMPREPLY=(); _pyrocache_completion pyrocache; echo = ${COMPREPLY[@]}\n"
    script += "complete -p pyrocache"
    *told, registered = complete(["bash", "-c", script], shell)
    assert [sorted(line.split()[1:]) for line in told] == list(COMPLETIONS.values())
    assert "-F _pyrocache_completion pyrocache" in registered


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.full
def test_completion_in_fish(shell: dict[str, str]) -> None:
    script = "pyrocache --show-completion | source\n"
    script += "".join(f"echo =; complete -C '{line}'\n" for line in COMPLETIONS if line != "pyrocache get us")
    _, *answers = "\n".join(complete(["fish", "-c", script], shell)).split("=")
    told = [sorted(row.partition("\t")[0] for row in answer.split("\n") if row) for answer in answers]
    assert told == [words for words in COMPLETIONS.values() if words]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
@pytest.mark.full
def test_completion_in_zsh(shell: dict[str, str]) -> None:
    script = (
        "compdef() { echo compdef $@ }\n_arguments() { echo = $@ }\n_files() { echo = }\n"
        'eval "$(pyrocache --show-completion)"\n'
    )
    for line in COMPLETIONS:
        script += f'words=("${{(@s: :)${{:-{line}}}}}"); CURRENT=$#words; _pyrocache_completion\n'
    registered, *told = "\n".join(complete(["zsh", "-fc", script], shell)).split("\n=")
    assert registered == "compdef _pyrocache_completion pyrocache"
    found = [sorted(re.findall(r'(?<=[( ])"([\w-]+)"(?=[: )])', answer)) for answer in told]
    assert found == list(COMPLETIONS.values())


def test_the_scripts_for_packages_need_no_shell_around(shell: dict[str, str]) -> None:
    for name, part in {
        "bash": "complete -o default",
        "zsh": "#compdef",
        "fish": "complete --command",
    }.items():
        command = [sys.executable, "-m", "pyrocache"]
        assert part in "\n".join(complete(command, {**shell, "_PYROCACHE_COMPLETE": f"source_{name}"}))


# Pipes, locales, interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.full)])
def test_nobody_reads_the_output(shell: dict[str, str], cache: PyroCacheClient, unbuffered: str) -> None:
    shell = {**shell, "PYTHONUNBUFFERED": unbuffered}
    cache.set_many(dict.fromkeys(f"{number:0100}" for number in range(2000)))  # more than a pipe holds
    cache["large"] = "x" * 300_000
    for command in ("scan", "get large", "get --raw large"):
        script = f"pyrocache {command} | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}"
        told = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, text=True, timeout=30)
        assert (told.stdout, told.stderr) == ("141\n", ""), command


OTHER_OUTPUTS = ("get key", "get --raw key", "stats --json", "ping", "--version")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "command",
    ["status", *(pytest.param(command, marks=pytest.mark.full) for command in OTHER_OUTPUTS)],
)
def test_the_disk_is_full(shell: dict[str, str], cache: PyroCacheClient, command: str) -> None:
    cache["key"] = "value"
    script = f"pyrocache {command} >/dev/full"
    told = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, text=True, timeout=30)
    assert (told.returncode, told.stderr) == (1, "Cannot go on: the disk is full.\n")


@pytest.mark.full
def test_streams_that_are_closed(shell: dict[str, str], cache: PyroCacheClient) -> None:
    cache["key"] = "value"
    closed = "Cannot go on: standard output is closed.\n"
    for script, status, error in (
        ("pyrocache get key >&-", 1, closed),
        ("pyrocache status >&-", 1, closed),
        ("pyrocache set key value >&-", 0, ""),
        ("pyrocache get key <&-", 0, ""),
        ("pyrocache get nobody 2>&-", 1, ""),
    ):
        told = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, text=True, timeout=30)
        assert (told.returncode, told.stderr) == (status, error), script
        assert "nobody" not in script or told.stdout == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.full),
        pytest.param({"NO_COLOR": "1", "TERM": "dumb"}, marks=pytest.mark.full),
    ],
)
def test_locales_without_unicode(
    cluster: LocalCluster, cache: PyroCacheClient, variables: dict[str, str]
) -> None:
    cache["key"] = "grüße"
    shell = {**variables, "PYROCACHE_NAMESERVER": cluster.nameserver}
    shown = run("-m", "pyrocache", "get", "key", **shell)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out in ("'grüße'\n", "'gr\\xfc\\xdfe'\n")
    assert run("-m", "pyrocache", "get", "-r", "key", **shell) == Outcome(0, "grüße", "")
    for command in ("status", "--help"):
        told = run("-m", "pyrocache", *command.split(), **shell)
        assert (told.status, told.err) == (0, ""), command
        assert "\x1b" not in told.out, command


@pytest.mark.full
def test_a_key_that_is_no_text_in_the_locale(shell: dict[str, str]) -> None:
    script = "pyrocache set $'\\xff' value && pyrocache get -r $'\\xff' && pyrocache get $'\\xfe'"
    told = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, text=True, timeout=30)
    assert (told.returncode, told.stdout) == (1, "value")
    assert told.stderr == "There is no entry under this key.\n"


@pytest.mark.parametrize("delay", [0.0, 0.5], ids=["early", "late"])
@pytest.mark.parametrize("command", ["get key", "set key -", "ping --wait 60", "status"])
def test_ctrl_c(cluster: LocalCluster, command: str, delay: float) -> None:
    with cluster.client() as cache:
        index = int(cache.node_for("key").name.rpartition(".")[2]) - 1
    cluster.pause(index)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyrocache", *command.split(), "-t", "60"],
            cwd=ROOT,
            env=environment(PYROCACHE_NAMESERVER=cluster.nameserver),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        eventually(lambda: begun(process.pid), 20.0)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        cluster.resume(index)
    assert process.returncode in (130, -signal.SIGINT)  # a shell reports both as 130
    assert (out, err) == (b"", b"")


def begun(pid: int) -> bool:
    """Whether the process has loaded what every command needs, so that it is past the start of the interpreter."""
    return "_cmsgpack" in Path(f"/proc/{pid}/maps").read_text()


# What it prints can be copied and run -------------------------------------------------------------------------


@pytest.mark.full
def test_the_hints_of_nodes_can_be_run(shell: dict[str, str], tmp_path: Path) -> None:
    address = free_address()
    out = tmp_path / "out"
    with out.open("wb") as stream:
        process = subprocess.Popen(
            ["pyrocache", "nodes", "-w", "-n", "1", "-s", address],
            env=shell,
            stdout=stream,
            stderr=subprocess.DEVNULL,
        )
    try:
        eventually(lambda: "ready\n" in out.read_text(), 20.0)
        status = re.findall(r"^Show them with: (.+)$", out.read_text(), re.MULTILINE)[0]
        python = re.findall(r"^Use them in Python with: (.+)$", out.read_text(), re.MULTILINE)[0]
        shown = subprocess.run(["bash", "-c", status], env=shell, capture_output=True, text=True, timeout=30)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "cache.node.1" in shown.stdout
        assert run("-c", f"import pyrocache; {python}.nodes()[0]") == Outcome(0, "", "")
    finally:
        process.terminate()
        process.wait(10.0)


@pytest.mark.full
def test_a_node_is_restarted_when_nobody_reads_the_reports(shell: dict[str, str]) -> None:
    address = free_address()
    process = subprocess.Popen(
        ["pyrocache", "nodes", "-w", "-n", "1", "-s", address],
        env=shell,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[-1] == "ready\n", lines
        process.stderr.close()
        for _ in range(2):
            pid = served_by(address)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            eventually(lambda old=pid: served_by(address) not in (None, old), 20.0)  # type: ignore[misc]
    finally:
        process.terminate()
        process.wait(10.0)
        process.stdout.close()  # type: ignore[union-attr]


def served_by(address: str) -> int | None:
    """The pid of the node, or None if it does not answer."""
    with PyroCacheClient(address, timeout=1.0) as cache:
        return next((node.pid for node in cache.stats().nodes.values()), None)
