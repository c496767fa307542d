"""The strict YAML of mentor_rewards, with faults as the UserErrors that recipes speak of."""

from __future__ import annotations

from mentor_rewards import strict_yaml
from mentor_rewards.contract import RewardError
from mentor_rewards.strict_yaml import Document, Keys, parse_value

from mentor_base.errors import UserError

__all__ = ["Document", "Keys", "parse_document", "parse_value"]


def parse_document(text: str, name: str) -> Document:
    """Read one YAML mapping. Errors name the file and the line."""
    try:
        return strict_yaml.parse_document(text, name)
    except RewardError as error:
        raise UserError(str(error)) from error
