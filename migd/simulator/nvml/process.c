// SPDX-License-Identifier: Apache-2.0
// Who uses a GPU: the references that count, and the process lists that show only some of them.
#include "call.h"
#include "holders.h"

static bool holds(struct node *node, int index, int gpu, int gi) {
    const struct slot *slot = &node->state->slots[index];
    return slot->used && slot->kind == SLOT_HOLDER && slot->gpu == gpu &&
           (gi < 0 || slot->gi == gi) && slot_alive(node, index);
}

static nvmlProcessInfo_t describe(const struct state *state, const struct slot *slot) {
    bool mig = mode_of(state->gpus[slot->gpu].word) && slot->gi >= 0;
    return (nvmlProcessInfo_t){.pid = (uint)slot->pid,
                               .usedGpuMemory = HOLDER_MEMORY,
                               .gpuInstanceId = mig ? (uint)slot->gi : NVML_NO_INSTANCE,
                               .computeInstanceId = mig ? 0 : NVML_NO_INSTANCE};
}

uint holders_listed(struct node *node, int gpu, int gi, nvmlProcessInfo_t *infos, uint room) {
    uint count = 0;
    for (int index = 0; index < MAX_SLOTS; index++) {
        const struct slot *slot = &node->state->slots[index];
        if (slot->hidden || !holds(node, index, gpu, gi))
            continue;
        if (count < room)
            infos[count] = describe(node->state, slot);
        count++;
    }
    return count;
}

bool is_held(struct node *node, int gpu, int gi) {
    for (int index = 0; index < MAX_SLOTS; index++)
        if (holds(node, index, gpu, gi))
            return true;
    return false;
}

bool has_other_session(struct node *node, int except) {
    for (int index = 0; index < MAX_SLOTS; index++)
        if (index != except && node->state->slots[index].used &&
            node->state->slots[index].kind == SLOT_SESSION && slot_alive(node, index))
            return true;
    return false;
}

static nvmlReturn_t list(struct call *call, nvmlDevice_t device, uint *count, void *infos,
                         bool old_layout, bool empty) {
    struct subject it;
    nvmlProcessInfo_t found[MAX_SLOTS];
    if (!handle_resolve(call->state, device, KIND(HANDLE_GPU) | KIND(HANDLE_MIG), &it) ||
        count == NULL || (*count > 0 && infos == NULL))
        return NVML_ERROR_INVALID_ARGUMENT;
    // The list of a whole GPU in MIG mode is for privileged callers (nvml.h); what others get is
    // not established, NO_PERMISSION is assumed.
    if (it.ci == NULL && mode_of(it.gpu->word) && !privileged(call))
        return NVML_ERROR_NO_PERMISSION;
    int gi = it.ci == NULL ? -1 : (int)it.handle.gi;
    bool other_ci = it.ci != NULL && it.handle.ci != 0;  // holders are on compute instance 0
    uint needed = empty || other_ci
                      ? 0
                      : holders_listed(call->node, (int)it.handle.gpu, gi, found, MAX_SLOTS);
    uint room = *count;
    *count = needed;
    if (needed > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (uint index = 0; index < needed; index++) {
        if (old_layout)
            ((nvmlProcessInfo_v1_t *)infos)[index] = (nvmlProcessInfo_v1_t){
                .pid = found[index].pid, .usedGpuMemory = found[index].usedGpuMemory};
        else
            ((nvmlProcessInfo_t *)infos)[index] = found[index];
    }
    return NVML_SUCCESS;
}

#define PROCESS_LIST(function, old_layout, empty)                                   \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, uint *count, void *infos) {   \
        CALL(GPU_OF(device), CALL_DRIVER);                                          \
        DONE(list(&call, device, count, infos, old_layout, empty));                 \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses, true, false)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, false, false)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, false, false)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses, true, true)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, false, true)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, false, true)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses, true, true)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, false, true)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, false, true)

// Mode 0 lists compute processes; nobody draws here, and nobody runs under MPS.
EXPORT nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                          nvmlProcessDetailList_v1_t *wanted) {
    CALL(GPU_OF(device), CALL_DRIVER);
    NEED(wanted != NULL && wanted->mode <= 2, NVML_ERROR_INVALID_ARGUMENT);
    NEED(wanted->version == NVML_PROCESS_DETAIL_LIST_V1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    nvmlProcessInfo_t found[MAX_SLOTS];
    uint room = wanted->numProcArrayEntries, count = MAX_SLOTS;
    nvmlReturn_t result = list(&call, device, &count, found, false, wanted->mode != 0);
    NEED(result == NVML_SUCCESS, result);
    wanted->numProcArrayEntries = count;
    NEED(count <= room, NVML_ERROR_INSUFFICIENT_SIZE);
    NEED(count == 0 || wanted->procArray != NULL, NVML_ERROR_INVALID_ARGUMENT);
    for (uint index = 0; index < count; index++)
        wanted->procArray[index] = (nvmlProcessDetail_v1_t){
            .pid = found[index].pid,
            .usedGpuMemory = found[index].usedGpuMemory,
            .gpuInstanceId = found[index].gpuInstanceId,
            .computeInstanceId = found[index].computeInstanceId};
    DONE(NVML_SUCCESS);
}
