// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "state.h"

#define HOLDER_MEMORY (512ULL * 1024 * 1024)

// Processes with a context on the GPU, or on one of its instances; without those that only
// subscribe. Returns how many there are and fills in at most `room`.
uint holders_listed(struct node *node, int gpu, int gi, nvmlProcessInfo_t *infos, uint room);

// Anybody at all, hidden or not; `gi` of -1 means the whole GPU.
bool is_held(struct node *node, int gpu, int gi);

// A session other than `except`.
bool has_other_session(struct node *node, int except);
