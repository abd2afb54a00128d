"""Proofs of a secret: who can make one, and for what it is good."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.protocol.proof import PROOF_BYTES, Role, derived, prove, proves, transcript

KEY, OTHER = b"k" * 32, b"o" * 32
OFFER = {"node": "cache.node.1", "nonce": b"c" * 32, "dialled": "127.0.0.1:7001"}
ANSWER = {"node": "cache.node.1", "incarnation": "abc", "nonce": b"s" * 32, "clock_ms": 5}
SAID = transcript("cache.node.1", OFFER, ANSWER)


def test_keys_are_derived_as_hkdf_does() -> None:
    """Test case 3 of RFC 5869 without info has these parts; here with salt of zeros and a purpose of our own."""
    key = bytes.fromhex("0b" * 22)
    assert derived(key, b"") == bytes.fromhex(
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )


def test_a_proof_shows_that_its_maker_knows_a_key() -> None:
    proof = prove(KEY, Role.SERVER, SAID)
    assert len(proof) == PROOF_BYTES
    assert proves([OTHER, KEY], Role.SERVER, SAID, proof)
    assert not proves([OTHER], Role.SERVER, SAID, proof)
    assert not proves([], Role.SERVER, SAID, proof)


def test_a_proof_cannot_be_reflected() -> None:
    assert not proves([KEY], Role.CALLER, SAID, prove(KEY, Role.SERVER, SAID))


@pytest.mark.parametrize("made_of", ["offer", "answer"])
@pytest.mark.parametrize(
    "change", [{"nonce": b"x" * 32}, {"node": "cache.node.2"}, {"new": 1}, {"dialled": "x"}]
)
def test_a_proof_is_for_one_connection(made_of: str, change: dict[str, Any]) -> None:
    offer = OFFER | change if made_of == "offer" else OFFER
    answer = ANSWER | change if made_of == "answer" else ANSWER
    proof = prove(KEY, Role.CALLER, SAID)
    assert not proves([KEY], Role.CALLER, transcript("cache.node.1", offer, answer), proof)
    assert not proves([KEY], Role.CALLER, transcript("cache.node.2", OFFER, ANSWER), proof)


def test_a_field_cannot_be_moved_from_one_greeting_to_the_other() -> None:
    assert transcript("a", {"x": 1}, {}) != transcript("a", {}, {"x": 1})


def test_a_proof_does_not_cover_itself() -> None:
    assert transcript("cache.node.1", OFFER, ANSWER | {"proof": b"p"}) == SAID


def test_the_order_of_fields_does_not_matter() -> None:
    assert transcript("cache.node.1", dict(reversed(OFFER.items())), ANSWER) == SAID


@pytest.mark.parametrize("proof", [b"", b"p", b"p" * 31, b"p" * 33, b"p" * 1000])
def test_anything_else_is_no_proof(proof: bytes) -> None:
    assert not proves([KEY], Role.SERVER, SAID, proof)
