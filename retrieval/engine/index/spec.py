"""The declaration of an index: one short string.

`Flat` is exact. `IVF<lists>,nprobe=<n>` sorts the vectors into lists and looks at n of them: an approximate index,
whose recall is measured when a snapshot is built.
"""

import re
from dataclasses import dataclass

from retrieval.errors import InvalidInput

_SPEC = re.compile(r"Flat|IVF(?P<lists>[1-9]\d{0,6}),nprobe=(?P<probes>[1-9]\d{0,6})")

ITEMS_PER_LIST = 39  # FAISS warns that its k-means is unreliable with fewer vectors a list


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A parsed index string; `n_lists` is 0 for the exact index."""

    n_lists: int = 0
    n_probes: int = 0

    @classmethod
    def parse(cls, text: str) -> "IndexSpec":
        """Return the spec that `text` declares. Raises InvalidInput if it declares none."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise InvalidInput(
                f"index: expected `Flat` or `IVF<lists>,nprobe=<n>` such as IVF256,nprobe=16, found {text!r}"
            )
        if text == "Flat":
            return cls()
        lists, probes = int(match["lists"]), int(match["probes"])
        if probes > lists:
            raise InvalidInput(f"index: nprobe must be at most the number of lists, found {text!r}")
        return cls(n_lists=lists, n_probes=probes)

    @property
    def least_items(self) -> int:
        """The number of items that fill the lists."""
        return self.n_lists * ITEMS_PER_LIST

    def check_items(self, n_items: int) -> None:
        """Raise InvalidInput if so few items cannot fill the lists."""
        if n_items < self.least_items:
            fitting = n_items // ITEMS_PER_LIST
            advice = f"use Flat or at most {fitting:,} lists" if fitting else "use Flat"
            raise InvalidInput(
                f"index {self}: expected at least {self.least_items} items ({ITEMS_PER_LIST} per list), "
                f"found {n_items}: {advice}"
            )

    @property
    def is_exact(self) -> bool:
        """True if a search looks at every vector."""
        return self.n_probes == self.n_lists

    def __str__(self) -> str:
        return f"IVF{self.n_lists},nprobe={self.n_probes}" if self.n_lists else "Flat"
