"""Show the server's replies as JSON and as short lines."""

import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retrieval.terminal import err, out, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from retrieval.v1.catalogs_pb2 import Snapshot
    from retrieval.v1.jobs_pb2 import Job


_JSON_TEXT = "index_details"  # the one field whose text is JSON itself
_NOT_A_NUMBER = frozenset({"NaN", "Infinity", "-Infinity"})  # what protobuf writes where JSON has no number


def as_dict(message: "Message") -> dict[str, Any]:
    """Return a message as plain JSON, fields named as in the .proto files, unset ones included.

    Numbers are numbers, also those that protobuf's own JSON writes as text (64-bit integers), and null if they are not
    finite. A value of an enum is its name in lower case without the name of the enum: `passed`, `succeeded`. Text that
    is JSON becomes a part of this JSON.
    """
    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _plain(fields, message.DESCRIPTOR)


# Descriptors are Any below: the stubs have two classes for each, and a field of this type always has the other.
def _plain(fields: dict[str, Any], message: Any) -> dict[str, Any]:
    """Return the fields of a message with every value as JSON has it."""
    return {name: _plain_field(value, message.fields_by_name[name]) for name, value in fields.items()}


def _plain_field(value: Any, field: Any) -> Any:
    if isinstance(value, dict) and field.message_type.GetOptions().map_entry:
        return {key: _plain_value(entry, field.message_type.fields_by_name["value"]) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain_value(entry, field) for entry in value]
    return _plain_value(value, field)


def _plain_value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return _plain(value, field.message_type) if isinstance(value, dict) else value  # a time is a text
    if field.enum_type is not None and isinstance(value, str):
        return _without_prefix(value, field.enum_type.name)
    if field.type in {field.TYPE_FLOAT, field.TYPE_DOUBLE}:
        return None if value in _NOT_A_NUMBER else value
    if field.name == _JSON_TEXT:
        return json.loads(value or "{}")
    is_whole = field.cpp_type in {field.CPPTYPE_INT64, field.CPPTYPE_UINT64}
    return int(value) if is_whole else value


def _without_prefix(name: str, enum: str) -> str:
    """Return the name of a value of an enum without that of the enum: JOB_STATE_FAILED of JobState is failed."""
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum).upper() + "_"
    return name.removeprefix(prefix).lower()


def name_of(message: "Message", field: str) -> str:
    """Return the value of a field that is an enum as a word: `succeeded`."""
    descriptor: Any = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = descriptor.values_by_number.get(getattr(message, field))
    return "unknown" if value is None else _without_prefix(value.name, descriptor.name)


def recall_of(snapshot: "Snapshot") -> str:
    """Return the share of the matches that an index finds: `complete`, or a measured one with its interval."""
    details = json.loads(snapshot.index_details or "{}")
    if details.get("complete"):
        return "complete"
    recall = f"recall {_rounded_down(snapshot.index_recall)}"
    if details and snapshot.index_recall_low < snapshot.index_recall_high:  # earlier versions have no interval
        low, high = _rounded_down(snapshot.index_recall_low), -_thousandths(-snapshot.index_recall_high) / 1000
        recall += f", 95 %: {low} to {high:.3f}"
    return recall


def choice_of(snapshot: "Snapshot") -> str:
    """Return what an index chose when it was built, or what it cannot promise; empty if it states neither."""
    details = json.loads(snapshot.index_details or "{}")
    if "cannot_promise" in details:
        return f"not complete: {details['cannot_promise']}"
    if "bytes_at_level_1" not in details:
        return ""
    lists = f"{details['lists']:,} lists" if details["lists"] else "no lists"
    chosen = f"scans {details['bytes_at_level_1']} of {details['bytes_per_vector']:g} bytes a vector, {lists}"
    cost = details["expected_microseconds"]
    return f"{chosen}; a query took {cost:g} microseconds of CPU time" if cost else chosen


def _rounded_down(share: float) -> str:
    """Return a share with three decimals, so that only 1 is shown as 1."""
    return f"{_thousandths(share) / 1000:.3f}"


def _thousandths(share: float) -> int:
    """Return the thousandths of a share, rounded down; messages have float32, where 0.95 is 0.94999999."""
    return math.floor(round(1000 * share, 3))


def print_job(job: "Job", as_json: bool) -> None:
    """Print a job that was accepted or is done."""
    if as_json:
        print_json(as_dict(job))
    elif job.result_id:
        out.print(f"{job.kind} of {job.catalog} done: {job.result_id}", markup=False)
    elif job.waiting_for:
        out.print(f"{job.kind} of {job.catalog}, job {job.id}, {waiting(job)}", markup=False)
    else:
        out.print(f"{job.kind} of {job.catalog} accepted as job {job.id}", markup=False)


def print_needs_reindex(catalogs: "Sequence[str]", *, active: bool) -> None:
    """Print which catalogues wait for a reindex while an operating point is active; nothing if there is none."""
    if catalogs:
        verb = "wait" if active else "would wait"
        out.print(
            f"warning: the live snapshot of {', '.join(catalogs)} has another score: until `retrieval reindex`, these "
            f"catalogues {verb} and answer with the operating point that was active before",
            markup=False,
        )


def followed(progress: Callable[[int, int], None]) -> Callable[["Job"], None]:
    """Return a function that shows the progress of a job, and states on stderr when it begins to wait and why."""
    last = ""

    def show(job: "Job") -> None:
        nonlocal last
        progress(job.n_done, job.n_total)
        if job.waiting_for and job.waiting_for != last:
            err.print(f"job {job.id} {waiting(job)}", markup=False)
        last = job.waiting_for or last

    return show


def waiting(job: "Job") -> str:
    """Return when a job that waits is tried next, and why it waits, on one line."""
    reason = " ".join(job.waiting_for.splitlines())
    return f"waits, next try at {moment(job.next_try_at)} UTC: {reason}"


def report_damaged(passed_over: "Mapping[str, str]") -> None:
    """Print on stderr the snapshots that were passed over because they are damaged."""
    for name, problem in sorted(passed_over.items()):
        err.print(f"passed over the damaged snapshot {name}: {problem}", markup=False)


def moment(timestamp: "Timestamp") -> str:
    """Return a timestamp as date and time in UTC, to the second."""
    return str(timestamp.ToDatetime().isoformat(sep=" ", timespec="seconds"))
