"""Recognise the two things that most often lie in the place of a downloaded file."""

from __future__ import annotations

# How many bytes of a file `impostor` needs to see.
HEAD_BYTES = 256


def impostor(head: bytes) -> str | None:
    """What a file really is when it starts like a git-LFS pointer or an HTML page.

    ``head`` holds its first bytes (`HEAD_BYTES` are enough). Returns a clause for an error
    message that also says what to do, or None for anything else.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith(b"version https://git-lfs"):
        return (
            "a git-LFS pointer, not the file itself: run 'git lfs pull' in the cloned "
            "repository, or download the file from the hub"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "an HTML page, not the file itself: a web page (often a login or an error page) "
            "was saved under its name; download the raw file"
        )
    return None
