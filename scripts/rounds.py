"""Rounds: two or more ways of doing one thing, measured in turn, so that a noisy machine is noisy for all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ROUNDS = 11


class Measured(NamedTuple):
    """What the rounds of one side came to."""

    numbers: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.numbers)

    def told(self, form: str = "{:,.2f}") -> str:
        low, high = min(self.numbers), max(self.numbers)
        return f"{form.format(self.median)} ({form.format(low)} to {form.format(high)})"


def measure(sides: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, Measured]:
    """Measure each side once a round (A B C, A B C, ...), after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            value = side()
            if number:
                found[name].append(value)
    return {name: Measured(tuple(numbers)) for name, numbers in found.items()}


def ratio(ours: Measured, reference: Measured) -> Measured:
    """Return ours to the reference's, round by round."""
    return Measured(tuple(one / other for one, other in zip(ours.numbers, reference.numbers, strict=True)))


def percentile(numbers: Sequence[float], share: float) -> float:
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
