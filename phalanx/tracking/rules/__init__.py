"""Rules that watch a run: one small class each, by name in `RULES`."""

from .given import ALL as ALL
from .given import RULES as RULES
from .given import Actions as Actions
from .given import Given as Given
from .given import observations as observations
from .given import rules_of as rules_of
from .given import table as table
