"""Asks a tipserve service for embeddings, masks and maps of images, over HTTP or gRPC.

from tipserve_client import Client

with Client("grpc://localhost:8001") as client:
    (embedding,) = client.embed_images("photo.jpg")
"""

from tipserve_client.answers import (
    ClassArea,
    ClassScore,
    HalfImageEmbedding,
    ImageEmbedding,
    Int8ImageEmbedding,
    Int8Vectors,
    Item,
    ModelInfo,
    Segmentation,
)
from tipserve_client.async_client import AsyncClient
from tipserve_client.client import Client
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
from tipserve_client.retries import Retry
from tipserve_client.target import Tls

__all__ = [
    "AsyncClient",
    "ClassArea",
    "ClassScore",
    "Client",
    "DeadlineExceeded",
    "HalfImageEmbedding",
    "ImageEmbedding",
    "ImageInput",
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
