"""Images that a JSON body names by URL instead of holding them."""

from collections.abc import Sequence

from fastapi import Request

from service.errors import InvalidRequest
from service.messages import MaybeEncoded
from service.rest.body import SCOPE_KEY, Body
from service.rest.connection import until_left
from service.safety.url_fetch.policy import url_of
from service.waiting import wait_all


async def fetch_urls(
    request: Request, texts: Sequence[str], *, is_partial: bool = False
) -> dict[int, MaybeEncoded]:
    """Fetch those of the texts that are URLs, side by side, unless the caller leaves.

    Returns:
        The images by their index; all other texts hold theirs. Where it is partial, what is wrong
        with a URL is in the place of its image.

    Raises:
        InvalidRequest: A URL is not allowed, or no image came of it.
        Overloaded: There is no memory for them.
        ClientLeft: The caller closed the connection.
    """
    urls = {index: url for index, text in enumerate(texts) if (url := url_of(text)) is not None}
    if not urls:
        return {}
    body: Body = request.scope[SCOPE_KEY]

    async def fetch(index: int, url: str) -> MaybeEncoded:
        try:
            return await body.fetch(url, param=f"images[{index}]")
        except InvalidRequest as error:
            if not is_partial:
                raise
            return error

    work = wait_all(fetch(index, url) for index, url in urls.items())
    images = await until_left(request, work)
    return dict(zip(urls, images, strict=True))
