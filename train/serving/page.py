"""The page to try a model on: one file, in which nothing runs but its own script."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import Response

HTML = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """Of what stands in the elements of that name, as a Content-Security-Policy lists it."""
    digests = (hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.S))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


POLICY = "; ".join(
    (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}",
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )
)


async def page_answer() -> Response:
    """The page."""
    headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(HTML, media_type="text/html", headers=headers)
