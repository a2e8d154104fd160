"""The key with which an installation signs its receipts.

Ed25519, not an HMAC: whoever is given a receipt can see with the public key alone that it was not changed, and could
not write one; with a shared secret every verifier could. The key lies in the database, so that all processes that
serve one database sign alike, and whoever can read it there can read every document as well.
"""

from __future__ import annotations

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from retrieval.store.database import Database
from retrieval.store.tables import now, signing_keys

_ONLY = 1


class Signer:
    """Signs with the key of one database, which is made when it is first needed. Blocks; for threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._private: Ed25519PrivateKey | None = None

    @property
    def public(self) -> str:
        """The public key in hexadecimal."""
        return self._key().public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """The signature in hexadecimal."""
        return self._key().sign(message).hex()

    def _key(self) -> Ed25519PrivateKey:
        if self._private is None:
            found = self._stored()
            if found is None:
                made = Ed25519PrivateKey.generate().private_bytes_raw()
                row = {"id": _ONLY, "private": made, "created_at": now()}
                with self._database.write_aside() as connection:
                    connection.execute(self._database.insert_if_absent(signing_keys).values(row))
                found = self._stored()  # of whoever was first
                assert found is not None
            self._private = Ed25519PrivateKey.from_private_bytes(found)
        return self._private

    def _stored(self) -> bytes | None:
        with self._database.read() as connection:
            return connection.execute(sa.select(signing_keys.c.private).where(signing_keys.c.id == _ONLY)).scalar()


def is_signed(message: bytes, signature: str, public: str) -> bool:
    """Whether the holder of the key signed the message; all in hexadecimal but the message."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True
