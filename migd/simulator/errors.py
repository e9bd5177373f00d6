# SPDX-License-Identifier: Apache-2.0
"""The simulator's errors: sentences for the person who called it."""


class SimulatorError(Exception):
    pass


class InUse(SimulatorError):
    pass


class ResetNotSupported(SimulatorError):
    pass
