"""What the synchronous client can be asked for, and as what it is answered.

With `partial` an answer has an `Item` for each image or text: a value, or what is wrong with it.
"""

from collections.abc import Iterable
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
    SegmentOptions,
    make_ask,
)


class Methods:
    """One method for each thing that is asked for; how a request is sent is the client's.

    All take `partial`: then what is wrong with single images or texts, their files too, raises
    nothing, but is the error of their `Item`, and the others have their values. What is wrong with
    the whole request is raised as ever.
    """

    def _ask(self, ask: Ask) -> Any:
        raise NotImplementedError

    @overload
    def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Float32 = None,
        partial: Literal[False] = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> list[ImageEmbedding]: ...

    @overload
    def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["float16"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> list[HalfImageEmbedding]: ...

    @overload
    def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["int8"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Int8ImageEmbedding]: ...

    @overload
    def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Float32 = None,
        partial: Literal[True],
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Item[ImageEmbedding]]: ...

    @overload
    def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["float16"],
        partial: Literal[True],
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Item[HalfImageEmbedding]]: ...

    @overload
    def embed_images(
        self,
        images: ImageInputs,
        *,
        dtype: Literal["int8"],
        partial: Literal[True],
        **options: Unpack[EmbedImagesOptions],
    ) -> list[Item[Int8ImageEmbedding]]: ...

    def embed_images(
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
        return self._ask(make_ask("embed_images", given, images=images, partial=partial))

    @overload
    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Float32 = None,
        partial: Literal[False] = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> FloatArray: ...

    @overload
    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["float16"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> HalfArray: ...

    @overload
    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["int8"],
        partial: Literal[False] = False,
        **options: Unpack[EmbedTextsOptions],
    ) -> Int8Vectors: ...

    @overload
    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Float32 = None,
        partial: Literal[True],
        **options: Unpack[EmbedTextsOptions],
    ) -> list[Item[FloatArray]]: ...

    @overload
    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["float16"],
        partial: Literal[True],
        **options: Unpack[EmbedTextsOptions],
    ) -> list[Item[HalfArray]]: ...

    @overload
    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        dtype: Literal["int8"],
        partial: Literal[True],
        **options: Unpack[EmbedTextsOptions],
    ) -> list[Item[Int8Vectors]]: ...

    def embed_texts(
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
        return self._ask(make_ask("embed_texts", given, texts=texts, partial=partial))

    @overload
    def segment(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[False] = False,
        **options: Unpack[SegmentOptions],
    ) -> list[Segmentation]: ...

    @overload
    def segment(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[True],
        **options: Unpack[SegmentOptions],
    ) -> list[Item[Segmentation]]: ...

    def segment(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: bool = False,
        **options: Unpack[SegmentOptions],
    ) -> Any:
        """A mask of each image's size: k where the k-th class is."""
        return self._ask(
            make_ask("segment_images", options, images=images, classes=classes, partial=partial)
        )

    @overload
    def classify(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[False] = False,
        **options: Unpack[ClassifyOptions],
    ) -> list[list[ClassScore]]: ...

    @overload
    def classify(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: Literal[True],
        **options: Unpack[ClassifyOptions],
    ) -> list[Item[list[ClassScore]]]: ...

    def classify(
        self,
        images: ImageInputs,
        classes: Classes,
        *,
        partial: bool = False,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """How well each class fits each image, the best first."""
        return self._ask(
            make_ask("classify_images", options, images=images, classes=classes, partial=partial)
        )

    @overload
    def features(
        self,
        images: ImageInputs,
        *,
        partial: Literal[False] = False,
        **options: Unpack[FeaturesOptions],
    ) -> list[NDArray[Any]]: ...

    @overload
    def features(
        self, images: ImageInputs, *, partial: Literal[True], **options: Unpack[FeaturesOptions]
    ) -> list[Item[NDArray[Any]]]: ...

    def features(
        self, images: ImageInputs, *, partial: bool = False, **options: Unpack[FeaturesOptions]
    ) -> Any:
        """Patch embeddings made visible: colours [H, W, 3], one component or groups [H, W]."""
        return self._ask(make_ask("visualize_features", options, images=images, partial=partial))

    @overload
    def depth(
        self, images: ImageInputs, *, partial: Literal[False] = False, **options: Unpack[MapOptions]
    ) -> list[FloatArray]: ...

    @overload
    def depth(
        self, images: ImageInputs, *, partial: Literal[True], **options: Unpack[MapOptions]
    ) -> list[Item[FloatArray]]: ...

    def depth(
        self, images: ImageInputs, *, partial: bool = False, **options: Unpack[MapOptions]
    ) -> Any:
        """Metres for every pixel, [H, W], where the model has the head for it."""
        return self._ask(make_ask("estimate_depth", options, images=images, partial=partial))

    @overload
    def normals(
        self, images: ImageInputs, *, partial: Literal[False] = False, **options: Unpack[MapOptions]
    ) -> list[FloatArray]: ...

    @overload
    def normals(
        self, images: ImageInputs, *, partial: Literal[True], **options: Unpack[MapOptions]
    ) -> list[Item[FloatArray]]: ...

    def normals(
        self, images: ImageInputs, *, partial: bool = False, **options: Unpack[MapOptions]
    ) -> Any:
        """A vector of unit length for every pixel, [H, W, 3], where the model has the head."""
        return self._ask(make_ask("estimate_normals", options, images=images, partial=partial))
