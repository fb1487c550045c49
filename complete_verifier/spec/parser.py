"""VNN-LIB 1.0 structure: declarations, and assertions as nested lists of word indices. No meaning is given here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Union

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.lexer import Words

# A leaf is the index of its word (so every message can say where); a list is a parenthesised group.
Expression = Union[int, list["Expression"]]  # noqa: UP007 (a recursive alias cannot be written with | in 3.11)

# Deeper nesting than this would run into Python's own recursion limit when the meaning is worked out.
MAX_DEPTH = 200

_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})", re.ASCII)
_ANSWERS_NOTHING = frozenset({"set-logic"})  # changes no meaning: skipped
_VERSION_2 = frozenset({"declare-network", "declare-input", "declare-output", "declare-hidden"})
_VERSION_2_MESSAGE = "VNN-LIB 2.0 is not supported yet; write the property in VNN-LIB 1.0 (declare-const X_i, Y_j)"


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed file: how many inputs and outputs it declares, and its assertions in order."""

    n_inputs: int
    n_outputs: int
    assertions: tuple[Expression, ...]


def parse_script(source: Words) -> Script:
    """Reads all commands; raises SpecError with file, line and column where the text is no VNN-LIB 1.0."""
    words = source.words
    declared: tuple[dict[int, int], dict[int, int]] = ({}, {})  # inputs, outputs: variable index -> word index
    assertions: list[Expression] = []
    at = 0
    while words[at]:
        if words[at] != "(":
            raise source.error(at, f"expected a command in parentheses, found {source.quote(at)}")
        command, body = words[at + 1], at + 2
        if command == "assert":
            expression, end = read_expression(source, body)
            assertions.append(expression)
        elif command == "declare-const":
            end = _declare(source, body, declared)
        else:
            end = _other_command(source, at + 1)
        if words[end] != ")":
            raise source.error(end, f"expected ')' to close ({command} ...), found {source.quote(end)}")
        at = end + 1
    inputs, outputs = declared
    return Script(_count(source, inputs, "X", "input"), _count(source, outputs, "Y", "output"), tuple(assertions))


def read_expression(source: Words, at: int) -> tuple[Expression, int]:
    """The expression that starts at word `at`, and the index of the word after it."""
    words, start = source.words, at
    if words[at] in (")", ""):
        raise source.error(at, f"expected a formula, found {source.quote(at)}")
    if words[at] != "(":
        return at, at + 1
    group: list[Expression] = []
    outer: list[list[Expression]] = []
    while True:
        at += 1
        word = words[at]
        if word == "(":
            outer.append(group)
            group = []
            if len(outer) >= MAX_DEPTH:
                raise source.error(at, f"nested deeper than {MAX_DEPTH} levels; flatten it: (or a b c), (+ a b c)")
        elif word == ")":
            if not group:
                raise source.error(at, "empty parentheses '()'; remove them or write the operator and its operands")
            if not outer:
                return group, at + 1
            outer[-1].append(group)
            group = outer.pop()
        elif not word:
            raise source.error(start, "this '(' is never closed; add the missing ')'")
        else:
            group.append(at)


def _declare(source: Words, at: int, declared: tuple[dict[int, int], dict[int, int]]) -> int:
    """Records (declare-const NAME Real), whose name is word `at`; returns the index of the word after it."""
    match = _VARIABLE.fullmatch(source.words[at])
    if match is None:
        raise source.error(
            at, f"{source.quote(at)} is no variable; declare inputs as X_0, X_1, ... and outputs as Y_0, ..."
        )
    indices = declared[match[1] == "Y"]
    index = int(match[2])
    if index in indices:
        raise source.error(at, f"{match[0]} is declared twice; remove one declaration")
    indices[index] = at
    if source.words[at + 1] != "Real":
        raise source.error(at + 1, f"{match[0]} has sort {source.quote(at + 1)}; only Real is supported")
    return at + 2


def _other_command(source: Words, at: int) -> int:
    """Skips a harmless command or refuses one; returns the index of its closing parenthesis."""
    command = source.words[at]
    if command in _VERSION_2:
        raise source.error(at, f"({command} ...): {_VERSION_2_MESSAGE}")
    if command == "vnnlib-version":
        if source.words[at + 1].strip("<>").split(".")[0] != "1":
            raise source.error(at + 1, f"version {source.quote(at + 1)}: {_VERSION_2_MESSAGE}")
        return at + 2
    if command in _ANSWERS_NOTHING:
        return at + 2
    raise source.error(at, f"unknown command {source.quote(at)}; VNN-LIB 1.0 has declare-const and assert")


def _count(source: Words, indices: dict[int, int], letter: str, noun: str) -> int:
    """Number of declared variables of one kind, which must be numbered 0, 1, 2, ... without a gap."""
    if not indices:
        raise SpecError(f"{source.source}: no {noun} is declared; add (declare-const {letter}_0 Real)")
    last = max(indices)
    if last + 1 != len(indices):
        gap = next(index for index in range(last) if index not in indices)
        raise source.error(indices[last], f"{letter}_{last} is declared but {letter}_{gap} is not; leave no gap")
    return last + 1
