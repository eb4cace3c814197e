"""Client of tipserve: embeddings, masks and maps of images, over HTTP or gRPC.

from tipserve_client import Client

with Client("grpc://localhost:8001") as client:
    (embedding,) = client.embed_images("photo.jpg")
"""

from tipserve_client._async.client import AsyncClient
from tipserve_client._sync.client import Client
from tipserve_client.connection import Retry, Tls
from tipserve_client.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NotSupported,
    Overloaded,
    RequestTooLarge,
    TipserveError,
    Unauthenticated,
    Unavailable,
)
from tipserve_client.images import ImageInput
from tipserve_client.requests import Example
from tipserve_client.results import (
    ClassArea,
    ClassScore,
    HalfImageEmbedding,
    ImageEmbedding,
    Instance,
    Int8ImageEmbedding,
    Int8Vectors,
    Item,
    ModelInfo,
    Segmentation,
)

__all__ = [
    "AsyncClient",
    "ClassArea",
    "ClassScore",
    "Client",
    "DeadlineExceeded",
    "Example",
    "HalfImageEmbedding",
    "ImageEmbedding",
    "ImageInput",
    "Instance",
    "Int8ImageEmbedding",
    "Int8Vectors",
    "InternalError",
    "InvalidRequest",
    "Item",
    "ModelInfo",
    "NotFound",
    "NotSupported",
    "Overloaded",
    "RequestTooLarge",
    "Retry",
    "Segmentation",
    "TipserveError",
    "Tls",
    "Unauthenticated",
    "Unavailable",
]
