"""The base of every settings model. A model stands next to the code that it configures."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Strict and frozen: unknown keys, values of another type, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
