"""The declaration of an index: one short string that chooses the kind.

    Exact                            complete; the default
    Exact,fp16                       the same for the vectors rounded to float16, in half the memory
    Flat                             complete; compares with every vector
    IVF<lists>,nprobe=<n>            looks at n of the lists into which k-means sorts the vectors
    IVF<lists>,SQfp16,nprobe=<n>     the same with 16 bits a value, RaBitQ: 1 bit a value, PQ<m>: m bytes a vector
    HNSW<m>,ef=<n>                   follows a graph with m links a vector and keeps n candidates
    CAGRA<degree>,ef=<n>             the same, with a graph of `degree` links a vector that a GPU builds
    milvus:<uri>                     a collection of the database Milvus

The recall of an approximate kind is measured when a snapshot is built.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

from retrieval.engine.index.milvus_address import MilvusAddress
from retrieval.errors import InvalidInput

Kind = Literal["Exact", "Flat", "IVF", "HNSW", "CAGRA", "milvus"]

_SPEC = re.compile(
    r"(?P<complete>Exact|Flat)"
    r"|Exact,(?P<originals>fp16)"
    r"|IVF(?P<lists>[1-9]\d{0,6})(?:,(?P<codes>SQfp16|RaBitQ|PQ[1-9]\d{0,2}))?,nprobe=(?P<probes>[1-9]\d{0,6})"
    r"|HNSW(?P<links>[1-9]\d{0,2}),ef=(?P<ef>[1-9]\d{0,5})"
    r"|CAGRA(?P<degree>[1-9]\d{0,2}),ef=(?P<width>[1-9]\d{0,5})"
    r"|milvus:(?P<uri>\S+)"
)

ITEMS_PER_LIST = 39  # FAISS warns that its k-means is unreliable with fewer vectors a list
_LEAST_FOR_PQ = 256 * ITEMS_PER_LIST  # PQ has 256 centres a byte
_LINKS = range(2, 257)
_DEGREES = range(4, 513, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A parsed index string; numbers that a kind does not have are 0, texts are empty.

    codes: how lists, or Exact, store a vector, "" as it is. n_links, n_candidates: of graphs. uri: see
    `milvus_address.py`.
    """

    kind: Kind = "Exact"
    n_lists: int = 0
    n_probes: int = 0
    codes: str = ""
    n_links: int = 0
    n_candidates: int = 0
    uri: str = ""

    @classmethod
    def parse(cls, text: str) -> "IndexSpec":
        """Return the spec that `text` declares. Raises InvalidInput if it declares none."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise InvalidInput(
                "index: expected Exact, Exact,fp16, Flat, IVF<lists>,nprobe=<n> such as IVF256,nprobe=16 (with SQfp16, "
                "RaBitQ or PQ<m> in the middle: IVF256,SQfp16,nprobe=16), HNSW<m>,ef=<n>, CAGRA<degree>,ef=<n> or "
                f"milvus:<uri>, found {text!r}"
            )
        if match["complete"]:
            return cls(kind=cast(Kind, match["complete"]))
        if match["originals"]:
            return cls(codes=match["originals"])
        if match["uri"]:
            return cls(kind="milvus", uri=str(MilvusAddress.parse(match["uri"])))
        if match["links"]:
            links = int(match["links"])
            if links not in _LINKS:
                raise InvalidInput(f"index: expected {_LINKS[0]} to {_LINKS[-1]} links, found {text!r}")
            return cls(kind="HNSW", n_links=links, n_candidates=int(match["ef"]))
        if match["degree"]:
            degree = int(match["degree"])
            if degree not in _DEGREES:
                raise InvalidInput(
                    f"index: expected an even degree from {_DEGREES[0]} to {_DEGREES[-1]}, found {text!r}"
                )
            return cls(kind="CAGRA", n_links=degree, n_candidates=int(match["width"]))
        lists, probes = int(match["lists"]), int(match["probes"])
        if probes > lists:
            raise InvalidInput(f"index: nprobe must be at most the number of lists, found {text!r}")
        return cls(kind="IVF", n_lists=lists, n_probes=probes, codes=match["codes"] or "")

    @property
    def n_code_bytes(self) -> int:
        """The number of bytes of a vector that is stored as PQ codes; 0 for the other kinds."""
        return int(self.codes[2:]) if self.codes.startswith("PQ") else 0

    @property
    def least_items(self) -> int:
        """The number of items that fill the lists, that train the codes, and that a vector of CAGRA links to."""
        if self.kind == "CAGRA":
            return self.n_links + 1
        return max(self.n_lists * ITEMS_PER_LIST, _LEAST_FOR_PQ if self.n_code_bytes else 0)

    def check_items(self, n_items: int) -> None:
        """Raise InvalidInput if so few items cannot fill the lists."""
        if n_items >= self.least_items:
            return
        if self.kind == "CAGRA":
            raise InvalidInput(f"index {self}: expected more items than links of a vector, found {n_items}: use Exact")
        fitting = n_items // ITEMS_PER_LIST
        advice = f"use Exact or at most {fitting:,} lists" if fitting and not self.n_code_bytes else "use Exact"
        reason = "PQ learns 256 centres" if self.least_items == _LEAST_FOR_PQ else f"{ITEMS_PER_LIST} per list"
        raise InvalidInput(
            f"index {self}: expected at least {self.least_items} items ({reason}), found {n_items}: {advice}"
        )

    @property
    def is_exact(self) -> bool:
        """True if a search misses nothing: it looks at every vector, and rounding in its codes is accounted for.

        For Exact,fp16, the vectors are those that it stores.
        """
        if self.kind == "IVF":
            return self.n_probes == self.n_lists and self.codes in ("", "SQfp16")
        if self.kind == "milvus":
            return MilvusAddress.parse(self.uri).is_complete
        return self.kind in ("Exact", "Flat")

    def __str__(self) -> str:
        match self.kind:
            case "IVF":
                return f"IVF{self.n_lists}{self.codes and ','}{self.codes},nprobe={self.n_probes}"
            case "HNSW" | "CAGRA":
                return f"{self.kind}{self.n_links},ef={self.n_candidates}"
            case "milvus":
                return f"milvus:{self.uri}"
        return self.kind + (self.codes and f",{self.codes}")
