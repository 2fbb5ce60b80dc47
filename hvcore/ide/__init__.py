"""The IDE controller model and the driver that runs its register programmes."""

from hvcore.ide.device import Controller
from hvcore.ide.driver import Driver, Result

__all__ = ["Controller", "Driver", "Result"]
