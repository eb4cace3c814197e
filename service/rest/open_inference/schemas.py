"""What requests and answers of the Open Inference Protocol hold as JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.rest.schemas import Schema

MAX_TENSORS = 16
MAX_AXES = 8

Value = bool | int | float | str


class InputParameters(Schema):
    """How an input's elements are sent."""

    binary_data_size: Annotated[
        int | None, Field(ge=0, description="Bytes of it behind the JSON, in place of `data`.")
    ] = None
    content_type: Annotated[
        Literal["base64"] | None,
        Field(description="Of BYTES in `data`. Images are base64 there, with or without this."),
    ] = None


class InputBody(Schema):
    """An input tensor."""

    name: str
    shape: Annotated[list[int], Field(max_length=MAX_AXES)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Annotated[
        list[Any] | None,
        Field(description="The elements, flat or nested; BYTES as strings: images as base64."),
    ] = None


class OutputParameters(Schema):
    """How an output is sent."""

    binary_data: Annotated[
        bool | None, Field(description="Behind the JSON. Default: `binary_data_output`.")
    ] = None
    classification: Annotated[
        int | None, Field(description="Is not supported: the outputs are embeddings.")
    ] = None


class OutputBody(Schema):
    """An output tensor that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferBody(Schema):
    """One inference request."""

    id: Annotated[str | None, Field(description="Comes back with the answer.")] = None
    parameters: Annotated[
        dict[str, Value],
        Field(
            description="`timeout` in microseconds, `priority` (1 goes first), `resolution`, "
            "`fit`, `normalize`, `templates`, `output_datatype` (FP32 or FP16), "
            "`binary_data_output`.",
            default_factory=dict,
        ),
    ]
    inputs: Annotated[list[InputBody], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[
        list[OutputBody],
        Field(
            max_length=MAX_TENSORS,
            description="Default: `patch_embeddings` and `cls1` of images, `text_embeddings` of "
            "texts.",
            default_factory=list,
        ),
    ]


class AnswerParameters(BaseModel):
    """How an output was sent."""

    binary_data_size: int


class OutputTensor(BaseModel):
    """An output tensor; `data` is flat, and missing where its bytes stand behind the JSON."""

    name: str
    datatype: Literal["FP32", "FP16"]
    shape: list[int]
    parameters: AnswerParameters | None = None
    data: list[float] | None = None


class InferAnswerBody(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 may be any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataBody(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadataBody(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ConfigTensor(BaseModel):
    """A tensor in a model's configuration, with all its axes."""

    name: str
    data_type: str
    dims: list[int]


class ConfigInput(ConfigTensor):
    """An input; a request may be without it."""

    optional: Literal[True] = True


class ModelConfigBody(BaseModel):
    """A model in the terms of a configuration file."""

    name: str
    platform: str
    backend: str
    max_batch_size: Literal[0] = 0
    input: list[ConfigInput]
    output: list[ConfigTensor]


class Duration(BaseModel):
    """How often something was done, and nanoseconds in all."""

    count: int
    ns: int


class InferStatistics(BaseModel):
    """What a model's requests took."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(BaseModel):
    """What batches of one size took."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatisticsBody(BaseModel):
    """What one model has done since it was loaded."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since the epoch; 0 for never.")
    inference_count: int = Field(description="Images and texts that were answered.")
    execution_count: int = Field(description="Batches that were computed.")
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]


class StatisticsBody(BaseModel):
    """What models have done."""

    model_stats: list[ModelStatisticsBody]


class ModelReadyBody(BaseModel):
    """The model answers requests."""

    name: str
    ready: Literal[True] = True
