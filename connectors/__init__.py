"""Connectors: each speaks the protocol of one tool, and asks a model by the client.

They know nothing of the server: what they need of it, the client has.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Connector:
    """A connector in the list.

    Attributes:
        summary: The tool, and what it gets.
        module: Has `routes(backend)`; empty if the tool itself loads the file.
        port: Default of `--port`; the one that the tool expects, where it does.
        enter: What to enter in the tool; `{url}` is the connector's.
    """

    summary: str
    module: str = ""
    port: int = 0
    enter: str


CONNECTORS: Final = {
    "label-studio": Connector(
        summary="Label Studio: regions and choices before anybody labels, and smart tools",
        module="connectors.label_studio",
        port=9090,
        enter="Label Studio: Settings > Model > Connect Model, Backend URL {url}.",
    ),
    "roboflow": Connector(
        summary="Roboflow's inference-sdk: SAM 3 concept segmentation, CLIP",
        module="connectors.roboflow",
        port=9001,
        enter='inference-sdk: InferenceHTTPClient(api_url="{url}", api_key="any").',
    ),
    "immich": Connector(
        summary="Immich: vectors for smart search; faces and text stay with Immich's own service",
        module="connectors.immich",
        port=3003,
        enter=(
            "Immich: Administration > Machine Learning Settings, URL {url} alone, and Smart Search "
            "with ViT-B-16-SigLIP2__webli for models with 768 numbers. Then run Smart Search for "
            "all images, because stored vectors are of another model. bundled is weak at finding "
            "images by a sentence; google/tipsv2-b14 is better. Without --immich-upstream turn "
            "facial recognition and OCR off."
        ),
    ),
    "cvat": Connector(
        summary="CVAT: a function file for cvat-cli; it needs no port",
        enter="cvat-cli task auto-annotate TASK --function-file {file} -p words=str:dog,grass",
    ),
}
