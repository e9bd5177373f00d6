// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "state.h"

// Why a GPU instance of this profile cannot be made; NVML_SUCCESS where `chosen` says where to.
nvmlReturn_t gi_place(const struct state *state, const struct gpu *gpu, uint profile,
                      const struct placement *wanted, struct placement *chosen);
uint gi_capacity(const struct state *state, const struct gpu *gpu, uint profile);
int gi_free_id(const struct state *state, const struct gpu *gpu, struct placement place);

uint ci_placements(const struct profile *profile, const struct compute_profile *compute,
                   struct placement *places);
nvmlReturn_t ci_place(const struct profile *profile, const struct gi *gi, uint compute,
                      const struct placement *wanted, struct placement *chosen);
uint ci_capacity(const struct profile *profile, const struct gi *gi, uint compute);
