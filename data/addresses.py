"""Addresses such as s3://bucket/folder, which are printed and recorded, and so must hold no secret."""

import re
from urllib.parse import urlsplit


def secret_in(address: str) -> str | None:
    """Which part of an address may be a secret: a user, a password or a signature; None if it has none.

    Every link of a chain (`simplecache::s3://...`) is looked at. Text without `://` is a path or a name.
    """
    for link in address.split("::"):
        if "://" not in link:
            continue
        scheme, _, rest = link.partition("://")
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        # A password may hold a slash, so that its first half looks like a host with a port that is no number.
        if "@" in host or re.search(r":(?!\d*$)", host):
            return "user or password"
        if scheme != "hf" and re.match(r"[^/]*:[^@]*@", rest):
            return "user or password"
        if "?" in rest or "#" in rest:
            return "signature or other query"
    return None


def refusal(address: str) -> str | None:
    """Why an address cannot be taken, in a sentence without the secret; None if it has none."""
    if found := secret_in(address):
        return (
            f"{shown(address)}: the address contains a {found}, which would end up in logs and records; pass"
            " credentials through the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return None


def shown(address: str) -> str:
    """An address for a message, with nothing in it but its protocols and its host."""
    links = []
    for link in address.split("::"):
        host = urlsplit(link).hostname if re.fullmatch(r"[\w+.-]+://[\w.-]*(:\d+)?(/.*)?", link, re.DOTALL) else None
        plain = link if re.fullmatch(r"[\w-]*", link) else "..."  # the name of a protocol, or the rest of a strange one
        links.append(f"{link.partition('://')[0]}://{host or ''}..." if "://" in link else plain)
    return "::".join(links)
