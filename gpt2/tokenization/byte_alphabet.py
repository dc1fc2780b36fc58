"""The alphabet in which GPT-2's vocabulary files write bytes: one printable character per byte.

Bytes that are visible characters of Latin-1 stand for themselves; the other 68 (controls, space,
no-break space, soft hyphen) are written, in order, as the characters from U+0100 up, so that a
space is ``Ġ`` and a newline ``Ċ``. (Radford et al. 2019, ``bytes_to_unicode`` of ``encoder.py``.)
"""

from __future__ import annotations

import codecs

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]

# byte -> its character; a string of 256, so that `alphabet[byte]` reads it
BYTE_CHARACTERS = "".join(
    chr(byte) if byte in _VISIBLE else chr(0x100 + _HIDDEN.index(byte)) for byte in range(256)
)

_TO_BYTES = codecs.charmap_build(BYTE_CHARACTERS)
_TO_CHARACTER = dict(enumerate(BYTE_CHARACTERS))


def to_bytes(token: str) -> bytes:
    """The bytes that a token of a vocabulary file stands for.

    A token with a character from outside the alphabet is no spelling of bytes but plain text (an
    added token, say), and stands for its own UTF-8 form.

    >>> to_bytes("Ġworld")
    b' world'
    """
    try:
        return codecs.charmap_encode(token, "strict", _TO_BYTES)[0]
    except UnicodeEncodeError:
        return token.encode("utf-8", "surrogatepass")


def to_characters(data: bytes) -> str:
    """How a vocabulary file writes these bytes.

    >>> to_characters(b" world")
    'Ġworld'
    """
    return data.decode("latin-1").translate(_TO_CHARACTER)
