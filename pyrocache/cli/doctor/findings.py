"""Judges what was observed: from an `Observed` to findings, each with what to do about it.

No I/O, no clock. `findings` calls one function for each subject. Commands to copy repeat the options of the present
command.

Thread safety: functions without state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from enum import Enum
from typing import NamedTuple

from pyrocache.cli.doctor.observed import Cause, CertificateSeen, KeyFileSeen, NodeSeen, Observed, Way
from pyrocache.cli.output import to_copy
from pyrocache.config import TLS, NodeConfig, format_size
from pyrocache.net.directory import explain_obstacle
from pyrocache.protocol.handshake import legible

_SOON = timedelta(days=30)
_SLOW_MILLISECONDS = 50.0
_MOST_CONNECTIONS = NodeConfig().max_connections
_FULL = 0.9  # of the descriptors
_RSS_FACTOR, _RSS_BYTES = (
    1.3,
    64 * 2**20,
)  # a node's process stays below this, see `NodeConfig.max_buffered_bytes`
_NEARLY_ALL = 0.8  # of the memory
_UNLIKE = 1.5  # memory for each share of the keys, of the node with the most to that with the least


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        subject: what it is about.
        what: how it is, as a sentence.
        advice: what to do, as a sentence; empty if nothing is to be done.
    """

    level: Level
    subject: str
    what: str
    advice: str = ""


def findings(seen: Observed) -> list[Finding]:
    """Return all findings. Causes come before their consequences."""
    return [finding for judge in _JUDGES for finding in judge(seen)]


def _ok(subject: str, what: str) -> Finding:
    return Finding(Level.OK, subject, what)


def _note(subject: str, what: str, advice: str = "") -> Finding:
    return Finding(Level.NOTE, subject, what, advice)


def _problem(subject: str, what: str, advice: str = "") -> Finding:
    return Finding(Level.PROBLEM, subject, what, advice)


# This host ---------------------------------------------------------------------------------------------------


def _secret(seen: Observed) -> Iterator[Finding]:
    secret = seen.secret
    if not secret.path:
        advice = "Copy it from a host of this cluster, or make one with: pyrocache secret"
        yield _problem("secret", "This user has no secret file.", advice)
        return
    yield from _key_file("secret", secret, "pyrocache secret")
    if secret.temporary and not secret.error:
        advice = "Copy it to a lasting place, and name that with --secret-file or PYROCACHE_SECRET_FILE."
        yield _note(
            "secret", f"{secret.path} is in a directory for temporary files, which may be emptied.", advice
        )


def _signing_key(seen: Observed) -> Iterator[Finding]:
    if seen.signing_key is not None:
        yield from _key_file("signing key", seen.signing_key, "pyrocache secret --secret-file FILE")


def _key_file(subject: str, file: KeyFileSeen, command: str) -> Iterator[Finding]:
    if file.error:
        yield _problem(subject, file.error)  # which has the advice
    elif file.staged:
        advice = f"Once all hosts have this file: {command} promote"
        yield _note(subject, f"{file.path} has {file.keys} keys; the added one is not used yet.", advice)
    elif file.keys > 1:
        advice = f"Once all hosts have this file: {command} prune"
        yield _note(subject, f"{file.path} has {file.keys} keys; the old ones are still accepted.", advice)
    else:
        yield _ok(subject, f"{file.path} has 1 key, and only this user can read it.")


def _certificates(seen: Observed) -> Iterator[Finding]:
    for certificate in seen.certificates:
        if certificate.error:
            advice = "Give the right --tls-ca, --tls-cert and --tls-key, or renew: pyrocache certificates DIR --renew"
            yield _problem("certificate", f"{certificate.place} cannot be used: {certificate.error}.", advice)
        else:
            yield _validity(seen, certificate)
    yield from _names(seen)
    if seen.certificates:
        yield _ok(
            "clock",
            f"It is {seen.now:%Y-%m-%d %H:%M} UTC by this host's clock. Only certificates depend on it: times to live "
            "and leases do not.",
        )


def _names(seen: Observed) -> Iterator[Finding]:
    """Compare the names in this host's certificate with the addresses of its nodes."""
    names = {name.lower() for certificate in seen.certificates for name in certificate.names}
    hosts = {node.member.host.lower() for node in seen.nodes if node.here}
    if names and (missing := sorted(hosts - names)):
        yield _note(
            "certificate",
            f"It is not for {', '.join(missing)}, an address of nodes here.",
            "If they use it, make one with this address, too: pyrocache certificates DIR HOST,ADDRESS",
        )


def _validity(seen: Observed, certificate: CertificateSeen) -> Finding:
    assert certificate.ends is not None
    left = certificate.ends - seen.now
    until = f"{certificate.place} is valid until {certificate.ends:%Y-%m-%d}"
    advice = "Renew it with: pyrocache certificates DIR --renew"
    if left <= timedelta(0):
        return _problem("certificate", f"{certificate.place} ended on {certificate.ends:%Y-%m-%d}.", advice)
    if left < _SOON:
        return _note("certificate", f"{until}, {left.days} days from now.", advice)
    return _ok("certificate", f"{until}, {left.days} days from now.")


def _sockets(seen: Observed) -> Iterator[Finding]:
    directory, (length, longest) = seen.host.socket_directory, seen.host.socket_path_bytes
    advice = "Set TMPDIR to a short path of a directory that exists, for nodes and clients alike."
    if not directory:
        yield _note(
            "Unix sockets", "There is no directory for them, so nodes started here use TCP alone.", advice
        )
    elif length > longest:
        yield _note(
            "Unix sockets",
            f"Their paths in {directory} would have {length} bytes, and the system allows {longest}, so nodes started "
            "here use TCP alone.",
            advice,
        )


# The cluster -------------------------------------------------------------------------------------------------


def _name_server(seen: Observed) -> Iterator[Finding]:
    server, subject = seen.name_server, "name server"
    where = f"{server.address} ({server.source})"
    if server.way.error:
        advice = _ADVICE.get(server.way.cause) or server.way.advice
        yield _problem(subject, f"{where}: {server.way.error}.", advice)
        return
    took = f"answers in {server.way.milliseconds:.1f} ms"
    if server.way.proved:
        yield _ok(subject, f"{where} {took}, and proves the secret.")
    elif not seen.secret.keys:
        yield _note(subject, f"{where} {took}. Without a secret, neither it nor the nodes were checked.")
    else:
        advice = "Use `pyrocache nameserver`, which proves it."
        yield _note(
            subject, f"{where} {took}, but proves no secret: any user of this host may run it.", advice
        )
    if not server.on_loopback and not isinstance(seen.tls, TLS):
        yield _note(
            "encryption",
            "Connections with other hosts are not encrypted: whoever is on the path can read and change values.",
            "Make certificates with `pyrocache certificates`, or protect the path by other means.",
        )
    yield from _presented(seen, server.way)
    yield from _listing(seen)


def _listing(seen: Observed) -> Iterator[Finding]:
    server, subject = seen.name_server, "name server"
    listing = server.listing
    if listing.obstacle:
        text, _, command = explain_obstacle(server.address, listing.obstacle).partition(" Remove it with: ")
        yield _problem(subject, f"{text[0].upper()}{text[1:]}", f"Remove it with: {command}")
    if listing.strangers:
        yield _note(
            subject,
            "Nodes of another cluster are registered, too. They are left out.",
            f"If they are not yours any more, remove them: {to_copy('nodes remove NAME', seen.name_server.address)}",
        )
    known = {member.name for member in listing.view.members}
    waiting = sorted(member.name for member in listing.members if member.name not in known)
    if not known and not waiting:
        yield _problem(
            subject,
            "No node is registered.",
            f"Start nodes with: {to_copy('nodes', seen.name_server.address)}",
        )
    elif not listing.view.number:
        yield _note(
            subject, "It has no view of the cluster.", "Wait a few seconds: the nodes restore what it forgot."
        )
    elif waiting:
        yield _note(
            subject,
            f"{' and '.join(waiting)}: registered, but not in the view of the cluster.",
            "A node joins within seconds. If it stays so, members that do not answer hold it up.",
        )


def _nodes(seen: Observed) -> Iterator[Finding]:
    for node in seen.nodes:
        yield from _node(seen, node)
        yield from _presented(seen, node.tcp)


def _node(seen: Observed, node: NodeSeen) -> Iterator[Finding]:
    name, where = node.member.name, node.member.address
    reached = [way for way in (node.tcp, node.unix) if way is not None and not way.error]
    if node.tcp.error:
        yield _problem(name, f"{where}: {node.tcp.error}.", _advice(seen, node))
    elif node.unix is not None and node.unix.error:
        yield _note(
            name,
            f"Its Unix socket is of no use: {node.unix.error}. Clients on this host use TCP, which takes longer.",
            "If cleaners remove old files of TMPDIR, exclude pyrocache-*; then start the node again.",
        )
    if not reached:
        return
    if node.stats is None:
        advice = "If it stays so, start it again; see its log."
        yield _problem(name, f"{where} answers a ping, but did not send its statistics in time.", advice)
    elif not node.stats.serving:
        advice = "It gets one when name server or most nodes confirm its view: see the findings about these."
        yield _problem(name, f"{where} has no lease, so it does not serve.", advice)
    elif not node.tcp.error:
        yield _ok(name, f"{where} serves; {_latency(node)}.")
    yield from _slowness(name, reached)


def _advice(seen: Observed, node: NodeSeen) -> str:
    """Return what to do about a node without a TCP connection."""
    if node.tcp.cause in (Cause.REFUSED, Cause.TIMED_OUT):
        if node.stats is not None:
            return "It answers on its Unix socket: is there a firewall, or does it listen elsewhere?"
        command = to_copy(f"nodes remove {node.member.name}", seen.name_server.address)
        remove = f"if it does not come back, remove it with: {command}"
        if node.tcp.cause is Cause.REFUSED:
            return f"Start the node again, as its keys are lost until then; {remove}"
        return f"Is its host up, and does a firewall let port {node.member.port} through? Else start it again; {remove}"
    return _ADVICE.get(node.tcp.cause) or node.tcp.advice


_ADVICE = {
    Cause.UNRESOLVED: "Check the name, and how this host resolves names.",
    Cause.SECRET: "Give all hosts the same secret file: pyrocache secret prints its path.",
    Cause.CERTIFICATE: (
        "Is it there (--tls-cert), valid, of the authority in --tls-ca, and for this name or address? Make another one "
        "with `pyrocache certificates`, copy it there, and send SIGHUP."
    ),
}


def _latency(node: NodeSeen) -> str:
    over = [f"{node.tcp.milliseconds:.1f} ms over TCP"]
    if node.unix is not None and not node.unix.error:
        over.append(f"{node.unix.milliseconds:.1f} ms over its Unix socket")
    return f"a ping takes {' and '.join(over)}"


def _slowness(name: str, reached: Iterable[Way]) -> Iterator[Finding]:
    slowest = max(way.milliseconds for way in reached)
    if slowest > _SLOW_MILLISECONDS:
        yield _note(name, f"A ping takes {slowest:.0f} ms.", "Is the host overloaded, or the network?")


def _presented(seen: Observed, way: Way) -> Iterator[Finding]:
    """Judge a certificate that a server has presented, and OpenSSL accepted. Yield nothing if it is valid for long."""
    if way.certificate is not None and not way.certificate.error:
        finding = _validity(seen, way.certificate)
        if finding.level is not Level.OK:
            yield finding._replace(advice=f"{finding.advice}; then copy it there, and send SIGHUP.")


def _agreement(seen: Observed) -> Iterator[Finding]:
    """Compare the nodes with each other."""
    figures = {node.member.name: node.stats for node in seen.nodes if node.stats is not None}
    views = sorted({stats.view for stats in figures.values() if stats.view})
    if len(views) > 1:
        advice = "If it stays so, some nodes do not reach the name server, or each other."
        yield _problem("view", f"Nodes have the views {', '.join(map(str, views))}.", advice)
    elif views:
        yield _ok("view", f"{_count(len(figures), 'node')} with view {views[0]}.")
    for name, stats in figures.items():
        if stats.silent:
            advice = "Is there a firewall between them, or the address wrong that the other host advertises?"
            yield _problem(name, f"It gets no answer from {' and '.join(stats.silent.split())}.", advice)
        yield from _handshakes(
            name, stats.handshakes_refused, stats.handshakes_malformed, stats.handshakes_late
        )
    yield from _likeness(seen)


def _handshakes(name: str, refused: int, malformed: int, late: int) -> Iterator[Finding]:
    if refused:
        yield _note(
            name,
            f"It has refused {_count(refused, 'connection')} since its start.",
            "Its log says why and from where. A client with another secret, or none, is the usual cause.",
        )
    if strange := malformed + late:
        yield _note(
            name,
            f"{_count(strange, 'connection')} sent no valid handshake in time.",
            "Something else than a client connects to this port, such as a scanner or a probe of a load balancer, or "
            "clients do not accept its certificate.",
        )


def _likeness(seen: Observed) -> Iterator[Finding]:
    nodes = [node for node in seen.nodes if node.stats is not None]
    versions = {legible(node.version) for node in nodes if node.version}
    if len(versions | ({seen.host.version} if versions else set())) > 1:
        listed = ", ".join(sorted(versions))
        what = f"Nodes have the versions {listed}, and this command {seen.host.version}."
        yield _note(
            "version", what, "Finish the upgrade: neighbouring versions work together, others may not."
        )
    policies = sorted({node.stats.policy for node in nodes if node.stats})
    if len(policies) > 1:
        what = f"Nodes have different eviction policies: {', '.join(map(legible, policies))}."
        yield _note("eviction", what, "Start all nodes with the same --eviction.")
    sizes = sorted({node.max_value_bytes for node in nodes if node.max_value_bytes})
    if len(sizes) > 1:
        what = f"Nodes accept values of up to {format_size(sizes[0])} to {format_size(sizes[-1])}."
        yield _note(
            "values", what, "Start all nodes with the same --max-value: keys decide which node gets a value."
        )
    shares = sorted(node.stats.max_bytes / node.member.weight for node in nodes if node.stats)
    if shares and shares[-1] > _UNLIKE * shares[0]:
        what = "Nodes have different amounts of memory for the same share of the keys, so some evict much earlier."
        yield _note("memory", what, "Give each node a --weight in proportion to its --max-memory.")


# Resources ---------------------------------------------------------------------------------------------------


def _memory(seen: Observed) -> Iterator[Finding]:
    """Compare the memory that the nodes of this host may take with what there is."""
    here = [node for node in seen.nodes if node.here and node.stats is not None]
    groups = sorted({node.memory_limit for node in here if node.memory_limit})
    limits = [seen.host.memory, *groups] if seen.host.memory else groups
    if not here or not limits:
        return
    most = min(limits)
    what_limits = "their control group" if groups and most == groups[0] else "this machine"
    needed = sum(int(node.stats.max_bytes * _RSS_FACTOR) + _RSS_BYTES for node in here if node.stats)
    text = f"{_count(len(here), 'node')} here may take {format_size(needed)} of the {format_size(most)}"
    text = f"{text} of {what_limits}"
    advice = "Start them with a smaller --max-memory: a process may take 1.3 times that, and 64 MiB."
    if needed > most:
        yield _problem("memory", f"{text}, so the system may kill them.", advice)
    elif needed > _NEARLY_ALL * most:
        yield _note("memory", f"{text}.", advice)
    else:
        yield _ok("memory", f"{text}.")


def _descriptors(seen: Observed) -> Iterator[Finding]:
    advice = "Raise the limit: `ulimit -Hn` in a shell, LimitNOFILE= in a systemd unit."
    for node in seen.nodes:
        if node.stats is None or node.descriptors is None:
            continue
        used = (
            f"{_count(node.stats.connections, 'connection')}, with a limit of {node.descriptors} descriptors"
        )
        if node.stats.connections > _FULL * node.descriptors:
            yield _problem(node.member.name, f"It has {used}.", advice)
        elif node.descriptors < _MOST_CONNECTIONS:
            yield _note(node.member.name, f"It has {used}.", advice)
    if seen.host.descriptors < _MOST_CONNECTIONS and not any(node.descriptors for node in seen.nodes):
        what = (
            f"Processes started here may have {seen.host.descriptors} descriptors, one for each connection."
        )
        yield _note("descriptors", what, advice)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


_JUDGES: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    *(
        _secret,
        _signing_key,
        _certificates,
        _name_server,
        _nodes,
        _agreement,
        _memory,
        _descriptors,
        _sockets,
    ),
)
