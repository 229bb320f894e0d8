"""What one render may cost.

The budgets alone must bound a render: workers are warm processes, and nothing can interrupt one long call.
"""

from .errors import BudgetExceeded

MAX_OPERATIONS = 20_000  # nodes, loop rounds, filter calls and operands
MAX_OUTPUT = 512 * 1024  # characters, over all parts of one message
MAX_WORK = 1024 * 1024  # characters given to filters and comparisons, weighed by what they cost
ELEMENT = 16  # what visiting one element of a list or dict costs, in characters
ITEMS = type({"": None}.items())


class Budget:
    """What one render has spent so far; made for one render, never shared between two."""

    __slots__ = ("operations", "output", "work")

    def __init__(self) -> None:
        self.operations = 0
        self.output = 0
        self.work = 0

    def step(self) -> None:
        """Count one operation. Raises BudgetExceeded."""
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise BudgetExceeded(
                f"rendering takes more than {MAX_OPERATIONS} operations; use shorter lists or fewer nested loops"
            )

    def write(self, text: str) -> str:
        """Count text that goes into the output and hand it back. Raises BudgetExceeded."""
        self.output += len(text)
        if self.output > MAX_OUTPUT:
            raise BudgetExceeded(f"the message is longer than {MAX_OUTPUT} characters; show less of the data")
        return text

    def charge(self, characters: int) -> None:
        """Count work, before it is done. Raises BudgetExceeded."""
        self.work += characters
        if self.work > MAX_WORK:
            raise BudgetExceeded(
                f"filters and comparisons read more than {MAX_WORK} characters; use fewer filters or shorter values"
            )

    def read(self, value: object) -> None:
        """Charge for looking at all of a value, however deep it is. Raises BudgetExceeded."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, (list, tuple)):
            # The only tuples in a render are pairs of a dict's items.
            self.charge(ELEMENT * len(value))
            for element in value:
                self.read(element)
        elif isinstance(value, (dict, ITEMS)):
            self.charge(ELEMENT * len(value))
            for key, element in value.items() if isinstance(value, dict) else value:
                self.charge(len(key))
                self.read(element)

    def search(self, text: str, part: str) -> None:
        """Charge for seeking one text in another, which is not linear for parts of middling length."""
        self.charge(len(text) * (1 + len(part) // 16))
