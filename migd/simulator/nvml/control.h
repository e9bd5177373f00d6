// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "state.h"

// What the sim_* functions return; node.py knows the same numbers.
enum sim_result {
    SIM_DONE,
    SIM_NO_SUCH_GPU,
    SIM_NOT_LOADED,
    SIM_ALREADY_LOADED,
    SIM_IN_USE,
    SIM_RESET_NOT_SUPPORTED,
    SIM_NO_SUCH_INSTANCE,
    SIM_NO_ACCESS,
    SIM_FULL,
    SIM_BAD_DESCRIPTION,
};
