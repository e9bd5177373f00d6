// SPDX-License-Identifier: Apache-2.0
// Event sets: only a MIG configuration change is ever raised here, on each GPU instance or compute
// instance that is made or destroyed (open-gpu-kernel-modules raises SMC_CONFIG_UPDATE there).
#include "call.h"
#include "session.h"

// A card of a data centre offers ECC and Xid events as well; programs register for them at once.
#define OFFERED_EVENTS (NVML_EVENT_MIG_CONFIG_CHANGE | 0x8ULL | 0x2ULL | 0x1ULL)
#define KNOWN_EVENTS 0xFFFFULL

enum { MAX_SETS = 64 };

struct event_set {
    uint opened;  // the session that it was made in, + 1; 0: free
    uint64_t types[MAX_GPUS], seen[MAX_GPUS];
};

static struct event_set sets[MAX_SETS];  // used with the state locked

static bool is_set(const struct event_set *set) {
    return set >= sets && set < sets + MAX_SETS && set == &sets[set - sets] &&
           set->opened == session.opened + 1;
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(set != NULL, NVML_ERROR_INVALID_ARGUMENT);
    for (int index = 0; index < MAX_SETS; index++) {
        if (sets[index].opened == session.opened + 1)
            continue;
        sets[index] = (struct event_set){.opened = session.opened + 1};
        *set = &sets[index];
        DONE(NVML_SUCCESS);
    }
    DONE(NVML_ERROR_MEMORY);
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(is_set(set), NVML_ERROR_INVALID_ARGUMENT);
    set->opened = 0;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device,
                                                     unsigned long long *types) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    struct subject it;
    NEED(handle_resolve(call.state, device, KIND(HANDLE_GPU), &it) && types != NULL,
         NVML_ERROR_INVALID_ARGUMENT);
    *types = it.board->profile_count > 0 ? OFFERED_EVENTS
                                         : OFFERED_EVENTS & ~NVML_EVENT_MIG_CONFIG_CHANGE;
    DONE(NVML_SUCCESS);
}

// What happened before is not recorded; MIG device handles have no events (nvml.h).
EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
                                             nvmlEventSet_t set) {
    CALL(GPU_OF(device), CALL_DRIVER);
    struct subject it;
    NEED(handle_resolve(call.state, device, KIND(HANDLE_GPU) | KIND(HANDLE_MIG), &it) &&
             is_set(set) && (types & ~KNOWN_EVENTS) == 0,
         NVML_ERROR_INVALID_ARGUMENT);
    bool offered = (types & ~OFFERED_EVENTS) == 0 &&
                   (it.board->profile_count > 0 || !(types & NVML_EVENT_MIG_CONFIG_CHANGE));
    NEED(it.ci == NULL && offered, NVML_ERROR_NOT_SUPPORTED);
    set->types[it.handle.gpu] |= types;
    set->seen[it.handle.gpu] = it.gpu->changes;
    DONE(NVML_SUCCESS);
}

// The GPU of the next event, or -1. Callers without privilege get events of whole devices only,
// and a change of one instance is none (nvml.h).
static int next_event(const struct call *call, struct event_set *set) {
    for (uint index = 0; index < call->state->gpu_count; index++) {
        uint64_t changes = call->state->gpus[index].changes;
        if (!(set->types[index] & NVML_EVENT_MIG_CONFIG_CHANGE) || set->seen[index] == changes)
            continue;
        if (!privileged(call)) {
            set->seen[index] = changes;
            continue;
        }
        set->seen[index]++;
        return (int)index;
    }
    return -1;
}

static nvmlReturn_t wait(struct call *call, struct event_set *set, nvmlEventData_v2_t *data,
                         uint timeout_ms) {
    struct state *state = call->state;
    uint64_t end = now_ns() + timeout_ms * 1000000ULL;
    *data = (nvmlEventData_v2_t){0};
    if (!is_set(set))
        return NVML_ERROR_INVALID_ARGUMENT;
    if (call->operation != NULL)  // who waits keeps nobody from working
        pthread_mutex_unlock(call->operation);
    call->operation = NULL;
    for (;;) {
        if (state->boot != session.boot)
            return NVML_ERROR_GPU_IS_LOST;
        int index = next_event(call, set);
        if (index >= 0) {
            *data = (nvmlEventData_v2_t){
                .device = handle_make(HANDLE_GPU, (uint)index, 0, 0, 0),
                .eventType = NVML_EVENT_MIG_CONFIG_CHANGE,
                .gpuInstanceId = NVML_NO_INSTANCE,
                .computeInstanceId = NVML_NO_INSTANCE};
            return NVML_SUCCESS;
        }
        uint seen = state->event;
        uint64_t now = now_ns();
        if (now >= end)
            return NVML_ERROR_TIMEOUT;
        state_unlock(state);
        event_wait(state, seen, end - now);
        state_lock(state);
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_v2_t *data,
                                        uint timeout_ms) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(data != NULL, NVML_ERROR_INVALID_ARGUMENT);
    DONE(wait(&call, set, data, timeout_ms));
}

EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_v1_t *data,
                                     uint timeout_ms) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(data != NULL, NVML_ERROR_INVALID_ARGUMENT);
    nvmlEventData_v2_t whole;
    nvmlReturn_t result = wait(&call, set, &whole, timeout_ms);
    *data = (nvmlEventData_v1_t){whole.device, whole.eventType, whole.eventData};
    DONE(result);
}
