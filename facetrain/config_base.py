"""What the sections of a recipe have in common: the base of their models and the kinds of values they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def _expanded(path: Path) -> Path:
    """``~`` in a recipe meets no shell that would expand it."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path} names a home folder that does not exist") from None


UserPath = Annotated[Path, AfterValidator(_expanded)]


class Section(BaseModel):
    """Base of every section: immutable, no unknown key, defaults checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True, allow_inf_nan=False)

    def _refuse_idle(self, key: str, acts: bool, needs: str) -> None:
        """Refuse a value that was changed where it does nothing: whoever wrote it expects an effect."""
        if not acts and getattr(self, key) != type(self).model_fields[key].default:
            raise ValueError(f"{key} has no effect without {needs}; leave it out")
