"""How bringing data can fail, told apart from bugs: one place is no good, or none is."""


class Unusable(Exception):
    """One place does not give the data. The message says why, without naming the place."""


class Unavailable(Exception):
    """No place gives the data.

    `reasons` holds a pair for each place that was tried, in order: the place and why it was given up.
    """

    def __init__(self, title: str, reasons: list[tuple[str, str]]) -> None:
        super().__init__(f"no source of {title} answers")
        self.title = title
        self.reasons = reasons
