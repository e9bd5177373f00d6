# SPDX-License-Identifier: Apache-2.0
"""The simulator's one error: a sentence for the person who called it."""


class SimulatorError(Exception):
    pass
