"""Look up many images over gRPC and show what came back: table, contact sheet, JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.client import Client
from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import ImageLimits
from retrieval.engine.catalog import read_bytes
from retrieval.errors import InvalidInput, RetrievalError
from retrieval.report.contact_sheet import SheetMatch, SheetRow, draw_contact_sheet
from retrieval.terminal import as_dict, out, print_table, progress_bar
from retrieval.v1 import search_pb2

_SHOWN_MATCHES = 16  # on a row of the contact sheet, before "+ n more"


@dataclass(frozen=True, slots=True)
class Answer:
    """One query and its reply; `error` says why there is none."""

    item: Item
    reply: search_pb2.SearchResponse | None
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """The answers to all queries of one call."""

    catalog: str
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Every reply as its message says, with the query's id and label."""
        queries = [
            {"id": a.item.id, "label": a.item.label, "error": a.error, **(as_dict(a.reply) if a.reply else {})}
            for a in self.answers
        ]
        return {"catalog": self.catalog, "summary": self.summary(), "queries": queries}

    def summary(self) -> dict[str, Any]:
        """Counts over all queries; shares of right ones where the queries have labels."""
        replies = [(a.item.label, a.reply) for a in self.answers if a.reply is not None]
        labelled = [(label, reply) for label, reply in replies if label]
        matches = [m.label == label for label, reply in labelled for m in reply.matches]
        first = [reply.matches[0].label == label for label, reply in labelled if reply.matches]
        return {
            "n_queries": len(self.answers),
            "n_failed": sum(1 for a in self.answers if a.reply is None),
            "n_without_match": sum(1 for _, reply in replies if not reply.matches),
            "n_truncated": sum(1 for _, reply in replies if reply.truncated),
            "first_match_right": sum(first) / len(first) if first else None,
            "matches_right": sum(matches) / len(matches) if matches else None,
        }

    def print(self, *, n_rows: int) -> None:
        """A table of the first queries and one line for all."""
        rows = [_table_row(answer) for answer in self.answers[:n_rows]]
        columns = ("query", "label", "matches", "right", "best match", "similarity", "probability")
        print_table(f"Matches above the threshold in {self.catalog}", columns, rows)
        found = self.summary()
        line = f"{found['n_queries']} queries, {found['n_failed']} failed, {found['n_without_match']} without a match"
        if found["first_match_right"] is not None:
            line += f"; first match right {found['first_match_right']:.1%}, all matches {found['matches_right']:.1%}"
        out.print(line)

    def draw(self, path: Path, *, n_rows: int, limits: ImageLimits) -> None:
        """Write a contact sheet of the first queries (PNG)."""
        answered = [a for a in self.answers if a.reply is not None][:n_rows]
        rows = [_sheet_row(a.item, a.reply, limits) for a in answered if a.reply is not None]
        by = answered[0].reply.provenance if answered and answered[0].reply else search_pb2.Provenance()
        path.parent.mkdir(parents=True, exist_ok=True)
        subtitle = (
            f"everything whose {by.score_kind} score reaches the one threshold {by.threshold:.4f}, best first; "
            "below: cosine similarity and match probability p"
        )
        path.write_bytes(draw_contact_sheet(rows, title=f"Matches in {self.catalog}", subtitle=subtitle))


def look_up(
    client: Client, catalog: str, *, images: Sequence[Path], manifest: str, limit: int, limits: ImageLimits
) -> LookUp:
    """Search for some images, or for every image of a manifest.

    What concerns one image of a manifest is noted in its answer; a single image's error is raised.
    """
    items = [Item(id=path.name, uri=str(path), attributes={}) for path in images]
    if manifest:
        items += read_manifest(manifest)
    if not items:
        raise InvalidInput("nothing to look for: name an --image or a --manifest")
    answers = []
    with progress_bar("searching") as progress:
        for number, item in enumerate(items, start=1):
            answers.append(_ask(client, catalog, item, limit, limits, must_work=len(items) == 1))
            progress(number, len(items))
    return LookUp(catalog=catalog, answers=tuple(answers))


def _ask(client: Client, catalog: str, item: Item, limit: int, limits: ImageLimits, *, must_work: bool) -> Answer:
    try:
        query = search_pb2.Query(image=read_bytes(item.uri, limits))
        request = search_pb2.SearchRequest(catalog=catalog, query=query, limit=limit)
        return Answer(item, client.call(client.search.Search, request), "")
    except InvalidInput as error:
        if must_work:
            raise
        return Answer(item, None, str(error))


def _table_row(answer: Answer) -> tuple[object, ...]:
    item, reply = answer.item, answer.reply
    if reply is None:
        return (item.id, item.label, "failed", "", answer.error, "", "")
    right = str(sum(m.label == item.label for m in reply.matches)) if item.label else ""
    total = f"{len(reply.matches)} of {reply.total_matches}" if reply.truncated else str(reply.total_matches)
    if not reply.matches:
        return (item.id, item.label, total, right, "none", "", "")
    best = reply.matches[0]
    return (item.id, item.label, total, right, best.item_id, f"{best.similarity:.3f}", f"{best.match_probability:.2f}")


def _sheet_row(item: Item, reply: search_pb2.SearchResponse, limits: ImageLimits) -> SheetRow:
    matches = tuple(
        SheetMatch(
            image=_image_of(match.uri, limits),
            similarity=match.similarity,
            probability=match.match_probability,
            label=match.label,
            correct=match.label == item.label if item.label else None,
        )
        for match in reply.matches[:_SHOWN_MATCHES]
    )
    return SheetRow(
        query=read_bytes(item.uri, limits),
        query_label=item.label or item.id,
        matches=matches,
        n_total=reply.total_matches,
        truncated=reply.truncated,
    )


def _image_of(uri: str, limits: ImageLimits) -> bytes | None:
    """The image of a match; None where it is not readable from here, which a remote catalogue's may not be."""
    try:
        return read_bytes(uri, limits)
    except RetrievalError:
        return None
