"""`retrieval search`: search with images on the server, and show the matches as table, contact sheet or JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.edge.cli.options import Address, Json, report_passed_over
from retrieval.edge.cli.replies import as_dict
from retrieval.errors import InvalidInput, RetrievalError
from retrieval.terminal import out, print_error, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from retrieval.client import Client
    from retrieval.contract.limits import ImageLimits
    from retrieval.report.contact_sheet import SheetRow
    from retrieval.v1.search_pb2 import SearchResponse

_MAX_LIMIT = 10_000
_SAME_PICTURE = 0.9999  # cosine of two embeddings of one file; batches differ in the last digits
_PULLED = "catalogue "  # the kinds of score whose cosine is not that of two images
_SHOWN_MATCHES = 16  # on a row of the contact sheet, before "+ n more"


@dataclass(frozen=True, slots=True)
class Query:
    """One image to search with; `label` is "" if unknown."""

    id: str
    uri: str
    label: str = ""
    listed: bool = False  # print every match, not only the best


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What every query of one call asks for."""

    catalog: str
    limit: int
    exclude_self: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One query and its reply; if there is no reply, `error` gives the reason."""

    query: Query
    reply: "SearchResponse | None"
    error: str


def search(  # noqa: PLR0913  # the options of a command are its parameters
    catalog: Annotated[str, typer.Option(help="Catalogue to search in.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="An image to search with; may be given several times.")
    ] = None,
    manifest: Annotated[
        str, typer.Option(help="Images to search with: a manifest. Its labels decide which matches are right.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=_MAX_LIMIT, help="Largest number of matches for each image.")] = 100,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self",
            help="Leave out the match that is the query's own file, if it is in the catalogue. With a catalogue score "
            "the file is known by its path only.",
        ),
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Also draw a contact sheet (PNG) into this file.")] = None,
    sheet_rows: Annotated[int, typer.Option(min=1, help="Number of queries on the sheet and in the table.")] = 12,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Find everything in a catalogue that shows the same thing as the query images.

    Prints every match of each --image; of a --manifest one line for each query. A match has a score, which reaches the
    threshold, and the probability that both images show the same thing.
    """
    from retrieval.client import connect
    from retrieval.edge.settings import load_settings

    settings = load_settings(address=address)
    queries, passed_over = _queries(image or [], manifest)
    report_passed_over(passed_over)
    with connect(settings.address) as client:
        wanted = _Wanted(catalog, limit, exclude_self)
        result = Answers(catalog, _ask_all(client, wanted, queries, settings.limits), passed_over)
    if sheet is not None:
        result.draw(sheet, n_rows=sheet_rows, limits=settings.limits)
    print_json(result.to_json()) if as_json else result.print(n_rows=sheet_rows)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to all queries of one call."""

    catalog: str
    answers: tuple[Answer, ...]
    passed_over: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return every reply as its message, with the id and label of its query."""
        queries = [
            {"id": a.query.id, "label": a.query.label, "error": a.error, **(as_dict(a.reply) if a.reply else {})}
            for a in self.answers
        ]
        passed_over = list(self.passed_over)
        return {"catalog": self.catalog, "summary": self.summary(), "passed_over": passed_over, "queries": queries}

    def summary(self) -> dict[str, Any]:
        """Count over all queries; compute shares of right matches if the queries have labels."""
        replies = [(a.query.label, a.reply) for a in self.answers if a.reply is not None]
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
        """Print the matches of each listed query, a table of the first other ones, and one line for all."""
        for answer in self.answers:
            if answer.query.listed:
                _print_matches(answer, self.catalog)
        others = [answer for answer in self.answers if not answer.query.listed]
        if others:
            columns = ("query", "label", "matches", "right", "best match", "score", "probability")
            rows = [_table_row(answer) for answer in others[:n_rows]]
            print_table(f"Matches in {self.catalog}{_condition(others)}", columns, rows)
            if len(others) > n_rows:
                out.print(f"... and {len(others) - n_rows} more queries: raise --sheet-rows, or use --json")
        found = self.summary()
        queries = "1 query" if found["n_queries"] == 1 else f"{found['n_queries']} queries"
        line = f"{queries}, {found['n_failed']} failed, {found['n_without_match']} without a match"
        if found["first_match_right"] is not None:
            line += f"; first match right {found['first_match_right']:.1%}, all matches {found['matches_right']:.1%}"
        out.print(line)

    def draw(self, path: Path, *, n_rows: int, limits: "ImageLimits") -> None:
        """Write a contact sheet of the first queries (PNG)."""
        from retrieval.report.contact_sheet import draw_contact_sheet

        answered = [(a.query, a.reply) for a in self.answers if a.reply is not None][:n_rows]
        rows = [_sheet_row(query, reply, limits) for query, reply in answered]
        subtitle = "nothing was found"
        if answered:
            by = answered[0][1].provenance
            subtitle = (
                f"{by.score_kind} score of at least {by.threshold:.4f}, best first; "
                "below: this score and match probability p"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_contact_sheet(rows, title=f"Matches in {self.catalog}", subtitle=subtitle))


def _queries(images: Sequence[Path], manifest: str) -> tuple[list[Query], tuple[str, ...]]:
    """Return the queries for some images and for every image of a manifest, and what the manifest passes over.

    Raises InvalidInput if there are none.
    """
    passed_over: tuple[str, ...] = ()
    # a URL: [ and * are part of a name
    queries = [Query(path.name, f"file://{path.resolve()}", listed=True) for path in images]
    if manifest:
        from retrieval.contract.manifest import read_source

        source = read_source(manifest)
        passed_over = source.passed_over
        queries += [Query(item.id, item.uri, item.label) for item in source.items]
    if not queries:
        raise InvalidInput("nothing to search with: name an --image or a --manifest")
    return queries, passed_over


def _ask_all(client: "Client", wanted: _Wanted, queries: Sequence[Query], limits: "ImageLimits") -> tuple[Answer, ...]:
    """Search for each query. An unusable image is noted in its answer, or raised if it is the only one."""
    answers = []
    with progress_bar("searching") as progress:
        for number, query in enumerate(queries, start=1):
            try:
                answers.append(Answer(query, _ask(client, wanted, query, limits), ""))
            except InvalidInput as error:
                if len(queries) == 1:
                    raise
                answers.append(Answer(query, None, str(error)))
            progress(number, len(queries))
    return tuple(answers)


def _ask(client: "Client", wanted: _Wanted, query: Query, limits: "ImageLimits") -> "SearchResponse":
    from retrieval.engine.images import read_bytes
    from retrieval.v1 import search_pb2

    message = search_pb2.Query(image=read_bytes(query.uri, limits))
    limit = min(wanted.limit + wanted.exclude_self, _MAX_LIMIT)  # one more, because one is left out
    request = search_pb2.SearchRequest(catalog=wanted.catalog, query=message, limit=limit)
    reply = client.call(client.search.Search, request)
    return _without_self(reply, query, wanted.limit) if wanted.exclude_self else reply


def _without_self(reply: "SearchResponse", query: Query, limit: int) -> "SearchResponse":
    """Return the reply without the match that is the file of the query, with at most `limit` matches."""
    own = _own(reply, query)
    others = [match for number, match in enumerate(reply.matches) if number != own]
    total = reply.total_matches - (len(reply.matches) - len(others))
    del reply.matches[:]
    reply.matches.extend(others[:limit])
    reply.total_matches, reply.truncated = total, total > len(reply.matches)
    return reply


def _own(reply: "SearchResponse", query: Query) -> int | None:
    """Return the number of the match that is the query's file: its path, or its name and picture in another folder.

    With a catalogue score only its path: an item is compared after a pull, so its cosine proves nothing.
    """
    path = _path(query.uri)
    for number, match in enumerate(reply.matches):
        if _path(match.uri) == path:
            return number
    if reply.provenance.score_kind.startswith(_PULLED):
        return None
    for number, match in enumerate(reply.matches):  # a worker in a container sees the same file under another path
        same_name = match.uri.rsplit("/", 1)[-1] == path.rsplit("/", 1)[-1]
        if same_name and match.similarity >= _SAME_PICTURE:
            return number
    return None


def _path(uri: str) -> str:
    """Return a local path as one text, however it is written; other URLs as they are."""
    from os.path import realpath

    return realpath(uri.removeprefix("file://")) if uri.startswith("file://") or "://" not in uri else uri


def _condition(answers: Sequence[Answer]) -> str:
    """Return what a match must reach, as the end of a title; "" if nothing was answered."""
    for answer in answers:
        if answer.reply is not None:
            by = answer.reply.provenance
            return f": {by.score_kind} score of at least {by.threshold:.4f}"
    return ""


def _print_matches(answer: Answer, catalog: str) -> None:
    """Print every match of one query, best first, with the score that reaches the threshold."""
    query, reply = answer.query, answer.reply
    if reply is None:
        print_error(f"{query.id}: {answer.error}")
        return
    plain = reply.provenance.score_kind == "cosine"
    rows = [
        (number, m.item_id, m.label, f"{m.score:.4f}", *(() if plain else (f"{m.similarity:.3f}",)),
         f"{m.match_probability:.2f}")
        for number, m in enumerate(reply.matches, start=1)
    ]  # fmt: skip
    columns = ("", "item", "label", "score", *(() if plain else ("cosine",)), "probability")
    n_found = f"{reply.total_matches} matches of {query.id} in {catalog}"
    if reply.matches:
        print_table(f"{n_found}{_condition([answer])}", columns, rows)
    else:
        out.print(f"no match of {query.id} in {catalog}{_condition([answer])}", markup=False, highlight=False)
    if reply.truncated:
        n_more = reply.total_matches - len(reply.matches)
        out.print(f"... and {n_more} more: raise --limit", markup=False, highlight=False)


def _table_row(answer: Answer) -> tuple[object, ...]:
    query, reply = answer.query, answer.reply
    if reply is None:
        return (query.id, query.label, "failed", "", answer.error, "", "")
    right = str(sum(m.label == query.label for m in reply.matches)) if query.label else ""
    total = f"{len(reply.matches)} of {reply.total_matches}" if reply.truncated else str(reply.total_matches)
    if not reply.matches:
        return (query.id, query.label, total, right, "none", "", "")
    best = reply.matches[0]
    return (
        query.id,
        query.label,
        total,
        right,
        best.item_id,
        f"{best.score:.4f}",
        f"{best.match_probability:.2f}",
    )


def _verdict(query: Query, reply: "SearchResponse") -> str:
    """Return how many of the returned matches have the label of the query; "" if that is unknown."""
    if not query.label or not reply.matches:
        return ""
    return f"{sum(match.label == query.label for match in reply.matches)} of {len(reply.matches)} right"


def _sheet_row(query: Query, reply: "SearchResponse", limits: "ImageLimits") -> "SheetRow":
    from retrieval.engine.images import read_bytes
    from retrieval.report.contact_sheet import SheetMatch, SheetRow

    matches = tuple(
        SheetMatch(
            image=_image_of(match.uri, limits),
            score=match.score,
            probability=match.match_probability,
            label=match.label,
            correct=match.label == query.label if query.label else None,
        )
        for match in reply.matches[:_SHOWN_MATCHES]
    )
    return SheetRow(
        query=read_bytes(query.uri, limits),
        query_label=query.label or query.id,
        matches=matches,
        n_total=reply.total_matches,
        truncated=reply.truncated,
        verdict=_verdict(query, reply),
    )


def _image_of(uri: str, limits: "ImageLimits") -> bytes | None:
    """Return the image of a match; None if this machine cannot read it."""
    from retrieval.engine.images import read_bytes

    try:
        return read_bytes(uri, limits)
    except RetrievalError:
        return None
