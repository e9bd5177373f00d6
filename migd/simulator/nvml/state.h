// SPDX-License-Identifier: Apache-2.0
// The simulated node: one file that every process maps. Only C code knows this layout.
//
// A process may be killed between any two stores. So each change is prepared in a record that
// nobody looks at and comes into force with one last store (`owner`, `live`, `word`, `used`); what
// takes more than one such store is written down in `pending` first and can be done again.
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nvml.h"

#define STATE_MAGIC 0x314d495347494dULL
#define STATE_LAYOUT 5u

enum {
    MAX_GPUS = 32,
    MAX_BOARDS = 16,
    MAX_PROFILES = 18,
    MAX_PLACEMENTS = 14,
    MAX_COMPUTE_PROFILES = 10,
    MAX_GI = 15,  // ids 0..14, open-gpu-kernel-modules kmigmgrMemSizeFlagToSwizzIdRange_GA100
    MAX_CI = 8,   // ids 0..7, open-gpu-kernel-modules kernel_mig_manager.c
    MAX_SLOTS = 512,
    MAX_FAULTS = 64,
    MAX_LATENCIES = 64,
    MAX_COUNTERS = 320,
    NAME_LENGTH = 64,
};

struct placement {
    uint start, size;
};

struct compute_profile {
    char name[32];
    uint id, slices, instances, sm, is_default;
};

struct profile {
    char name[32];
    uint id, enumerator, slices, instances, sm;
    uint copy_engines, decoders, encoders, jpeg, ofa, p2p, graphics;
    uint64_t memory_mib;
    uint placement_count, compute_count;
    struct placement placements[MAX_PLACEMENTS];
    struct compute_profile compute[MAX_COMPUTE_PROFILES];
};

struct board {
    char key[40], name[96], left_out[512], filled[1024];
    uint architecture, capability_major, capability_minor, chip_id;
    uint pci_device_id, pci_subsystem_id;
    uint memory_slices, compute_slices, max_gpu_instances;
    uint mode_needs_reset, mode_survives_reboot;
    uint64_t memory_mib;
    uint profile_count;
    struct profile profiles[MAX_PROFILES];
};

struct ci {
    _Atomic uint owner;  // serial of the GPU instance that it is in; 0: there is none. Set last
    uint serial, profile, start, size, mig_index;
    int lingering;  // destroyed, but seen for this many more listings; -1: for good
};

struct gi {
    _Atomic uint live;  // the GPU's epoch in which it was made; 0: there is none. Set last
    uint serial, profile, start, size;
    int lingering;
    uint busy;  // destroys that are still refused after one of its compute instances went
    struct ci ci[MAX_CI];
};

enum surprise {
    GI_IDS_BY_PLACEMENT,
    GI_IDS_BY_PLACEMENT_FLIPPED,
    GI_IDS_OTHER_ORDER_AFTER_REBOOT,
    PLACEMENT_114_SM,
    PLACEMENT_LOWEST_FIRST,
    DESTROYED_STAY_VISIBLE,
    MINOR_CHANGES_AFTER_RESET,
    PENDING_STICKS,
    PENDING_SURVIVES_REBOOT,
    PASSTHROUGH,
    PASSTHROUGH_ASKS_RESET,
    STALE_MIG_HANDLES,
    GI_BUSY_AFTER_CI_DESTROY,
    SYS_ADMIN_NEEDED,
    NO_OWN_RESET,
    RESET_NEEDS_PEERS,
    DRM_HOLDS,
    SURPRISES,
};
#define SURPRISE_ON 0xFFFFFFFFu

struct gpu {
    // bit 0 mode, bit 1 pending mode, bits 8-15 minor number, bits 32-63 epoch. A new epoch makes
    // all instances of the old one void, so mode and instances change in one store.
    _Atomic uint64_t word;
    uint board, boot;
    uint pci_bus;
    uint64_t pdi;
    uint persistence;
    _Atomic uint64_t changes;  // GPU and compute instances made or destroyed, ever
    char uuid[48];
    uint surprises[SURPRISES];
    pthread_mutex_t operation;
    struct gi gi[MAX_GI];
    // Of which instances there are files of capabilities, and below which minor number: bit 0 the
    // GPU instance, the others its compute instances. See capabilities.c.
    _Atomic uint shown[MAX_GI];
    uint shown_minor;
};

enum slot_kind { SLOT_SESSION = 1, SLOT_HOLDER = 2 };

// Alive as long as somebody has byte SLOT_LOCKS + index of the state file locked (fcntl OFD).
struct slot {
    _Atomic uint used;
    uint kind, boot, hidden;
    int pid, gpu, gi;
};
#define SLOT_LOCKS (1LL << 40)

enum fault_action { FAULT_RETURN = 1, FAULT_HANG, FAULT_NO_EFFECT, FAULT_DIE, FAULT_DIE_AFTER };

struct fault {
    _Atomic uint used;
    char call[NAME_LENGTH];  // a trailing '*' stands for any rest
    uint action, result;
    int gpu;  // -1: any
    uint nth, seen;
};

struct latency {
    _Atomic uint used;
    char call[NAME_LENGTH];
    uint microseconds, assumed;
};

struct counter {
    char call[NAME_LENGTH];
    _Atomic uint64_t count, modelled_us;
};

enum pending { NOTHING_PENDING, REBOOT_PENDING, UNLOAD_PENDING };

struct state {
    uint64_t magic;
    uint layout, size;
    pthread_mutex_t lock;
    pthread_mutex_t operation;  // the one operation lock of `lock_node`
    uint lock_node, loaded;
    _Atomic uint pending;
    _Atomic uint event;  // changes with each event; who waits for one sleeps on it (futex)
    uint boot, serial;
    char module_version[32];
    uint board_count, gpu_count;
    _Atomic uint counter_count;
    struct board boards[MAX_BOARDS];
    struct gpu gpus[MAX_GPUS];
    struct slot slots[MAX_SLOTS];
    struct fault faults[MAX_FAULTS];
    struct latency latencies[MAX_LATENCIES];
    struct counter counters[MAX_COUNTERS];
};

// One process's view of a node.
struct node {
    struct state *state;
    int probe;  // a file description of its own that holds no lock
    uint owner_uid;
    uint64_t device, inode;
    char path[4096];
};

struct node *node_open(const char *path, int *error);
void node_close(struct node *node);

void state_lock(struct state *state);
void state_unlock(struct state *state);
void operation_lock(pthread_mutex_t *lock);

int slot_claim(struct node *node, int fd, struct slot wanted);
void slot_free(struct node *node, int index);
bool slot_alive(struct node *node, int index);

static inline uint mode_of(uint64_t word) { return word & 1; }
static inline uint pending_of(uint64_t word) { return (word >> 1) & 1; }
static inline uint minor_of(uint64_t word) { return (word >> 8) & 0xff; }
static inline uint epoch_of(uint64_t word) { return (uint)(word >> 32); }

static inline uint64_t word_of(uint mode, uint pending, uint minor, uint epoch) {
    return mode | (uint64_t)pending << 1 | (uint64_t)minor << 8 | (uint64_t)epoch << 32;
}

static inline const struct board *board_of(const struct state *state, const struct gpu *gpu) {
    return &state->boards[gpu->board];
}

static inline bool gi_is_live(const struct gpu *gpu, const struct gi *gi) {
    return gi->live != 0 && gi->live == epoch_of(gpu->word);
}

static inline bool ci_is_live(const struct gi *gi, const struct ci *ci) {
    return ci->owner != 0 && ci->owner == gi->serial;
}

// Tells those who wait. To be called with the state locked and before the change that it is about:
// whoever is killed in between has announced too much, never too little.
void event_raise(struct state *state, struct gpu *gpu);
void event_wait(struct state *state, uint seen, uint64_t nanoseconds);
void event_wake(struct state *state);

uint next_serial(struct state *state);
uint instance_count(const struct gpu *gpu);
void gpu_void_instances(struct state *state, uint index, uint mode, uint pending, bool was_reset);
void state_reboot(struct state *state);
void state_unload(struct state *state);
