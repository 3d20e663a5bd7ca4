"""Builds stores, encoders and searchers from the settings."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from retrieval.contract.bundle import Bundle, BundleDigest
from retrieval.contract.limits import ImageLimits
from retrieval.edge.settings import Settings
from retrieval.engine.decoding.lanes import Decoders
from retrieval.engine.embedding import ImageEmbedder
from retrieval.engine.encoder import Encoder, providers_of
from retrieval.engine.index.faiss_native import n_gpus
from retrieval.engine.index.milvus_address import use_servers
from retrieval.engine.store import Store
from retrieval.errors import DeviceUnavailable
from retrieval.flows.search import Searcher


def check_device(settings: Settings) -> None:
    """Raise DeviceUnavailable if the settings require a GPU and there is none."""
    providers_of(settings.device)
    if settings.device == "cuda" and not n_gpus():
        raise DeviceUnavailable(
            "RETRIEVAL_DEVICE=cuda was requested, but this machine shows no GPU: check with `nvidia-smi` that the "
            "driver, and in a container the device, is there, or set RETRIEVAL_DEVICE=cpu"
        )


def index_device(settings: Settings) -> str:
    """Return the device on which indexes are built and exact ones are searched: cpu or cuda."""
    has_gpu = n_gpus() > 0 and "CUDAExecutionProvider" in providers_of("auto")
    return "cuda" if settings.device == "cuda" or (settings.device == "auto" and has_gpu) else "cpu"


def open_store(settings: Settings) -> Store:
    """Open the store of these settings. An index of one of its snapshots may be in Milvus."""
    use_servers(settings.milvus_servers, settings.milvus_token.get_secret_value())
    return Store(settings.store, cache_bytes=settings.cache_bytes)


def make_searcher(settings: Settings) -> Searcher:
    """Build a searcher; nothing is live until `refresh` is called."""
    return Searcher(
        open_store(settings),
        open_encoder=functools.partial(_open_encoder, settings),
        limits=settings.limits,
        max_waiting=settings.max_waiting,
        threads=settings.n_threads,
        catalogs=settings.served_catalogs,
        device=index_device(settings),
    )


@dataclass(frozen=True, slots=True)
class OfflineParts:
    """Parts of a flow outside the server: the store, what embeds images, and the device that builds indexes."""

    store: Store
    embedder: ImageEmbedder
    index_device: str


def offline_parts(settings: Settings, *, processes: int = 1, limits: ImageLimits | None = None) -> OfflineParts:
    """Build the parts of this process; `processes` processes on this machine share its threads.

    limits: on images, those of the settings by default. The encoder of a bundle is opened once.
    """
    threads = max(1, settings.n_threads // processes)
    store = open_store(settings)

    @functools.cache
    def encoder_of(digest: BundleDigest) -> Encoder:
        return _open_encoder(settings, store.bundle(digest), threads=threads)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    embedder = ImageEmbedder(
        encoder_of=encoder_of, limits=limits or settings.limits, pool=pool, decoders=Decoders(threads)
    )
    return OfflineParts(store, embedder, index_device(settings))


def _open_encoder(settings: Settings, bundle: Bundle, *, threads: int | None = None) -> Encoder:
    return Encoder.open(
        bundle, device=settings.device, threads=threads or settings.n_threads, max_batch=settings.max_batch
    )
