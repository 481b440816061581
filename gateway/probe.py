"""Ask the gateway on this machine whether the service is ready: `python -m gateway.probe`.

Like `server.network.probe` it reads no other setting than those of the address.
"""

import os
import ssl
import sys
from http import HTTPStatus
from urllib.error import URLError
from urllib.request import urlopen

_SECONDS = 4.0


def main() -> str | None:
    """Return None if `/health` is fine, else the reason."""
    scheme = "https" if os.environ.get("TLS_CERT_FILE") else "http"
    url = f"{scheme}://127.0.0.1:{os.environ.get('HTTP_PORT', '8080')}/health"
    context = ssl.create_default_context()
    context.check_hostname = False  # The certificate names the host that clients use.
    context.verify_mode = ssl.CERT_NONE
    try:
        with urlopen(url, timeout=_SECONDS, context=context) as answer:  # noqa: S310
            return None if answer.status == HTTPStatus.OK else f"{url}: {answer.status}"
    except (URLError, OSError) as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    sys.exit(main())
