"""The commands of examples/deployment/kubernetes.yaml, on hosts with the names, the user and the files of its pods.

The Secrets are made as docs/deployment.md says, and are where kubelets put them, for a user that is not root. There is
no Kubernetes here: ``/etc/hosts`` does what its Services do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.support.commands import shell_environment
from tests.support.deployment import Command
from tests.support.network import Host, Network, network
from tests.support.operators import DOCUMENT
from tests.support.processes import ROOT

pytestmark = pytest.mark.full

USER = 10001
# It may read all files: Python itself may be in the home of root.
_AS_USER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={USER}"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
NAMES = {
    "names": "pyrocache.default.svc",
    "zero": "cache-0.cache.default.svc",
    "one": "cache-1.cache.default.svc",
}


def _manifest(kind: str, name: str) -> Any:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "examples" / "deployment" / "kubernetes.yaml").read_text(encoding="utf-8")
    (found,) = (
        one for one in yaml.safe_load_all(text) if one["kind"] == kind and one["metadata"]["name"] == name
    )
    return found


def _container(name: str) -> Any:
    (only,) = _manifest("StatefulSet", name)["spec"]["template"]["spec"]["containers"]
    return only


class Pods:
    """The pods of the manifest, on the hosts that `NAMES` has."""

    def __init__(self, hosts: Network) -> None:
        self._hosts = hosts
        scripts = hosts.shared / "bin"
        scripts.mkdir()
        self._path = shell_environment(scripts, "")["PATH"]
        self._volume = hosts.shared / "volume"
        self._mount_secrets()
        hosts.shared.chmod(0o755)
        for host in hosts:
            host.call(self._add_names, host)
            host.call(os.chown, host.directory, USER, USER)
            host.variables = {"PATH": self._path, "HOME": str(host.directory), "TMPDIR": str(host.directory)}
            host.variables |= _manifest("ConfigMap", "pyrocache")["data"]

    def start(self, host: str, container: str, pod: str) -> Command:
        """Start the command of a container. Return it once it is ready."""
        spec, variables = _container(container), self._variables(host, pod)
        words = [*spec.get("command", ["pyrocache"]), *spec["args"]]
        for name, value in variables.items():
            words = [word.replace(f"$({name})", value) for word in words]
        command = Command(self._start(host, words, variables, spec))
        command.wait_for(r"^ready$|ready at")
        return command

    def probe(self, host: str, pod: str) -> str:
        """Return what the readiness probe of a node prints. Fails if it does."""
        words = _container("cache")["readinessProbe"]["exec"]["command"]
        return self.execute(host, pod, *words)

    def execute(self, host: str, pod: str, *words: str) -> str:
        """Do what ``kubectl exec`` does."""
        process = self._start(host, [*words], self._variables(host, pod), _container("cache"))
        said, _ = process.communicate(timeout=30.0)
        assert process.returncode == 0, said
        return said

    def _start(
        self, host: str, words: list[str], variables: dict[str, str], spec: Any
    ) -> subprocess.Popen[str]:
        own = {one["name"]: one["value"] for one in spec["env"] if "value" in one}
        there = self._hosts[host]
        before = there.variables
        there.variables = {
            name: value.replace("/etc/pyrocache", str(self._volume))
            for name, value in {**before, **own, **variables}.items()
        }
        try:
            return there.start(
                "-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *_AS_USER, *words
            )
        finally:
            there.variables = before

    def _variables(self, host: str, pod: str) -> dict[str, str]:
        return {"POD_NAME": pod, "POD_IP": self._hosts[host].ipv4}

    def _mount_secrets(self) -> None:
        """Make the Secrets, and lay their files out as a projected volume with an fsGroup."""
        section = DOCUMENT.read_text(encoding="utf-8").partition("## Kubernetes")[2].partition("\n## ")[0]
        lines = re.findall(r"^\$ (.*)$", section, re.MULTILINE)
        made = self._hosts.shared / "made"
        made.mkdir()
        typed = "\n".join([*lines[: lines.index("cd ../..")], "pwd"])
        kubectl = self._hosts.shared / "bin" / "kubectl"
        kubectl.write_text(
            f"#!/bin/sh\nmkdir -p {self._volume}/..data-1\n"
            f'for word; do case $word in --from-file=*) cp "${{word#*=}}" {self._volume}/..data-1/;; esac; done\n'
        )
        kubectl.chmod(0o755)
        done = subprocess.run(
            ["sh", "-ec", typed],
            cwd=made,
            env={**os.environ, "PATH": self._path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        data = self._volume / "..data-1"
        for file in data.iterdir():
            file.chmod(0o440)
            os.chown(file, 0, USER)
            (self._volume / file.name).symlink_to(f"..data/{file.name}")
        (self._volume / "..data").symlink_to("..data-1")
        data.chmod(0o755)
        self._volume.chmod(0o1777)

    def _add_names(self, host: Host) -> None:
        with (host.directory / "hosts").open("a") as file:
            file.writelines(f"{self._hosts[name].ipv4} {given}\n" for name, given in NAMES.items())


def test_pods_make_a_cluster_and_take_their_names_again() -> None:
    pytest.importorskip("cryptography")
    if shutil.which("setpriv") is None:
        pytest.skip("the command setpriv is not installed")
    with network(*NAMES) as hosts:
        pods = Pods(hosts)
        pods.start("names", "pyrocache-nameserver", "pyrocache-nameserver-0")
        pods.start("zero", "cache", "cache-0")
        node = pods.start("one", "cache", "cache-1")
        assert pods.probe("zero", "cache-0") == "1 node answers.\n"
        shown = pods.execute("one", "cache-1", "pyrocache", "status")
        for name in ("cache.node.1", "cache.node.2", "cache-0.cache.default.svc:7001", NAMES["one"]):
            assert name in shown
        node.process.terminate()
        assert node.process.wait(15) == 0
        assert "cache.node.2" not in pods.execute("zero", "cache-0", "pyrocache", "status")
        pods.start("one", "cache", "cache-1")
        assert pods.probe("one", "cache-1") == "1 node answers.\n"
        assert pods.execute("zero", "cache-0", "pyrocache", "ping") == "2 nodes answer.\n"
