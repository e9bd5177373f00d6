// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "state.h"

// Brings NODE/view/driver/nvidia/capabilities/gpuN/mig up to date for one GPU, with the state
// locked. Files that this process may not change stay as they are, for the next one that may.
void capabilities_follow(struct node *node, uint index);
void capabilities_follow_all(struct node *node);
