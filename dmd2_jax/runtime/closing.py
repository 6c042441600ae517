"""What a resource needs to be used in a `with` statement, once."""

from types import TracebackType
from typing import Self


class Closing:
    """A resource that leaving its `with` block closes."""

    def close(self) -> None:
        """Release the resource."""
        raise NotImplementedError  # the subclass has the resource

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
