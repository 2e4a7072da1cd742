"""Array shapes in annotations, e.g. `Float[Tensor, "B T"]`.

Shapes are checked at run time in the tests (jaxtyping and beartype, both in the `dev` extra). Without jaxtyping the annotations are
documentation only, so that the default set-up stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:

        class _Documentation:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = _Documentation

__all__ = ["Bool", "Float", "Int"]
