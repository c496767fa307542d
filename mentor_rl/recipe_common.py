"""What every recipe has, whatever its kind. Free of torch."""

from __future__ import annotations

from pydantic import Field

from mentor_base.settings import Section


class Common(Section):
    """What every recipe has."""

    run: str = Field(description="the run folder")
    seed: int = Field(0, ge=0, lt=2**32)
    about: str = Field("", description="one line for people")
