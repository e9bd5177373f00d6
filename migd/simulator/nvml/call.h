// SPDX-License-Identifier: Apache-2.0
// What every NVML call has in common: session, counting, log, faults, latency and the locks.
#pragma once

#include "handle.h"
#include "state.h"

enum call_kind {
    CALL_IDENTITY,  // answered from what the library knows; takes no operation lock
    CALL_DRIVER,    // goes to the driver
    CALL_CHANGE,    // goes to the driver and changes something
};

struct site {
    const char *name;
    _Atomic int counter;  // index + 1
};

struct call {
    struct site *site;
    struct state *state;
    struct node *node;
    pthread_mutex_t *operation;
    const char *variant;
    int gpu;
    bool no_effect, die_after;
    uint64_t begun;
};

// variant: a latency of "NAME@variant" holds instead of others, where there is one; NULL for none.
nvmlReturn_t call_begin(struct call *call, struct site *site, int gpu, enum call_kind kind,
                        const char *variant);
nvmlReturn_t call_end(struct call *call, nvmlReturn_t result);

// Calls that open or close the session themselves: what they share with the others, piece by piece.
void call_record(struct site *site, nvmlReturn_t result, uint64_t begun);
void call_refused(struct node *node, struct site *site, nvmlReturn_t result, uint64_t begun);
bool call_fault(struct node *node, struct site *site, struct call *call, nvmlReturn_t *result);

// Opens the call; the body then runs with the state locked and leaves by DONE.
#define CALL(gpu_index, kind) CALL_AS(gpu_index, kind, NULL)
#define CALL_AS(gpu_index, kind, variant)                                       \
    static struct site site = {.name = __func__};                               \
    struct call call;                                                           \
    nvmlReturn_t begun = call_begin(&call, &site, (gpu_index), (kind), (variant)); \
    if (begun != NVML_SUCCESS)                                                  \
        return begun;                                                           \
    if (call.no_effect && (kind) != CALL_CHANGE)                                \
    return call_end(&call, NVML_SUCCESS)
#define DONE(result) return call_end(&call, (result))
#define NEED(condition, result)                                                 \
    do {                                                                        \
        if (!(condition))                                                       \
            DONE(result);                                                       \
    } while (0)
#define GPU_OR_MIG (KIND(HANDLE_GPU) | KIND(HANDLE_MIG))
#define DEVICE(kinds)   \
    struct subject it;  \
    NEED(handle_resolve(call.state, device, (kinds), &it), NVML_ERROR_INVALID_ARGUMENT)
#define NO_GPU (-1)
#define GPU_OF(pointer) ((int)handle_read(pointer).gpu | -(handle_read(pointer).kind == HANDLE_NONE))

bool privileged(const struct call *call);
bool first_handle(void);

// Session of this process, for calls that ask whether somebody else is there.
int own_session(void);
uint64_t now_ns(void);
const char *result_name(nvmlReturn_t result);
nvmlReturn_t put_text(char *to, uint length, const char *text);
