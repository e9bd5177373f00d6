// SPDX-License-Identifier: Apache-2.0
// Handles: kind, place and serial number in pointer form, never dereferenced. A handle whose
// instance is gone is recognised by its serial number, also when the id is in use again.
#pragma once

#include "state.h"

enum handle_kind { HANDLE_NONE, HANDLE_GPU, HANDLE_MIG, HANDLE_GI, HANDLE_CI };

struct handle {
    enum handle_kind kind;
    uint gpu, gi, ci, serial;
};

#define HANDLE_MARK 0x6eULL

static inline void *handle_make(enum handle_kind kind, uint gpu, uint gi, uint ci, uint serial) {
    uint64_t bits = HANDLE_MARK << 39 | (uint64_t)(kind & 7) << 36 | (uint64_t)gpu << 31 |
                    (uint64_t)gi << 27 | (uint64_t)ci << 24 | serial;
    return (void *)(uintptr_t)bits;
}

static inline struct handle handle_read(const void *pointer) {
    uint64_t bits = (uintptr_t)pointer;
    if (bits >> 39 != HANDLE_MARK)
        return (struct handle){.kind = HANDLE_NONE};
    return (struct handle){
        .kind = (enum handle_kind)(bits >> 36 & 7),
        .gpu = bits >> 31 & 31,
        .gi = bits >> 27 & 15,
        .ci = bits >> 24 & 7,
        .serial = bits & 0xffffff,
    };
}

// What a handle names. Pointers are NULL where the kind has none.
struct subject {
    struct handle handle;
    struct gpu *gpu;
    const struct board *board;
    struct gi *gi;
    const struct profile *profile;
    struct ci *ci;
    const struct compute_profile *compute;
};

// False for a handle of no such kind, of no such GPU, or of an instance that is gone.
bool handle_resolve(struct state *state, const void *pointer, uint kinds, struct subject *subject);
#define KIND(kind) (1u << (kind))
