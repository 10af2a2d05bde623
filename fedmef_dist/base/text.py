"""Text that came from outside (names, paths, values of files), on its way to people."""

import re

# Line breaks and everything else that a terminal obeys; signs that turn the order of what follows; bytes of a file name
# that are no UTF-8, which Python holds as surrogates and cannot write.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""The text with control characters written out, an escape as ``\x1b``; those in ``keep`` stay."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()
