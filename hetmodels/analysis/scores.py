"""One number of an evaluation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the evaluation.

    Attributes:
        name: as in metrics.json.
        value: the number.
        words: what it is.
        floor: what the consensus map, or chance, gives; None where there is none.
        ceiling: what the truth itself gives.
    """

    name: str
    value: float
    words: str
    floor: float | None = None
    ceiling: float | None = None
