"""Calls of the programs on a host's system bus, made from outside it."""

import asyncio
from abc import ABC, abstractmethod
from typing import Any

import pytest

from migd import names
from migd.bus.connection import BUS, RemoteError, connect
from tests.support.bus import plain
from tests.support.daemon import options

_CALL_S = 60.0


class Calls(ABC):
    """The caller is root, and its pid cannot be seen inside; for others, run a program there."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Of the system bus, for connect()."""

    def call(
        self,
        member: str,
        signature: str = "",
        *arguments: Any,
        destination: str = names.BUS_NAME,
        path: str = names.ROOT,
        interface: str = names.MANAGER,
        timeout_s: float = _CALL_S,
    ) -> list[Any]:
        """Call migd, or who is named; values without the types of variants. Raises RemoteError."""

        async def call() -> list[Any]:
            connection = await connect(self.address, timeout_s=10)
            try:
                return await connection.call(
                    destination, path, interface, member, signature, arguments, timeout_s=timeout_s
                )
            finally:
                connection.close()

        return [plain(value) for value in asyncio.run(call())]

    def refused(self, member: str, signature: str = "", *arguments: Any) -> tuple[str, str]:
        """Call what must fail; the name of the error and its text."""
        with pytest.raises(RemoteError) as error:
            self.call(member, signature, *arguments)
        return error.value.name, error.value.message

    def property(self, name: str, *, path: str = names.ROOT, interface: str = names.MANAGER) -> Any:
        (value,) = self.call("Get", "ss", interface, name, path=path, interface=f"{BUS}.Properties")
        return value

    def plan(self, config: str, **given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        summary, steps = self.call("Plan", "sa{sv}", config, options(given))
        return summary, steps

    def apply(self, config: str, **given: Any) -> tuple[int, str]:
        """Options by keyword: max_impact="reset" is max-impact. The job's id and path."""
        number, path = self.call("Apply", "sa{sv}", config, options(given))
        return number, path

    def wait(self, number: int, timeout_s: float = _CALL_S) -> tuple[str, dict[str, Any]]:
        """The result and details of a job, once it has ended."""
        result, details = self.call("WaitJob", "u", number, timeout_s=timeout_s)
        return result, details

    def applied(self, config: str, **given: Any) -> tuple[str, dict[str, Any]]:
        """Apply, and wait for the end."""
        return self.wait(self.apply(config, **given)[0])
