// SPDX-License-Identifier: Apache-2.0
// MIG devices: one for each compute instance. A GPU instance without one shows none.
#include "call.h"
#include "session.h"

#define MIG_DEVICE(kinds, condition)                                            \
    struct subject it;                                                          \
    NEED(handle_resolve(call.state, device, (kinds), &it) && (condition),       \
         NVML_ERROR_INVALID_ARGUMENT)

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, uint *is_mig) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    MIG_DEVICE(GPU_OR_MIG, is_mig != NULL);
    *is_mig = it.ci != NULL;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, uint *id) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    MIG_DEVICE(GPU_OR_MIG, id != NULL);
    NEED(it.ci != NULL, NVML_ERROR_NOT_SUPPORTED);
    *id = it.handle.gi;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, uint *id) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    MIG_DEVICE(GPU_OR_MIG, id != NULL);
    NEED(it.ci != NULL, NVML_ERROR_NOT_SUPPORTED);
    *id = it.handle.ci;
    DONE(NVML_SUCCESS);
}

// The most there can be, not how many there are; 0 with MIG off.
EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, uint *count) {
    CALL(GPU_OF(device), CALL_DRIVER);
    MIG_DEVICE(KIND(HANDLE_GPU), count != NULL);
    *count = mode_of(it.gpu->word) ? it.board->max_gpu_instances : 0;
    DONE(NVML_SUCCESS);
}

// One session can go on seeing what was there when it first looked, after another process has
// destroyed it (NVIDIA/libcudacxx issue 224, 2021).
static nvmlDevice_t remembered[MAX_GPUS][MAX_GI * MAX_CI];
static uint remembered_in[MAX_GPUS];

static void walk(const struct subject *it, nvmlDevice_t *found, uint room) {
    for (uint index = 0; index < room; index++)
        found[index] = NULL;
    for (uint id = 0; id < MAX_GI; id++) {
        const struct gi *gi = &it->gpu->gi[id];
        for (uint inner = 0; gi_is_live(it->gpu, gi) && inner < MAX_CI; inner++) {
            const struct ci *ci = &gi->ci[inner];
            if (ci_is_live(gi, ci) && ci->mig_index < room)
                found[ci->mig_index] =
                    handle_make(HANDLE_MIG, it->handle.gpu, id, inner, ci->serial);
        }
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, uint index,
                                                        nvmlDevice_t *mig) {
    CALL(GPU_OF(device), CALL_DRIVER);
    MIG_DEVICE(KIND(HANDLE_GPU), mig != NULL);
    NEED(mode_of(it.gpu->word), NVML_ERROR_NOT_SUPPORTED);
    NEED(index < it.board->max_gpu_instances, NVML_ERROR_INVALID_ARGUMENT);
    uint number = it.handle.gpu, room = MAX_GI * MAX_CI;
    bool stale = it.gpu->surprises[STALE_MIG_HANDLES] != 0;
    if (!stale || remembered_in[number] != session.opened)
        walk(&it, remembered[number], room);
    remembered_in[number] = session.opened;
    NEED(remembered[number][index] != NULL, NVML_ERROR_NOT_FOUND);
    *mig = remembered[number][index];
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device,
                                                                 nvmlDevice_t *parent) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    MIG_DEVICE(KIND(HANDLE_MIG), parent != NULL);
    *parent = handle_make(HANDLE_GPU, it.handle.gpu, 0, 0, 0);
    DONE(NVML_SUCCESS);
}
