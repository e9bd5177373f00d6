// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "call.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "capabilities.h"
#include "session.h"

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const char *result_name(nvmlReturn_t result) {
    static const char *const names[] = {
        "SUCCESS", "UNINITIALIZED", "INVALID_ARGUMENT", "NOT_SUPPORTED", "NO_PERMISSION",
        "ALREADY_INITIALIZED", "NOT_FOUND", "INSUFFICIENT_SIZE", "INSUFFICIENT_POWER",
        "DRIVER_NOT_LOADED", "TIMEOUT", "IRQ_ISSUE", "LIBRARY_NOT_FOUND", "FUNCTION_NOT_FOUND",
        "CORRUPTED_INFOROM", "GPU_IS_LOST", "RESET_REQUIRED", "OPERATING_SYSTEM",
        "LIB_RM_VERSION_MISMATCH", "IN_USE", "MEMORY", "NO_DATA", "VGPU_ECC_NOT_SUPPORTED",
        "INSUFFICIENT_RESOURCES", "FREQ_NOT_SUPPORTED", "ARGUMENT_VERSION_MISMATCH",
        "DEPRECATED", "NOT_READY", "GPU_NOT_FOUND", "INVALID_STATE",
        "RESET_TYPE_NOT_SUPPORTED"};
    if ((uint)result < sizeof names / sizeof *names)
        return names[result];
    return "UNKNOWN";
}

static void count(struct state *state, struct site *site) {
    int counter = site->counter;
    if (counter > 0 && strcmp(state->counters[counter - 1].call, site->name) == 0) {
        state->counters[counter - 1].count++;
        return;
    }
    state_lock(state);
    uint index = 0;
    while (index < state->counter_count && strcmp(state->counters[index].call, site->name) != 0)
        index++;
    if (index == state->counter_count && index < MAX_COUNTERS) {
        snprintf(state->counters[index].call, NAME_LENGTH, "%s", site->name);
        state->counter_count = index + 1;
    }
    if (index < MAX_COUNTERS) {
        state->counters[index].count++;
        site->counter = (int)index + 1;
    }
    state_unlock(state);
}

static void write_log(int log, const struct site *site, int gpu, nvmlReturn_t result,
                      uint64_t begun) {
    if (log < 0)
        return;
    char line[256], index[16] = "-";
    if (gpu >= 0)
        snprintf(index, sizeof index, "%d", gpu);
    int length = snprintf(line, sizeof line, "%llu %d %s %s %s %llu\n",
                          (unsigned long long)now_ns(), getpid(), site->name, index,
                          result_name(result), (unsigned long long)begun);
    ssize_t written = write(log, line, (size_t)length);
    (void)written;
}

static bool matches(const char *pattern, const char *name) {
    size_t length = strlen(pattern);
    if (length > 0 && pattern[length - 1] == '*')
        return strncmp(pattern, name, length - 1) == 0;
    return strcmp(pattern, name) == 0;
}

// Counts the call on every rule that it meets; the first rule whose turn it is acts.
static struct fault fault_for(struct state *state, const char *name, int gpu) {
    struct fault acting = {0};
    for (int index = 0; index < MAX_FAULTS; index++) {
        struct fault *fault = &state->faults[index];
        if (!fault->used || !matches(fault->call, name) || (fault->gpu >= 0 && fault->gpu != gpu))
            continue;
        fault->seen++;
        if (acting.action == 0 && (fault->nth == 0 || fault->seen == fault->nth))
            acting = (struct fault){.action = fault->action, .result = fault->result};
    }
    return acting;
}

static bool is_named(const struct latency *latency, const char *name) {
    return latency->used && strcmp(latency->call, name) == 0;
}

// "NAME@reset" and "NAME@resetless" tell the board generations apart; a plain name holds for both,
// and before all of them that of the call's variant.
static uint latency_for(const struct state *state, const char *name, const char *variant,
                        int gpu) {
    char qualified[NAME_LENGTH + 16] = "", special[NAME_LENGTH + 16] = "";
    if (variant != NULL)
        snprintf(special, sizeof special, "%s@%s", name, variant);
    if (gpu >= 0 && (uint)gpu < state->gpu_count) {
        bool reset = board_of(state, &state->gpus[gpu])->mode_needs_reset;
        snprintf(qualified, sizeof qualified, "%s@%s", name, reset ? "reset" : "resetless");
    }
    uint found = 0;
    bool plain = false;
    for (int index = 0; index < MAX_LATENCIES; index++) {
        const struct latency *latency = &state->latencies[index];
        if (is_named(latency, special))
            return latency->microseconds;
        if (is_named(latency, name) || (!plain && is_named(latency, qualified)))
            found = latency->microseconds;
        plain |= is_named(latency, name);
    }
    return found;
}

static void wait_us(uint microseconds) {
    struct timespec left = {microseconds / 1000000, (long)(microseconds % 1000000) * 1000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

static void hang(void) {
    for (;;)
        pause();
}

static bool needs_handle_latency(const struct site *site) {
    return strncmp(site->name, "nvmlDeviceGetHandleBy", 21) == 0;
}

// One that only counts: nvml.h, "a reference count of the number of initializations is maintained".
static bool is_counting_only(const struct site *site) {
    return strncmp(site->name, "nvmlInit", 8) == 0 && session.references > 1;
}

bool first_handle(void) {
    if (session.first_handle_done)
        return false;
    session.first_handle_done = true;
    return true;
}

// Faults, locks and time that come before the body. True where the result is decided.
static bool prelude(struct call *call, enum call_kind kind, nvmlReturn_t *result) {
    struct state *state = call->state;
    state_lock(state);
    struct fault fault = fault_for(state, call->site->name, call->gpu);
    uint delay = 0;
    if (!is_counting_only(call->site))
        delay = latency_for(state, call->site->name, call->variant, call->gpu);
    if (needs_handle_latency(call->site) && first_handle())
        delay += latency_for(state, "first-handle", NULL, NO_GPU);
    if (call->site->counter > 0)
        state->counters[call->site->counter - 1].modelled_us += delay;
    bool known_gpu = call->gpu >= 0 && (uint)call->gpu < state->gpu_count;
    if (kind != CALL_IDENTITY || delay > 0 || fault.action == FAULT_HANG) {
        if (state->lock_node)
            call->operation = &state->operation;
        else if (known_gpu)
            call->operation = &state->gpus[call->gpu].operation;
    }
    state_unlock(state);

    if (call->operation != NULL)
        operation_lock(call->operation);
    call->begun = now_ns();
    if (delay > 0)
        wait_us(delay);
    if (fault.action == FAULT_HANG)
        hang();
    if (fault.action == FAULT_DIE)
        raise(SIGKILL);
    call->die_after = fault.action == FAULT_DIE_AFTER;
    call->no_effect = fault.action == FAULT_NO_EFFECT;
    *result = fault.action == FAULT_RETURN ? (nvmlReturn_t)fault.result : NVML_SUCCESS;
    return fault.action == FAULT_RETURN || (call->no_effect && kind != CALL_CHANGE);
}

static nvmlReturn_t finish(struct call *call, nvmlReturn_t result) {
    if (call->die_after)
        raise(SIGKILL);
    write_log(session.log, call->site, call->gpu, result, call->begun);
    if (call->operation != NULL)
        pthread_mutex_unlock(call->operation);
    return result;
}

// SUCCESS means that the body has to run, with the state locked. A fault may also decide that the
// call returns SUCCESS and did nothing; callers cannot tell, so that is kept out of the result.
nvmlReturn_t call_begin(struct call *call, struct site *site, int gpu, enum call_kind kind,
                        const char *variant) {
    *call = (struct call){.site = site, .variant = variant, .gpu = gpu, .begun = now_ns()};
    if (session.references == 0)
        return NVML_ERROR_UNINITIALIZED;
    call->node = session.node;
    call->state = session.node->state;
    count(call->state, site);
    nvmlReturn_t result;
    bool decided = prelude(call, kind, &result);
    if (decided && result != NVML_SUCCESS)
        return finish(call, result);
    call->no_effect |= decided;
    state_lock(call->state);
    if (call->state->boot != session.boot) {
        state_unlock(call->state);
        return finish(call, NVML_ERROR_GPU_IS_LOST);
    }
    return NVML_SUCCESS;
}

nvmlReturn_t call_end(struct call *call, nvmlReturn_t result) {
    if (call->gpu >= 0 && (uint)call->gpu < call->state->gpu_count)
        capabilities_follow(call->node, (uint)call->gpu);
    state_unlock(call->state);
    return finish(call, result);
}

bool call_fault(struct node *node, struct site *site, struct call *call, nvmlReturn_t *result) {
    *call = (struct call){
        .site = site, .gpu = NO_GPU, .node = node, .state = node->state, .begun = now_ns()};
    count(node->state, site);
    return prelude(call, CALL_IDENTITY, result);
}

void call_refused(struct node *node, struct site *site, nvmlReturn_t result, uint64_t begun) {
    count(node->state, site);
    int log = session_log(node);
    write_log(log, site, NO_GPU, result, begun);
    if (log >= 0)
        close(log);
}

void call_record(struct site *site, nvmlReturn_t result, uint64_t begun) {
    write_log(session.log, site, NO_GPU, result, begun);
}

static bool has_sys_admin(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        return false;
    return data[0].effective & (1u << CAP_SYS_ADMIN);
}

// The driver asks for CAP_SYS_ADMIN (open-gpu-kernel-modules osIsAdministrator). Here the owner of
// the node stands for root, so that nobody needs to be root to simulate; with sys-admin-needed
// nothing but the capability counts.
bool privileged(const struct call *call) {
    const struct state *state = call->state;
    uint gpu = call->gpu >= 0 && (uint)call->gpu < state->gpu_count ? (uint)call->gpu : 0;
    if (state->gpus[gpu].surprises[SYS_ADMIN_NEEDED])
        return has_sys_admin();
    return geteuid() == 0 || geteuid() == call->node->owner_uid;
}

int own_session(void) { return session.slot; }

bool handle_resolve(struct state *state, const void *pointer, uint kinds,
                    struct subject *subject) {
    struct handle handle = handle_read(pointer);
    *subject = (struct subject){.handle = handle};
    if (handle.kind == HANDLE_NONE || !(kinds & KIND(handle.kind)) ||
        handle.gpu >= state->gpu_count)
        return false;
    subject->gpu = &state->gpus[handle.gpu];
    subject->board = board_of(state, subject->gpu);
    if (handle.kind == HANDLE_GPU)
        return true;
    if (handle.gi >= MAX_GI)
        return false;
    subject->gi = &subject->gpu->gi[handle.gi];
    if (!gi_is_live(subject->gpu, subject->gi))
        return false;
    subject->profile = &subject->board->profiles[subject->gi->profile];
    if (handle.kind == HANDLE_GI)
        return subject->gi->serial == handle.serial;
    subject->ci = &subject->gi->ci[handle.ci];
    if (!ci_is_live(subject->gi, subject->ci) || subject->ci->serial != handle.serial)
        return false;
    subject->compute = &subject->profile->compute[subject->ci->profile];
    return true;
}
