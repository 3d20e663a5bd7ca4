"""Keeps what is read from this machine's loopback addresses away from proxies, which cannot reach them.

A proxy of the environment (http_proxy) is meant for other machines. Imports nothing slow.
"""

import ipaddress
from typing import Any
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Return True if a URL names this machine by its loopback address, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def reach_directly(filesystem: Any) -> None:
    """Let a file system of s3fs use no proxy if its endpoint is on this machine: a test server, a gateway."""
    endpoint = filesystem.client_kwargs.get("endpoint_url") or filesystem.endpoint_url or _configured_endpoint()
    if endpoint and is_loopback(endpoint):
        filesystem.config_kwargs.setdefault("proxies", {})


def _configured_endpoint() -> str | None:
    """Return the endpoint that AWS_ENDPOINT_URL or the configuration of AWS names."""
    import botocore.session
    from botocore.configprovider import ConfiguredEndpointProvider

    session = botocore.session.Session()
    found: str | None = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
    return found
