"""Telling a webhook: signed, bounded, and never inward.

A name is looked up once, every address of it must be a public one, and that address is what is connected to, so that a
name which answers otherwise a moment later leads nowhere. Redirects are not followed, and no answer is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx

from service.errors import InvalidRequest

MOST_BYTES = 256 * 1024
"""of a body; a longer one is sent without the words of its citations"""
TIMEOUT_S = 5.0
"""for looking up, connecting, sending and the answer's head together"""
PAUSES_S = (0.0, 2.0, 10.0)
"""before each try"""
SIGNATURE = "Folio-Signature"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_LOOKING = ThreadPoolExecutor(16, thread_name_prefix="folio-names")
"""Who names a host whose server does not answer holds a thread for as long as the system waits, whatever we do."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, private: bool) -> None:
    """Refuse what cannot be a webhook, as far as its words tell.

    private: whether addresses of the own network, and http, are allowed.

    Raises InvalidRequest.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"it is no URL ({error})") from error
    schemes = ("https", "http") if private else ("https",)
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise _refused(f"it has to begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("it may not hold a user or password")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _refused("it holds characters that no URL has")
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return
    if not private and not is_public(address):
        raise _refused(f"{address} is no public address")


def is_public(address: Address) -> bool:
    """Whether an address, and any IPv4 address inside it, is one of the open internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(one is not None and not is_public(one) for one in inner):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


def signature(secret: str, at: int, body: bytes) -> str:
    """The header's value: the time, and the HMAC-SHA256 of time, point and body in hexadecimal."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


async def deliver(url: str, secret: str, number: int, data: dict[str, Any], private: bool) -> str | None:
    """Tell a webhook of a change, `number`; returns why it could not be told, None where it was."""
    body = _body(data)
    why: str | None = None
    for pause in PAUSES_S:
        await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                why = await _send(url, secret, number, body, private)
        except TimeoutError:
            why = f"no answer within {TIMEOUT_S:.0f} s"
        except (OSError, httpx.HTTPError, InvalidRequest) as error:
            why = str(error) or type(error).__name__
        if why is None:
            return None
    return why


async def _send(url: str, secret: str, number: int, body: bytes, private: bool) -> str | None:
    check_url(url, private)
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_LOOKING, look)
    addresses = [ipaddress.ip_address(one[4][0]) for one in found]
    if not private and not all(is_public(address) for address in addresses):
        return f"{host} leads to an address that is not public"
    at = int(time.time())
    headers = {
        "Host": parts.netloc,
        "Content-Type": "application/json",
        "User-Agent": "folio",
        "Folio-Delivery": str(number),
        SIGNATURE: signature(secret, at, body),
    }
    target = httpx.URL(url).copy_with(host=str(addresses[0]), fragment=None)
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_S) as client,
        client.stream("POST", target, content=body, headers=headers, extensions={"sni_hostname": host}) as response,
    ):
        return None if response.is_success else f"it answered {response.status_code}"


def _body(data: dict[str, Any]) -> bytes:
    body = json.dumps(data, ensure_ascii=False).encode()
    if len(body) <= MOST_BYTES:
        return body
    short = {name: data[name] for name in ("watch", "change", "question", "at", "documents")}
    return json.dumps(short | {"too_long": True}, ensure_ascii=False).encode()


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The webhook cannot be used: {why}.",
        hint="The operator can allow addresses of the own network with FOLIO_WEBHOOK_PRIVATE.",
        param="webhook",
    )
