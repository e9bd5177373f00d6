// SPDX-License-Identifier: Apache-2.0
// What the command line does to a node: no NVML, no session.
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "capabilities.h"
#include "version.h"

EXPORT void *sim_open(const char *path, int *error) { return node_open(path, error); }
EXPORT void sim_close(struct node *node) { node_close(node); }
EXPORT const char *sim_driver_version(void) { return DRIVER_VERSION; }
EXPORT int sim_gpu_count(struct node *node) { return (int)node->state->gpu_count; }

EXPORT int sim_reboot(struct node *node) {
    state_lock(node->state);
    state_reboot(node->state);
    snprintf(node->state->module_version, sizeof node->state->module_version, "%s",
             DRIVER_VERSION);
    capabilities_follow_all(node);
    state_unlock(node->state);
    return SIM_DONE;
}

// Pids that are in the way, for the sentence of refusal.
static bool in_the_way(struct node *node, int gpu, char *pids, size_t length) {
    size_t used = 0;
    pids[0] = '\0';
    for (int index = 0; index < MAX_SLOTS; index++) {
        const struct slot *slot = &node->state->slots[index];
        if (!slot->used || !slot_alive(node, index))
            continue;
        if (slot->kind == SLOT_HOLDER && gpu >= 0 && slot->gpu != gpu)
            continue;
        if (used + 16 < length)
            used += (size_t)snprintf(pids + used, length - used, used > 0 ? ", %d" : "%d",
                                     slot->pid);
    }
    return used > 0;
}

EXPORT int sim_reset(struct node *node, int gpu, char *pids, size_t length) {
    struct state *state = node->state;
    int result = SIM_DONE;
    state_lock(state);
    if (gpu < 0 || (uint)gpu >= state->gpu_count)
        result = SIM_NO_SUCH_GPU;
    else if (!state->loaded)
        result = SIM_NOT_LOADED;
    else if (state->gpus[gpu].surprises[PASSTHROUGH] ||
             state->gpus[gpu].surprises[PASSTHROUGH_ASKS_RESET])
        result = SIM_RESET_NOT_SUPPORTED;
    else if (in_the_way(node, gpu, pids, length) || state->gpus[gpu].surprises[DRM_HOLDS])
        result = SIM_IN_USE;
    else {
        uint pending = pending_of(state->gpus[gpu].word);
        bool kept = board_of(state, &state->gpus[gpu])->mode_survives_reboot;
        uint mode = kept ? pending : mode_of(state->gpus[gpu].word);
        gpu_void_instances(state, (uint)gpu, mode, mode, true);
        capabilities_follow(node, (uint)gpu);
    }
    state_unlock(state);
    return result;
}

EXPORT int sim_unload(struct node *node, char *pids, size_t length) {
    int result = SIM_DONE;
    state_lock(node->state);
    if (!node->state->loaded)
        result = SIM_NOT_LOADED;
    else if (in_the_way(node, -1, pids, length))
        result = SIM_IN_USE;
    else {
        state_unload(node->state);
        capabilities_follow_all(node);
    }
    state_unlock(node->state);
    return result;
}

EXPORT int sim_load(struct node *node) {
    int result = SIM_DONE;
    state_lock(node->state);
    if (node->state->loaded)
        result = SIM_ALREADY_LOADED;
    else {
        snprintf(node->state->module_version, sizeof node->state->module_version, "%s",
                 DRIVER_VERSION);
        node->state->loaded = 1;
        capabilities_follow_all(node);
    }
    state_unlock(node->state);
    return result;
}

// Returns a descriptor that keeps the hold as long as anybody has it open, over exec; negative
// for a refusal.
EXPORT int sim_hold(struct node *node, int gpu, int gi, int hidden) {
    struct state *state = node->state;
    int result, fd = open(node->path, O_RDWR);
    if (fd < 0)
        return -SIM_NO_ACCESS;
    state_lock(state);
    if (gpu < 0 || (uint)gpu >= state->gpu_count)
        result = SIM_NO_SUCH_GPU;
    else if (!state->loaded)
        result = SIM_NOT_LOADED;
    else if (gi >= MAX_GI || (gi >= 0 && !gi_is_live(&state->gpus[gpu], &state->gpus[gpu].gi[gi])))
        result = SIM_NO_SUCH_INSTANCE;
    else {
        struct slot wanted = {.kind = SLOT_HOLDER, .hidden = hidden != 0, .pid = getpid(),
                              .gpu = gpu, .gi = gi};
        result = slot_claim(node, fd, wanted) < 0 ? SIM_FULL : SIM_DONE;
    }
    state_unlock(state);
    if (result == SIM_DONE)
        return fd;
    close(fd);
    return -result;
}

EXPORT int sim_fault(struct node *node, const char *name, int action, int code, int nth, int gpu) {
    struct state *state = node->state;
    int result = SIM_FULL;
    state_lock(state);
    for (int index = 0; index < MAX_FAULTS && result != SIM_DONE; index++) {
        struct fault *fault = &state->faults[index];
        if (fault->used)
            continue;
        snprintf(fault->call, sizeof fault->call, "%s", name);
        fault->action = (uint)action;
        fault->result = (uint)code;
        fault->nth = (uint)nth;
        fault->seen = 0;
        fault->gpu = gpu;
        fault->used = 1;
        result = SIM_DONE;
    }
    state_unlock(state);
    return result;
}

EXPORT int sim_fault_clear(struct node *node) {
    state_lock(node->state);
    for (int index = 0; index < MAX_FAULTS; index++)
        node->state->faults[index].used = 0;
    state_unlock(node->state);
    return SIM_DONE;
}

EXPORT int sim_latency(struct node *node, const char *name, unsigned microseconds, int assumed) {
    struct state *state = node->state;
    struct latency *chosen = NULL;
    state_lock(state);
    for (int index = 0; index < MAX_LATENCIES; index++) {
        struct latency *latency = &state->latencies[index];
        if (latency->used && strcmp(latency->call, name) == 0) {
            chosen = latency;
            break;
        }
        if (!latency->used && chosen == NULL)
            chosen = latency;
    }
    if (chosen != NULL) {
        chosen->used = 0;
        snprintf(chosen->call, sizeof chosen->call, "%s", name);
        chosen->microseconds = microseconds;
        chosen->assumed = assumed != 0;
        chosen->used = 1;
    }
    state_unlock(state);
    return chosen != NULL ? SIM_DONE : SIM_FULL;
}

EXPORT int sim_latency_clear(struct node *node) {
    state_lock(node->state);
    for (int index = 0; index < MAX_LATENCIES; index++)
        node->state->latencies[index].used = 0;
    state_unlock(node->state);
    return SIM_DONE;
}

EXPORT int sim_lock_model(struct node *node, int whole_node) {
    state_lock(node->state);
    node->state->lock_node = whole_node != 0;
    state_unlock(node->state);
    return SIM_DONE;
}

static const char *const surprise_names[SURPRISES] = {
    [GI_IDS_BY_PLACEMENT] = "gi-ids-by-placement",
    [GI_IDS_BY_PLACEMENT_FLIPPED] = "gi-ids-by-placement-flipped",
    [GI_IDS_OTHER_ORDER_AFTER_REBOOT] = "gi-ids-other-order-after-reboot",
    [PLACEMENT_114_SM] = "placement-114-sm",
    [PLACEMENT_LOWEST_FIRST] = "placement-lowest-first",
    [DESTROYED_STAY_VISIBLE] = "destroyed-stay-visible",
    [MINOR_CHANGES_AFTER_RESET] = "minor-changes-after-reset",
    [PENDING_STICKS] = "pending-sticks",
    [PENDING_SURVIVES_REBOOT] = "pending-survives-reboot",
    [PASSTHROUGH] = "passthrough",
    [PASSTHROUGH_ASKS_RESET] = "passthrough-asks-reset",
    [STALE_MIG_HANDLES] = "stale-mig-handles",
    [GI_BUSY_AFTER_CI_DESTROY] = "gi-busy-after-ci-destroy",
    [SYS_ADMIN_NEEDED] = "sys-admin-needed",
    [NO_OWN_RESET] = "no-own-reset",
    [RESET_NEEDS_PEERS] = "reset-needs-peers",
    [DRM_HOLDS] = "drm-holds",
};

EXPORT const char *sim_surprise_name(int index) {
    return index >= 0 && index < SURPRISES ? surprise_names[index] : NULL;
}

EXPORT int sim_surprise(struct node *node, int surprise, unsigned value, int gpu) {
    struct state *state = node->state;
    if (gpu >= (int)state->gpu_count)
        return SIM_NO_SUCH_GPU;
    state_lock(state);
    if (surprise == GI_IDS_OTHER_ORDER_AFTER_REBOOT && value != 0)
        value = state->boot;
    for (int index = 0; index < (int)state->gpu_count; index++)
        if (gpu < 0 || gpu == index)
            state->gpus[index].surprises[surprise] = value;
    state_unlock(state);
    return SIM_DONE;
}
