"""Addresses such as s3://bucket/folder, which are printed and recorded, and so must hold no secret."""

import re
from urllib.parse import unquote, urlsplit

QUERY = "signature or other query"
# Within a longer text. A comma or a bracket may belong to a secret, so only spaces and quotes end it.
ADDRESS = re.compile(r"[\w+.-]+:/[^\s'\"`<>]*")
# A token of the Hub by its looks, and any token where a header shows it.
TOKEN = re.compile(r"(?<!\w)hf_(?:[a-z]+_)?[A-Za-z0-9]{10,}[\w.-]*|(?<=Bearer )[^\s'\"]+")


def secret_in(address: str) -> str | None:
    """Which part of an address may be a secret: a user, a password or a signature; None if it has none.

    Every link of a chain (`simplecache::s3://...`) is looked at, as it stands and with %40 and the like decoded. Text
    without `://` is a path or a name, unless it is an address with too few slashes: a slip that would show the secret.
    """
    for link in address.split("::"):
        decoded = unquote(unquote(link))
        found = _secret_in_link(link) or _secret_in_link(decoded)
        # A file's name may hold an encoded # or ?, but no encoded name=value.
        if found and (found != QUERY or _secret_in_link(link) or re.search(r"[?#].*=", decoded)):
            return found
    return None


def _secret_in_link(link: str) -> str | None:
    scheme, _, rest = re.sub(r"^([^:/]*=)?([\w+.-]{2,}):[/\\]+", r"\2://", link).partition("://")
    if not rest:
        return None
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password may hold a slash, so that its first half looks like a host with a port that is no number.
    if "@" in host or re.search(r":(?!\d*$)", host):
        return "user or password"
    if not scheme.lower().endswith("hf") and re.match(r"[^/]*:[^@]*@", rest):
        return "user or password"
    if "?" in rest or "#" in rest:
        return QUERY
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


def without_secrets(text: str) -> str:
    """A library's text, in which an address with a secret (a signed one, say) is shown by protocol and host only.

    Tokens of the Hub are left out as well.
    """
    text = ADDRESS.sub(lambda found: shown(found[0]) if secret_in(found[0]) else found[0], text)
    return TOKEN.sub("...", text)
