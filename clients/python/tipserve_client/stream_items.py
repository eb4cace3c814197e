"""What goes over a gRPC stream for one image, and what comes back."""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from tipserve_client.answers import Item
from tipserve_client.asks import Ask
from tipserve_client.errors import TipserveError, Unavailable
from tipserve_client.generated import stream_pb2
from tipserve_client.grpc_wire import read_answer, read_stream_error, write_ask
from tipserve_client.images import ImageInput, encode_image
from tipserve_client.line import Entry


class StreamWire:
    """Asks the same of every image."""

    def __init__(self, ask: Ask, timeout_s: float) -> None:
        self._ask = ask
        timeout = Duration()
        timeout.FromNanoseconds(int(1e9 * timeout_s))
        self._blank = stream_pb2.StreamRequest(timeout=timeout)
        getattr(self._blank, ask.method).CopyFrom(write_ask(ask))

    def entry(self, index: int, image: ImageInput) -> Entry:
        """An image's request; where it cannot be read, why."""
        try:
            encoded = encode_image(image)
        except TipserveError as error:
            return Entry(index, error=error)
        request = stream_pb2.StreamRequest()
        request.CopyFrom(self._blank)
        request.id = str(index)
        getattr(request, self._ask.method).images.add(encoded=encoded)
        return Entry(index, request)

    def item(self, entry: Entry, answer: stream_pb2.StreamResponse) -> Item[Any]:
        """What an answer says of the image that is first in line.

        Raises:
            TipserveError: It is to be tried again, or it is another image's answer.
        """
        if answer.id != str(entry.index):
            raise Unavailable(
                f"The stream answered request {answer.id!r} where {entry.index} was next.",
                code="out_of_order",
            )
        if answer.HasField("error"):
            error = read_stream_error(answer.error)
            if error.can_be_tried_again:
                raise error
            return Item(index=entry.index, error=error)
        (value,) = read_answer(self._ask, getattr(answer, self._ask.method))
        return Item(index=entry.index, value=value)


def ended_early() -> Unavailable:
    """A stream has ended as if all were answered."""
    return Unavailable("The stream ended before all was answered.", code="stream_ended")
