"""A second meaning of VNN-LIB text, sharing nothing with the reader: the raw formula at one point, in fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

Tree = Any  # a word, or a list of trees


def trees(text: str) -> list[Tree]:
    """The parenthesised groups of a text, comments removed line by line."""
    bare = " ".join(line.split(";", 1)[0] for line in text.splitlines())
    stack: list[list[Tree]] = [[]]
    for word in bare.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            stack.append([])
        elif word == ")":
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(word)
    (top,) = stack
    return top


def is_counterexample(commands: Sequence[Tree], x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
    """Whether the point satisfies every assertion."""
    values = {f"X_{i}": value for i, value in enumerate(x)} | {f"Y_{j}": value for j, value in enumerate(y)}
    return all(truth(command[1], values) for command in commands if command[0] == "assert")


def truth(tree: Tree, values: Mapping[str, Fraction]) -> bool:
    head, *operands = tree
    if head == "and":
        return all([truth(operand, values) for operand in operands])
    if head == "or":
        return any([truth(operand, values) for operand in operands])
    if head == "not":
        return not truth(operands[0], values)
    left, right = (number(operand, values) for operand in operands)
    return {"<=": left <= right, "<": left < right, ">=": left >= right, ">": left > right}[head]


def number(tree: Tree, values: Mapping[str, Fraction]) -> Fraction:
    if isinstance(tree, str):
        return values[tree] if tree in values else Fraction(tree)
    operator, first, *rest = tree[0], *(number(operand, values) for operand in tree[1:])
    if operator == "-" and not rest:
        return -first
    for value in rest:
        first = {"+": first + value, "-": first - value, "*": first * value, "/": first / (value or 1)}[operator]
    return first
