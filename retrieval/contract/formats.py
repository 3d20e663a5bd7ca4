"""Names the format of an image from its suffix or its first bytes. Imports nothing slow.

`preprocessing.py` decides which formats can be decoded, `manifest.py` which files of a folder are images.
"""

HEAD_BYTES = 64  # what `sniffed` needs

# A file with one of these is an image, or a failure that is named; the content of any other decides.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# Camera files begin as TIFF does, but the picture in front is a thumbnail.
RAW_SUFFIXES = frozenset(
    {".arw", ".cr2", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".sr2", ".srw"}
)
REMEDIES = {
    "HEIC": 'HEIC: install pillow-heif (pip install "threshold-retrieval[heif]"), or convert the image',
    "AVIF": "AVIF: install a Pillow that is built with AVIF (its wheels are), or convert the image",
}

_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the headers of all versions
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def sniffed(head: bytes) -> str:
    """Return the format that a file's first HEAD_BYTES announce, "" if it is none of an image.

    >>> sniffed(b"GIF89a"), sniffed(b"plain text")
    ('GIF', '')
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _boxed(head) if head[4:8] == b"ftyp" else ""


def _boxed(head: bytes) -> str:
    """Name an image in an ISO media file: its own brand first, then those that it says it is compatible with."""
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, min(length, len(head)), 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIC" if any(brand in _HEIC_BRANDS for brand in brands) else ""
