// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "state.h"

// This process's open NVML session. One a process, counted, gone after exec.
struct session {
    struct node *node;
    int references, fd, slot, log;
    uint boot, opened;  // in which boot, and the how-manieth session of this process
    bool first_handle_done;
};

extern struct session session;

nvmlReturn_t session_open(void);
nvmlReturn_t session_close(void);

// calls.log beside the state, or -1: where there is none, nothing is logged.
int session_log(const struct node *node);
