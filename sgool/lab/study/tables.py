"""The figures of a study as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def render(figures: dict[str, Any]) -> str:
    """The figures as markdown tables."""
    people, equal = figures["visitors"], sum(figures["equal"].values())
    left_out = [
        f"{people[name]} {what}" for name, what in (("failed", "failed one"), ("unchecked", "saw none")) if people[name]
    ]
    lines = [
        f"{figures['answers']} answers of {_people(people['counted'])} who passed every attention check"
        + (f" (left out: {', '.join(left_out)})" if left_out else "")
        + f"; {figures['pairs']} pairs"
        + (f", and {equal} not asked because their pictures are the same." if equal else ".")
    ]
    if figures["left"]:
        lines.append(
            f"Of better quality was the left picture in {_share(figures['left']['share'], figures['left']['ci95'])}."
        )
    for name, found in figures["questions"].items():
        lines += [
            "",
            f"**{name}**",
            "",
            "| method | over | votes | prompts | better | same | worse | preferred (95 %) |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for row in found["preferences"]:
            cells = [row[key] for key in ("method", "over", "votes", "prompts", "better", "same", "worse")]
            lines.append(f"| {' | '.join(map(str, cells))} | {_share(row['share'], row['ci95'])} |")
        lines += ["", "| method | Bradley-Terry log strength (95 %) |", "|---|---|"]
        order = sorted(found["strengths"].items(), key=lambda each: -each[1]["strength"])
        for method, row in order:
            lines.append(f"| {method} | {row['strength']:+.2f} [{row['ci95'][0]:+.2f}, {row['ci95'][1]:+.2f}] |")
        lines += ["", _agreed(found["agreement"])]
    return "\n".join(lines)


def _agreed(found: dict[str, Any]) -> str:
    if found["alpha"] is None:
        return "Agreement between people cannot be told: too few have answered the same pairs."
    low, high = found["ci95"]
    return (
        f"Agreement between people: Krippendorff's alpha {found['alpha']:.2f} [{low:.2f}, {high:.2f}]; two people gave "
        f"the same answer in {found['share']:.0%} ({found['pairs']} pairs with several answers)."
    )


def _share(share: float, interval: Sequence[float]) -> str:
    return f"{share:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"


def _people(count: int) -> str:
    return "one person" if count == 1 else f"{count} people"
