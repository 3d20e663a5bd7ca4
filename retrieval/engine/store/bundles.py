"""Bundles in the store, with what belongs to a model: its scores and the embeddings that it made."""

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import CONTRACT, Bundle, BundleDigest, open_bundle
from retrieval.contract.score import SCORE, Score, ScoreDigest, open_score
from retrieval.engine.prefixes import resolve_prefix
from retrieval.engine.store.objects import Objects, checked_name
from retrieval.errors import CorruptArtifact, InvalidInput, UnknownBundle

_NAME = "NAME"


class Bundles:
    """The part of the store that holds bundles, scores and embeddings."""

    objects: Objects

    def add_bundle(self, directory: Path) -> Bundle:
        """Verify the bundle in a local directory and copy it into the store, unless it is there already."""
        bundle = open_bundle(directory)
        prefix = bundle_prefix(bundle.digest)
        if not self.objects.exists(f"{prefix}/{CONTRACT}"):
            for name in sorted(bundle.files, key=lambda name: name == CONTRACT):  # the marker last
                self.objects.put_file(f"{prefix}/{name}", directory / name)
        return self.bundle(bundle.digest)

    def bundle(self, digest: BundleDigest) -> Bundle:
        """Open and verify a bundle. Raises UnknownBundle, CorruptArtifact."""
        prefix = bundle_prefix(digest)
        if not self.objects.exists(f"{prefix}/{CONTRACT}"):
            raise UnknownBundle(
                f"bundle {digest} is not in the store {self.objects.url}: add it with `retrieval calibrate`"
            )
        bundle = self.objects.opened(prefix, open_bundle)
        if bundle.digest != digest:
            raise CorruptArtifact(f"bundle {digest}: its contract has digest {bundle.digest}")
        return bundle

    def bundles(self) -> list[BundleDigest]:
        """Return the digests of all bundles."""
        names = self.objects.artefacts("bundles")
        return [BundleDigest(name) for name in names if self.objects.exists(f"bundles/{name}/{CONTRACT}")]

    def find_bundle(self, text: str) -> BundleDigest:
        """Return the bundle whose name or digest is `text`, or whose digest starts so.

        Raises UnknownBundle, and InvalidInput if there are several.
        """
        digests = self.bundles()
        named = [digest for digest in digests if text and self.bundle_name(digest) == text]
        if len(named) > 1:
            raise InvalidInput(f"{len(named)} bundles have the name {text!r}, give an id: {', '.join(named)}")
        if named:
            return named[0]
        hint = "see `retrieval bundles list`; add one with `retrieval calibrate`"
        return BundleDigest(resolve_prefix(text, digests, kind="bundle", unknown=UnknownBundle, hint=hint))

    def name_bundle(self, digest: BundleDigest, name: str) -> None:
        """Give a bundle a name for people, instead of the one that it may have. Raises InvalidInput, UnknownBundle."""
        checked_name(name, "name of a bundle")
        if digest not in self.bundles():
            raise UnknownBundle(f"bundle {digest} is not in the store {self.objects.url}")
        self.objects.put(f"{bundle_prefix(digest)}/{_NAME}", name.encode())

    def bundle_name(self, digest: BundleDigest) -> str:
        """Return the name that people gave a bundle; "" if it has none."""
        return self.objects.pointer(f"{bundle_prefix(digest)}/{_NAME}") or ""

    def only_bundle(self) -> BundleDigest:
        """Return the digest of the only bundle. Raises UnknownBundle if there is none, InvalidInput if several."""
        digests = self.bundles()
        if not digests:
            raise UnknownBundle(f"the store {self.objects.url} holds no bundle: add one with `retrieval calibrate`")
        if len(digests) > 1:
            raise InvalidInput(f"the store holds {len(digests)} bundles, name one of them: {', '.join(digests)}")
        return digests[0]

    def put_score(self, bundle: BundleDigest, score: Score) -> ScoreDigest:
        """Store a score with its bundle."""
        prefix = f"{bundle_prefix(bundle)}/scores/{score.digest}"
        for name, data in sorted(score.files().items(), key=lambda file: file[0] == SCORE):  # the marker last
            self.objects.put(f"{prefix}/{name}", data)
        return score.digest

    def score(self, bundle: BundleDigest, digest: ScoreDigest) -> Score:
        """Open and verify a score. Raises CorruptArtifact if it is missing or damaged."""
        return self.objects.opened(f"{bundle_prefix(bundle)}/scores/{digest}", lambda path: open_score(path, digest))

    def put_embeddings(self, bundle: BundleDigest, digest: str, embeddings: NDArray[np.float32]) -> str:
        """Store embeddings [n, d] float32 under the digest of their images; return their key."""
        buffer = io.BytesIO()
        np.savez(buffer, embeddings=embeddings)
        key = embeddings_key(bundle, digest)
        self.objects.put(key, buffer.getvalue())
        return key

    def embeddings(self, key: str) -> NDArray[np.float32]:
        """Read embeddings [n, d] float32. Raises CorruptArtifact if they are missing or damaged."""
        where = f"{self.objects.url}/{key}"
        data = self.objects.get(key)
        if data is None:
            raise CorruptArtifact(f"{where} is missing from the store: reindex the catalogue")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                embeddings: NDArray[np.float32] = arrays["embeddings"]
                return embeddings
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise CorruptArtifact(f"{where} cannot be read: {error}") from error


def embeddings_key(bundle: BundleDigest, digest: str) -> str:
    """Return the key of stored embeddings."""
    return f"{bundle_prefix(bundle)}/embeddings/{digest}.npz"


def bundle_prefix(digest: BundleDigest) -> str:
    """Return the key of a bundle's folder. Raises InvalidInput if the digest cannot be a name."""
    return f"bundles/{checked_name(digest, 'bundle digest')}"
