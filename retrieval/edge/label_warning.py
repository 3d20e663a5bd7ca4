"""The warning about labels of a catalogue that may be wrong, as jobs and commands give it."""

from collections.abc import Sequence

_SHOWN = 5


def label_warning(n_far: int, far_items: Sequence[str]) -> str:
    """Return a sentence about the items that are far from their class; empty if there are none.

    far_items: the ids of the first of them.
    """
    if not n_far:
        return ""
    items = "1 item is" if n_far == 1 else f"{n_far:,} items are"
    more = ", ..." if n_far > _SHOWN else ""
    return (
        f"{items} far from the others with the same label, so the label may be wrong: "
        f"{', '.join(far_items[:_SHOWN])}{more}"
    )
