"""Messages written in parts are the messages."""

import pytest
from google.protobuf.message import Message

from service.grpc.generated import features_pb2, open_inference_pb2, segment_pb2, stream_pb2
from service.grpc.writing import DEPTH, STREAM_DEPTH, _parts, write_message

# Lengths of one, two, three and four bytes; 0 is that of a failed item.
MAPS = features_pb2.VisualizeFeaturesResponse(
    model="m",
    maps=[
        features_pb2.FeatureMap(
            features={"data": bytes(length), "shape": [length]} if length else None
        )
        for length in (1, 0, 118, 119, 120, 128, 16_370, 16_384, 2_097_140, 2_097_152)
    ],
    errors=[{"index": 1, "reason": "invalid_image"}],
)
INFERRED = open_inference_pb2.ModelInferResponse(
    model_name="m",
    parameters={"a": open_inference_pb2.InferParameter(int64_param=1)},
    outputs=[open_inference_pb2.ModelInferResponse.InferOutputTensor(name="o", shape=[2])],
    raw_output_contents=[b"1", b"2"],
)
MASKS = segment_pb2.SegmentImagesResponse(
    segmentations=[{"labels": {"data": b"1234"}, "classes": [{"label": 1, "name": "dog"}] * 1000}]
)


@pytest.mark.parametrize("depth", [DEPTH, STREAM_DEPTH])
@pytest.mark.parametrize(
    "message", [MAPS, MASKS, INFERRED, stream_pb2.StreamResponse(id="a", visualize_features=MAPS)]
)
def test_what_is_written_is_the_message(message: Message, depth: int) -> None:
    written = type(message)()
    written.CopyFrom(message)
    assert type(message).FromString(write_message(written, depth)) == message


def test_the_many_small_messages_of_an_item_are_written_at_once() -> None:
    # One by one, those of 64 images took a third of a second on the event loop.
    streamed = stream_pb2.StreamResponse(segment_images=MASKS)
    assert len(_parts(streamed, STREAM_DEPTH)) < 10
    copy = segment_pb2.SegmentImagesResponse()
    copy.CopyFrom(MASKS)
    assert len(_parts(copy, DEPTH)) < 10
