"""What a newer client says that this server would ignore is refused."""

import pytest

from service.errors import InvalidRequest
from service.grpc.converters import refuse_unknown_fields, to_embed_images
from service.grpc.generated import embed_pb2, open_inference_pb2, segment_pb2


def test_a_field_from_the_future_is_refused_with_its_place() -> None:
    newer = segment_pb2.SegmentClass.FromString(b"\x0a\x03dog\xa2\x06\x01x")
    request = segment_pb2.SegmentImagesRequest(classes=[segment_pb2.SegmentClass(name="a"), newer])
    with pytest.raises(InvalidRequest) as caught:
        refuse_unknown_fields(request)
    assert (caught.value.code, caught.value.param) == ("unknown_field", "classes[1]")
    with pytest.raises(InvalidRequest) as at_the_top:
        to_embed_images(embed_pb2.EmbedImagesRequest.FromString(b"\xa2\x06\x01x"))
    assert at_the_top.value.param is None


def test_values_of_a_map_are_looked_into() -> None:
    request = open_inference_pb2.ModelInferRequest()
    request.parameters["fit"].string_param = "squash"
    refuse_unknown_fields(request)
    request.parameters["fit"].MergeFromString(b"\xa2\x06\x01x")
    with pytest.raises(InvalidRequest) as caught:
        refuse_unknown_fields(request)
    assert caught.value.param == "parameters.fit"
