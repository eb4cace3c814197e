"""Pictures that a JSON body names by URL instead of holding them."""

from collections.abc import Sequence

from fastapi import Request

from service.rest.body import SCOPE_KEY, Body
from service.rest.connection import until_left
from service.safety.url_fetch.policy import url_of
from service.waiting import wait_all


async def fetch_urls(request: Request, texts: Sequence[str]) -> dict[int, bytes]:
    """Fetch those of the texts that are URLs, side by side, unless the caller leaves.

    Returns:
        The pictures by their index; all other texts hold theirs.

    Raises:
        InvalidRequest: A URL is not allowed, or no picture came of it.
        Overloaded: There is no memory for them.
        ClientLeft: The caller closed the connection.
    """
    urls = {index: url for index, text in enumerate(texts) if (url := url_of(text)) is not None}
    if not urls:
        return {}
    body: Body = request.scope[SCOPE_KEY]
    work = wait_all(body.fetch(url, param=f"images[{index}]") for index, url in urls.items())
    pictures = await until_left(request, work)
    return dict(zip(urls, pictures, strict=True))
