"""Symbolic vectors: variables with numpy's indexing, linear arithmetic with numbers, comparisons that give formulas."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
import torch

from abcrown.language.formulas import Formula, Junction, Kind, Space, comparison
from abcrown.language.numbers import ArrayLike, Objects, fractions_of, is_numeric
from auto_LiRPA.errors import SpecError

# Variables of one vector; more would take minutes as single Python objects.
_MOST_VARIABLES = 5_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """``sum(coefficient * variable) + constant``; no coefficient is zero. One entry of an expression."""

    terms: Mapping[int, Fraction]
    constant: Fraction

    def __add__(self, other: Linear | Fraction) -> Linear:
        if isinstance(other, Fraction):
            return Linear(self.terms, self.constant + other)
        terms = dict(self.terms)
        for index, coefficient in other.terms.items():
            total = terms.get(index, Fraction(0)) + coefficient
            if total:
                terms[index] = total
            else:
                del terms[index]
        return Linear(terms, self.constant + other.constant)

    __radd__ = __add__

    def __mul__(self, factor: Fraction) -> Linear:
        if not factor:
            return Linear({}, Fraction(0))
        return Linear({i: k * factor for i, k in self.terms.items()}, self.constant * factor)

    __rmul__ = __mul__


class Expression:
    """A vector (or array) of linear expressions over one set of variables, as `input_vars` and `output_vars` make it.

    - Indexing as in numpy: ``x[3]``, ``x[0, :2]``, ``x[..., 1:]``, ``x[[1, 4]]``; iteration and ``len`` too.
    - ``+ - * /`` with numbers, arrays and tensors, ``+ -`` with expressions over the same variables, ``matrix @ y``,
      ``y.sum()``. Shapes are broadcast as in numpy.
    - Comparisons with numbers, arrays, tensors and expressions give a `Formula`. A comparison of vectors says that it
      holds for **every** entry: ``y > 0`` means that all outputs are positive.

    Numbers are exact: a float counts as the binary number it is, a `decimal.Decimal` as written.
    """

    __slots__ = ("_entries", "space")
    __array_ufunc__ = None  # so that numpy leaves `array <= x` to us
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, space: Space, entries: Objects) -> None:
        self.space = space
        self._entries = entries

    # -- shape ------------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        """Shape; ``()`` of a single expression."""
        return self._entries.shape

    @property
    def ndim(self) -> int:
        return self._entries.ndim

    @property
    def size(self) -> int:
        """Number of entries."""
        return self._entries.size

    def __len__(self) -> int:
        if not self.shape:
            raise SpecError("a single expression has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Expression]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Expression:
        index = tuple(map(_plain_index, index)) if isinstance(index, tuple) else _plain_index(index)
        try:
            found = self._entries[index]
        except IndexError as error:
            name = "x" if self.space.kind is Kind.INPUT else "y"
            raise SpecError(f"{name}[{index}]: does not fit the shape {self.shape}: {error}") from None
        return self._with(found)

    def flatten(self) -> Expression:
        """All entries in C order ``[n]``."""
        return self._with(self._entries.reshape(-1))

    def reshape(self, *shape: int) -> Expression:
        """The same entries in another shape, C order."""
        try:
            return self._with(self._entries.reshape(*shape))
        except ValueError as error:
            raise SpecError(f"reshape{shape}: {error}") from None

    # -- arithmetic -------------------------------------------------------------------------------------------------
    def __add__(self, other: Expression | ArrayLike) -> Expression:
        return self._combined(other, operator.add, "+")

    __radd__ = __add__

    def __neg__(self) -> Expression:
        return self * -1

    def __pos__(self) -> Expression:
        return self

    def __sub__(self, other: Expression | ArrayLike) -> Expression:
        return self._minus(other, "-")

    def __rsub__(self, other: ArrayLike) -> Expression:
        return -self + other

    def __mul__(self, other: ArrayLike) -> Expression:
        if isinstance(other, Expression):
            raise SpecError("a product of two expressions is not linear; multiply by numbers only")
        return self._combined(other, operator.mul, "*")

    __rmul__ = __mul__

    def __truediv__(self, other: ArrayLike) -> Expression:
        if isinstance(other, Expression):
            raise SpecError("a quotient of two expressions is not linear; divide by numbers only")
        divisors = self._numbers(other, "/")
        if any(not value for value in divisors.flat):
            raise SpecError("division of an expression by zero")
        return self._combined(np.asarray(Fraction(1) / divisors, dtype=object), operator.mul, "/")

    def __rtruediv__(self, other: object) -> NoReturn:
        raise SpecError("a number divided by an expression is not linear; divide by numbers only")

    def __matmul__(self, matrix: ArrayLike) -> Expression:
        return self._product(self._entries, self._numbers(matrix, "@"))

    def __rmatmul__(self, matrix: ArrayLike) -> Expression:
        return self._product(self._numbers(matrix, "@"), self._entries)

    def sum(self) -> Expression:
        """The sum of all entries, a single expression."""
        terms: dict[int, Fraction] = {}
        for entry in self._entries.flat:
            for index, coefficient in entry.terms.items():
                terms[index] = terms.get(index, Fraction(0)) + coefficient
        constant = sum((entry.constant for entry in self._entries.flat), Fraction(0))
        return self._with(Linear({i: k for i, k in terms.items() if k}, constant))

    def __abs__(self) -> NoReturn:
        raise SpecError("abs is not linear; write abs(e) <= c as (e <= c) & (e >= -c)")

    def __pow__(self, other: object) -> NoReturn:
        raise SpecError("a power of an expression is not linear; let the network compute it")

    # -- comparisons ------------------------------------------------------------------------------------------------
    def __le__(self, other: Expression | ArrayLike) -> Formula:
        return self._at_most(other, strict=False, flipped=False)

    def __lt__(self, other: Expression | ArrayLike) -> Formula:
        return self._at_most(other, strict=True, flipped=False)

    def __ge__(self, other: Expression | ArrayLike) -> Formula:
        return self._at_most(other, strict=False, flipped=True)

    def __gt__(self, other: Expression | ArrayLike) -> Formula:
        return self._at_most(other, strict=True, flipped=True)

    def __eq__(self, other: object) -> Formula:  # type: ignore[override]
        """Both <= and >=: fixes an input."""
        return self._at_most(other, False, False) & self._at_most(other, False, True)

    def __ne__(self, other: object) -> Formula:  # type: ignore[override]
        """Some entry differs: the opposite of ``==``."""
        return ~(self == other)

    def __bool__(self) -> NoReturn:
        raise SpecError("an expression has no truth value; compare it: y[0] > 0")

    def _join(self, other: object) -> NoReturn:
        raise SpecError("& and | join comparisons, and bind tighter than < and >: write (y[0] > 0) & (y[1] > 0)")

    __and__ = __rand__ = __or__ = __ror__ = _join

    def __invert__(self) -> NoReturn:
        raise SpecError("~ negates a comparison: write ~(y[0] > 0)")

    def __float__(self) -> NoReturn:
        raise SpecError("an expression has no value; it is a name for what the network will compute")

    __int__ = __float__

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        raise SpecError("an expression is no array: write it on the left of @, or use + - * / and comparisons")

    def __repr__(self) -> str:
        return f"<{self.space.kind.value} expression of shape {self.shape}>"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """``tensor <= x`` and its kin: torch hands them over to us."""
        name = getattr(func, "__name__", "this function")
        if name not in _MIRRORED or len(args) != 2 or kwargs:
            raise SpecError(f"{name} of torch does not take an expression; use + - * / @ and comparisons")
        left, right = args
        return _FORWARD[name](left, right) if isinstance(left, Expression) else _MIRRORED[name](right, left)

    # -- parts ------------------------------------------------------------------------------------------------------
    def _with(self, entries: Any) -> Expression:
        if not isinstance(entries, np.ndarray):
            scalar = np.empty((), dtype=object)
            scalar[()] = entries
            entries = scalar
        return Expression(self.space, entries)

    def _numbers(self, values: object, symbol: str) -> Objects:
        if not is_numeric(values):
            raise SpecError(f"{symbol}: an expression cannot be combined with {type(values).__name__}; give numbers")
        return fractions_of(values, symbol)

    def _minus(self, other: object, symbol: str) -> Expression:
        if isinstance(other, Expression):
            return self._combined(-other, operator.add, symbol)
        return self._combined(-self._numbers(other, symbol), operator.add, symbol)

    def _combined(self, other: object, combine: Callable[[Any, Any], Any], symbol: str) -> Expression:
        if isinstance(other, Expression):
            self._same_space(other)
            right = other._entries
        else:
            right = self._numbers(other, symbol)
        try:
            return self._with(combine(self._entries, right))
        except ValueError:
            raise SpecError(f"{symbol}: the shapes {self.shape} and {right.shape} do not fit each other") from None

    def _product(self, left: Objects, right: Objects) -> Expression:
        try:
            return self._with(np.matmul(left, right))
        except ValueError:
            raise SpecError(f"@: the shapes {left.shape} and {right.shape} do not fit each other") from None

    def _at_most(self, other: Any, strict: bool, flipped: bool) -> Formula:
        """``self <= other``, or ``other <= self`` where ``flipped``; in every entry."""
        if isinstance(other, Formula):
            other._compared(self)
        difference = self._minus(other, "a comparison")
        if flipped:
            difference = -difference
        atoms = tuple(comparison(self.space, e.terms, e.constant, strict) for e in difference._entries.flat)
        if not atoms:
            raise SpecError(f"a comparison of nothing: an operand has the shape {difference.shape}")
        return atoms[0] if len(atoms) == 1 else Junction(True, atoms)

    def _same_space(self, other: Expression) -> None:
        if other.space is self.space:
            return
        if other.space.kind is not self.space.kind:
            raise SpecError("inputs and outputs in one expression: let the network output what relates them")
        raise SpecError(
            f"variables of two calls of {self.space.kind.value}_vars in one expression; use those of one call"
        )


_FORWARD: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "true_divide": operator.truediv, "matmul": operator.matmul,
    "le": operator.le, "lt": operator.lt, "ge": operator.ge, "gt": operator.gt, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip
# By the name of torch's function f(tensor, expression): what it is as a function of (expression, tensor).
_MIRRORED: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": lambda e, t: -e + t,
    "mul": operator.mul,
    "div": lambda e, t: e.__rtruediv__(t),
    "true_divide": lambda e, t: e.__rtruediv__(t),
    "matmul": lambda e, t: e.__rmatmul__(t),
    "le": operator.ge,
    "lt": operator.gt,
    "ge": operator.le,
    "gt": operator.lt,
    "eq": operator.eq,
    "ne": operator.ne,
}


def variables(kind: Kind, shape: int | Sequence[int]) -> Expression:
    """The vector of all variables of a new space.

    Raises:
        SpecError: ``shape`` is no positive whole number, and no sequence of such.
    """
    lengths = (shape,) if isinstance(shape, int) else shape
    if not isinstance(lengths, list | tuple) or not lengths or not all(map(_is_length, lengths)):
        raise SpecError(f"{kind.value}_vars({shape!r}): give a number of {kind.value}s, or a shape such as (3, 32, 32)")
    space = Space(kind, tuple(int(length) for length in lengths))
    if space.size > _MOST_VARIABLES:
        raise SpecError(f"{kind.value}_vars({shape!r}): {space.size} variables; at most {_MOST_VARIABLES} are kept")
    entries = np.empty(space.size, dtype=object)
    entries[:] = [Linear({i: Fraction(1)}, Fraction(0)) for i in range(space.size)]
    return Expression(space, entries.reshape(space.shape))


def _is_length(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def _plain_index(index: Any) -> Any:
    """An index that numpy takes: tensors as arrays."""
    if isinstance(index, Expression | Formula):
        raise SpecError("an index has to be a number, a slice or an array of these")
    return index.detach().cpu().numpy() if isinstance(index, torch.Tensor) else index
