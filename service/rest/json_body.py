"""Values and arrays as JSON, by orjson: it writes arrays without making Python numbers of them."""

from typing import Any

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from service.rest.schemas import Encoding


def dump(document: dict[str, Any]) -> bytes:
    """JSON in UTF-8; what is no number becomes null, as JSON has no other way."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_array(array: NDArray[np.generic], encoding: Encoding) -> Any:
    """Nested lists with as many digits as the type needs, or base64 with dtype and shape."""
    if encoding == "list":
        return np.ascontiguousarray(array)
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    data = pybase64.b64encode_as_string(little.data.cast("B"))
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}
