"""Specification text to words: reading the file (plain or gzip), splitting it, and locating a word for a message."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from auto_LiRPA.errors import SpecError

# A comment ends at any line end, a lone carriage return too: else it would swallow the assertion after it.
# Only words are captured, so `findall` yields '' for a comment.
_WORD = re.compile(r";[^\n\r]*|([()]|[^\s();]+)")
_LINE_END = re.compile(r"\r\n|\n|\r")
# A decimal number; Python alone would also take 1_000, Infinity and digits of other scripts.
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Words:
    """The words of one specification. A word is known by its index; its place is looked up only for a message."""

    text: str
    source: str  # file name, for messages

    @cached_property
    def words(self) -> list[str]:
        """All words in order, followed by one empty word that marks the end."""
        words = [word for word in _WORD.findall(self.text) if word]
        words.append("")
        return words

    def place(self, index: int) -> str:
        """`file:line:column` of a word (1-based); the end of the text for the end mark."""
        starts = (match.start(1) for match in _WORD.finditer(self.text) if match.group(1))
        offset = next(islice(starts, index, None), len(self.text))
        ends = [match.end() for match in _LINE_END.finditer(self.text, 0, offset)]
        return f"{self.source}:{len(ends) + 1}:{offset - (ends[-1] if ends else 0) + 1}"

    def error(self, index: int, message: str) -> SpecError:
        """An error at a word: `file:line:column: what is wrong; the mend`."""
        return SpecError(f"{self.place(index)}: {message}")

    def quote(self, index: int) -> str:
        """The word as it may stand in a one-line message."""
        word = self.words[index]
        shown = word.encode("ascii", "backslashreplace").decode("ascii")
        return repr(shown if len(shown) <= 40 else f"{shown[:37]}...") if word else "the end of the file"


def read_words(path: Path) -> Words:
    """The words of a specification file; gzip is recognised by its content, whatever the file is called."""
    return split_words(_read_text(path), str(path))


def split_words(text: str, source: str) -> Words:
    """The words of a specification text. Refuses quoted symbols and strings, which VNN-LIB does not have."""
    words = Words(text=text, source=source)
    if '"' in text or "|" in text:  # rare: they may stand in comments
        for index, word in enumerate(words.words):
            if '"' in word or "|" in word:
                raise words.error(index, f"{words.quote(index)}: strings and |quoted| symbols are not part of VNN-LIB")
    return words


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
    except FileNotFoundError:
        packed = path.with_name(path.name + ".gz")
        mend = f"did you mean {packed}?" if packed.exists() else "check the path"
        raise SpecError(f"{path}: no such specification file; {mend}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise SpecError(f"{path}: damaged gzip file; unpack or fetch it again") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from None
    # Bytes that are no UTF-8 are harmless in comments; anywhere else the word they are in is refused as unknown.
    return data.decode("utf-8-sig", errors="replace")
