"""What the asynchronous client can be asked for, and as what it is answered.

With `partial` an answer has an `Item` for each image or text: a value, or what is wrong with it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Unpack, overload

from numpy.typing import NDArray

from tipserve_client.answers import (
    ClassScore,
    FloatArray,
    HalfArray,
    HalfImageEmbedding,
    ImageEmbedding,
    Int8ImageEmbedding,
    Int8Vectors,
    Item,
    Segmentation,
)
from tipserve_client.asks import (
    Ask,
    Classes,
    ClassifyOptions,
    Dtype,
    EmbedImagesOptions,
    EmbedTextsOptions,
    FeaturesOptions,
    Float32,
    ImageInputs,
    MapOptions,
    Method,
    SegmentOptions,
    as_images,
    make_ask,
)
from tipserve_client.beside_loop import pack_beside


async def _packed(
    method: Method, options: Mapping[str, Any], *, images: ImageInputs, **given: Any
) -> Ask:
    """As `make_ask` has it; the images are gone through here, and packed beside the loop."""
    several = list(as_images(images))
    return await pack_beside(lambda: make_ask(method, options, images=several, **given), several)


class AsyncMethods:
    """One method for each thing that is asked for; how a request is sent is the client's.

    All take `partial`: then what is wrong with single images or texts, their files too, raises
    nothing, but is the error of their `Item`, and the others have their values. What is wrong with
    the whole request is raised as ever.
    """

    async def _ask(self, ask: Ask) -> Any:
        raise NotImplementedError

    @overload
    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Float32 = None,
        partial: Literal[False] = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> list[ImageEmbedding]: ...

    @overload
    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["float16"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> list[HalfImageEmbedding]: ...

    @overload
    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["int8"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Int8ImageEmbedding]: ...

    @overload
    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Float32 = None,
        partial: Literal[True],
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Item[ImageEmbedding]]: ...

    @overload
    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["float16"],
        partial: Literal[True],
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Item[HalfImageEmbedding]]: ...

    @overload
    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["int8"],
        partial: Literal[True],
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Item[Int8ImageEmbedding]]: ...

    async def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Dtype | None = None,
        partial: bool = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> Any:
        """Embeddings of images, in their order; of each what `outputs` names.

        Args:
            images: One or several.
            dtype: As what numbers they are sent: `float32`, `float16`, or `int8`, a quarter of the
                bytes, with a scale for each vector (`Int8Vectors.to_float32` multiplies).
            partial: Whether an image that cannot be used leaves the others their values.
            options: The rest, by the service's own names.
        """
        given = {**options, "dtype": dtype}
        return await self._ask(await _packed("embed_images", given, images=images, partial=partial))

    @overload
    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Float32 = None,
        partial: Literal[False] = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> FloatArray: ...

    @overload
    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["float16"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> HalfArray: ...

    @overload
    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["int8"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> Int8Vectors: ...

    @overload
    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Float32 = None,
        partial: Literal[True],
        **options: Unpack[EmbedTextsOptions],
    ) -> list[Item[FloatArray]]: ...

    @overload
    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["float16"],
        partial: Literal[True],
        **options: Unpack[EmbedTextsOptions],
    ) -> list[Item[HalfArray]]: ...

    @overload
    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["int8"],
        partial: Literal[True],
        **options: Unpack[EmbedTextsOptions],
    ) -> list[Item[Int8Vectors]]: ...

    async def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Dtype | None = None,
        partial: bool = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> Any:
        """One embedding for each text, [texts, width]; with `partial` an item each, of [width].

        Args:
            texts: At least one, none blank.
            dtype: As for `embed_images`.
            partial: Whether a text that cannot be used leaves the others their values.
            options: The rest, by the service's own names.
        """
        given = {**options, "dtype": dtype}
        return await self._ask(make_ask("embed_texts", given, texts=texts, partial=partial))

    @overload
    async def segment(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[False] = False,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    @overload
    async def segment(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[True],
        **options: Unpack[SegmentOptions],
    ) -> list[Item[Segmentation]]: ...

    async def segment(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Any:
        """A mask of each image's size: k where the k-th class is."""
        return await self._ask(
            await _packed(
                "segment_images", options, images=images, classes=classes, partial=partial
            )
        )

    @overload
    async def classify(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[False] = False,
        **options: Unpack[ClassifyOptions],
    ) -> list[list[ClassScore]]: ...

    @overload
    async def classify(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[True],
        **options: Unpack[ClassifyOptions],
    ) -> list[Item[list[ClassScore]]]: ...

    async def classify(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: bool = False,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """How well each class fits each image, the best first."""
        return await self._ask(
            await _packed(
                "classify_images", options, images=images, classes=classes, partial=partial
            )
        )

    @overload
    async def features(
        self,
        images: ImageInputs,
        *,
        partial: Literal[False] = False,
        **options: Unpack[FeaturesOptions],
    ) -> list[NDArray[Any]]: ...

    @overload
    async def features(
        self, images: ImageInputs, *, partial: Literal[True], **options: Unpack[FeaturesOptions]
    ) -> list[Item[NDArray[Any]]]: ...

    async def features(
        self, images: ImageInputs, *, partial: bool = False, **options: Unpack[FeaturesOptions]
    ) -> Any:
        """Patch embeddings made visible: colours [H, W, 3], one component or groups [H, W]."""
        return await self._ask(
            await _packed("visualize_features", options, images=images, partial=partial)
        )

    @overload
    async def depth(
        self, images: ImageInputs, *, partial: Literal[False] = False, **options: Unpack[MapOptions]
    ) -> list[FloatArray]: ...

    @overload
    async def depth(
        self, images: ImageInputs, *, partial: Literal[True], **options: Unpack[MapOptions]
    ) -> list[Item[FloatArray]]: ...

    async def depth(
        self, images: ImageInputs, *, partial: bool = False, **options: Unpack[MapOptions]
    ) -> Any:
        """Metres for every pixel, [H, W], where the model has the head for it."""
        return await self._ask(
            await _packed("estimate_depth", options, images=images, partial=partial)
        )

    @overload
    async def normals(
        self, images: ImageInputs, *, partial: Literal[False] = False, **options: Unpack[MapOptions]
    ) -> list[FloatArray]: ...

    @overload
    async def normals(
        self, images: ImageInputs, *, partial: Literal[True], **options: Unpack[MapOptions]
    ) -> list[Item[FloatArray]]: ...

    async def normals(
        self, images: ImageInputs, *, partial: bool = False, **options: Unpack[MapOptions]
    ) -> Any:
        """A vector of unit length for every pixel, [H, W, 3], where the model has the head."""
        return await self._ask(
            await _packed("estimate_normals", options, images=images, partial=partial)
        )
