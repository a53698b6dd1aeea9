"""Ed25519 signatures of recipes (RFC 8032), by the package cryptography.

What is signed is the hash of the body with the author and the date, so that neither can be changed afterwards; the body
and its hash stay as they are.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from dermaudit.errors import AlteredArtifactError, UserInputError
from dermaudit.files import canonical_json, write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )


class Envelope(TypedDict):
    """What a recipe file holds besides its body. All are None without a signature; `signature` and `public_key` are
    base64.
    """

    author: str | None
    date: str | None  # ISO 8601, UTC
    public_key: str | None
    signature: str | None


UNSIGNED = Envelope(author=None, date=None, public_key=None, signature=None)


def signed(body_sha256: str, author: str, date: str, key: Ed25519PrivateKey) -> Envelope:
    """Return the envelope of a body with this hash."""
    public = key.public_key().public_bytes_raw()
    signature = key.sign(_message(body_sha256, author, date))
    return Envelope(author=author, date=date, public_key=_text(public), signature=_text(signature))


def check_signature(body_sha256: str, envelope: Envelope, place: Path) -> None:
    """Raise AlteredArtifactError unless the envelope is unsigned, or signs this body."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if envelope == UNSIGNED:
        return
    try:
        raw = base64.b64decode(envelope["public_key"] or "", validate=True)
        signature = base64.b64decode(envelope["signature"] or "", validate=True)
        message = _message(body_sha256, str(envelope["author"]), str(envelope["date"]))
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise AlteredArtifactError(
            f"{place} was altered: its signature is not that of this recipe, author and date",
            "ask the author for the signed file",
        ) from error


def _message(body_sha256: str, author: str, date: str) -> bytes:
    return canonical_json({"author": author, "body_sha256": body_sha256, "date": date})


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def public_text(key: Ed25519PublicKey) -> str:
    """Return a public key as the envelope has it."""
    return _text(key.public_bytes_raw())


def new_key(path: Path) -> Path:
    """Write a private key, readable by its owner only, and the public key beside it; return the path of the latter.

    UserInputError where a file is there already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_suffix(".pub.pem")
    for each in (path, public):
        if each.exists():
            raise UserInputError(
                f"{each} exists", "give --key another name: a key is never overwritten"
            )
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(private)
    write_bytes(
        public,
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )
    return public


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key. UserInputError for a file that is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key. UserInputError for a file that is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserInputError(
            f"{path} cannot be read ({error.strerror})", "give --key the file of a key"
        ) from error


def _no_key(path: Path, kind: str) -> UserInputError:
    return UserInputError(
        f"{path} is not a {kind} Ed25519 key in PEM form",
        "make one with: dermaudit recipe sign RECIPE --key NEW.pem --new-key --author NAME",
    )
