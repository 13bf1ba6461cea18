"""`bar health`: whether a process on this machine is well; what a container's health check runs.

It asks over HTTP, at the port that the same settings gave the process, and wants neither curl nor
a shell in the image. Alive and ready are different questions, as they are for Kubernetes: who is
not alive needs a successor, who is not ready needs time, or something else mended.
"""

import argparse
import http.client
import sys
from collections.abc import Sequence

from service.commands.flags import add_settings_flags
from service.errors import BarError
from service.settings import PREFIX, Settings

PORTS = {"serve": "port", "worker": "worker_port"}
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (asked on loopback, not bound)
TIMEOUT_S = 4.0  # less than what Docker and Kubernetes are told to wait


def main(argv: Sequence[str]) -> int:
    """Print how the process is; return 0 if it is well.

    Raises: BarError says what is wrong with it.
    """
    parser = argparse.ArgumentParser(
        prog="bar health", description="Ask a process on this machine whether it is well."
    )
    parser.add_argument("process", choices=PORTS, help="what was started: bar serve or bar worker")
    parser.add_argument(
        "--ready", action="store_true", help="ask whether it is ready, not whether it is alive"
    )
    add_settings_flags(
        parser,
        ["host", *PORTS.values()],
        host="address that it listens on",
        port="port of bar serve",
        worker_port="port of bar worker's probes; it answers nobody unless it has one",
    )
    options = vars(parser.parse_args(argv))
    process, is_ready = options.pop("process"), options.pop("ready")
    settings = Settings.load(options)
    port = getattr(settings, PORTS[process])
    if port is None:
        flag = PORTS[process]
        raise BarError(
            f"bar {process} answers nobody unless it is given --{flag.replace('_', '-')} or "
            f"{PREFIX}{flag.upper()}"
        )
    host = EVERYWHERE.get(settings.host, settings.host)
    sys.stdout.write(_ask(host, port, "/readyz" if is_ready else "/livez") + "\n")
    return 0


def _ask(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(4096).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise BarError(f"nobody answers at {host} port {port}: {error}") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise BarError(f"{path} answers {response.status}: {body}")
    return body
