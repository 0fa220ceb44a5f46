"""All upstreams of a server, over one pool of connections.

In: their settings, and the environment that holds their keys. Out: each by its name, until they are closed.
"""

import uuid
from collections.abc import Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from softspec.errors import ConfigError
from softspec.server.upstream.client import Upstream, Watch
from softspec.server.upstream.keys import read_keys
from softspec.server.upstream.settings import UpstreamSettings

LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0)


class Upstreams(Mapping[str, Upstream]):
    """The upstreams by name; `server_id` is by what this process knows a request that comes back to it."""

    def __init__(
        self, settings: Mapping[str, UpstreamSettings], environment: Mapping[str, str], watch: Watch
    ) -> None:
        """Read the keys; nothing is sent yet.

        Raises:
            ConfigError: a key cannot be read, or the proxies of the environment cannot be used.
        """
        self.server_id = uuid.uuid4().hex[:16]
        keys = read_keys(settings, environment)
        self._http = _client()
        self._upstreams = {
            name: Upstream(name, each, keys[name], self._http, self.server_id, watch)
            for name, each in settings.items()
        }

    def __getitem__(self, name: str) -> Upstream:
        return self._upstreams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._upstreams)

    def __len__(self) -> int:
        return len(self._upstreams)

    async def aclose(self) -> None:
        """Close all connections; calls that are under way end with an error."""
        await self._http.aclose()


def _client() -> httpx2.AsyncClient:
    """Proxies and certificates are those of the environment, as for other clients; cookies are not kept."""
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    try:
        return httpx2.AsyncClient(limits=LIMITS, follow_redirects=False, cookies=no_cookies)
    except (ValueError, ImportError, httpx2.InvalidURL, OSError) as error:
        raise ConfigError(
            f"the proxies or certificates that the environment names cannot be used: {' '.join(str(error).split())}"
        ) from None
