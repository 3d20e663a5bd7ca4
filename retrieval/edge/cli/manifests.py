"""Checks of a local manifest before a job starts: reads it as the workers will, if the check needs its items."""

from collections.abc import Sequence

from retrieval.errors import EmptyCatalog, InvalidManifest


def check_manifest(manifest: str, *, group_by: Sequence[str] = (), index: str = "") -> None:
    """Raise an error of wrong usage if a job with this manifest could only fail.

    group_by: columns that the manifest must have; index: an index that needs a number of items. URLs are not read,
    because only the workers may be able to. Raises InvalidManifest, and InvalidInput for the index.
    """
    if not manifest or "://" in manifest:
        return
    from retrieval.contract.files import local_path

    path = local_path(manifest)
    if path is None or not path.exists():
        raise InvalidManifest(
            f"{manifest}: expected a folder or a .csv, .parquet or .jsonl file, found nothing there. Write "
            "file:///FOLDER/FILE for a path that only the workers have"
        )
    if group_by:
        _check_columns(manifest, group_by, is_folder=path.is_dir())
    if index:
        from retrieval.engine.index.spec import IndexSpec

        if (spec := IndexSpec.parse(index)).n_lists:
            spec.check_items(_items_and_columns(manifest)[0])


def _check_columns(manifest: str, group_by: Sequence[str], *, is_folder: bool) -> None:
    columns = () if is_folder else _items_and_columns(manifest)[1]
    for column in group_by:
        if column not in columns:
            what = "a folder has no columns" if is_folder else f"found {', '.join(columns) or 'none'}"
            raise InvalidManifest(f"{manifest}: expected a column {column!r} to group by, {what}")


def _items_and_columns(manifest: str) -> tuple[int, Sequence[str]]:
    """Return the number of items and the columns that every item has beside id, uri and label."""
    from retrieval.contract.manifest import read_manifest

    try:
        items = read_manifest(manifest)
    except EmptyCatalog:
        return 0, ()
    return len(items), sorted(set.intersection(*(set(item.attributes) for item in items)))
