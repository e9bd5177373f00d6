// SPDX-License-Identifier: Apache-2.0
// What a GPU or a MIG device has: memory, BAR1, attributes, field values.
#include "call.h"
#include "holders.h"

#define MIB (1024ULL * 1024ULL)

// Sums over a GPU in MIG mode are for privileged callers (nvml.h; NO_PERMISSION in a container that
// has a slice only: nvidia-container-toolkit issue 842).
static bool may_sum(const struct call *call, const struct subject *it) {
    return it->ci != NULL || !mode_of(it->gpu->word) || privileged(call);
}

// Used memory is made up: so much a holder, nothing else.
static nvmlMemory_t memory(struct node *node, const struct subject *it) {
    uint64_t total = (it->ci == NULL ? it->board->memory_mib : it->profile->memory_mib) * MIB;
    int gi = it->ci == NULL ? -1 : (int)it->handle.gi;
    uint64_t used = holders_listed(node, (int)it->handle.gpu, gi, NULL, 0) * HOLDER_MEMORY;
    used = used < total ? used : total;
    return (nvmlMemory_t){.total = total, .used = used, .free = total - used};
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *info) {
    CALL(GPU_OF(device), CALL_DRIVER);
    DEVICE(GPU_OR_MIG);
    NEED(info != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(may_sum(&call, &it), NVML_ERROR_NO_PERMISSION);
    *info = memory(call.node, &it);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *info) {
    CALL(GPU_OF(device), CALL_DRIVER);
    DEVICE(GPU_OR_MIG);
    NEED(info != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(info->version == NVML_MEMORY_V2, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    NEED(may_sum(&call, &it), NVML_ERROR_NO_PERMISSION);
    nvmlMemory_t plain = memory(call.node, &it);
    *info = (nvmlMemory_v2_t){.version = info->version,
                              .total = plain.total,
                              .free = plain.free,
                              .used = plain.used};
    DONE(NVML_SUCCESS);
}

// Made up, in the usual size: the next power of two above the memory, and a MIG device's part of
// it by memory slices. nvitop needs an answer for both.
EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlMemory_t *info) {
    CALL(GPU_OF(device), CALL_DRIVER);
    DEVICE(GPU_OR_MIG);
    NEED(info != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(may_sum(&call, &it), NVML_ERROR_NO_PERMISSION);
    uint64_t total = 1;
    while (total < it.board->memory_mib)
        total *= 2;
    if (it.ci != NULL)
        total = total * it.gi->size / it.board->memory_slices;
    *info = (nvmlMemory_t){.total = total * MIB, .free = total * MIB, .used = 0};
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device,
                                               nvmlDeviceAttributes_t *attributes) {
    CALL(GPU_OF(device), CALL_DRIVER);
    DEVICE(GPU_OR_MIG);
    NEED(attributes != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(it.ci != NULL, NVML_ERROR_NOT_SUPPORTED);
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = it.compute->sm,
        .sharedCopyEngineCount = it.profile->copy_engines,
        .sharedDecoderCount = it.profile->decoders,
        .sharedEncoderCount = it.profile->encoders,
        .sharedJpegCount = it.profile->jpeg,
        .sharedOfaCount = it.profile->ofa,
        .gpuInstanceSliceCount = it.profile->slices,
        .computeInstanceSliceCount = it.compute->slices,
        .memorySizeMB = it.profile->memory_mib,
    };
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device,
                                            nvmlDeviceAttributes_t *attributes) {
    return nvmlDeviceGetAttributes_v2(device, attributes);
}

enum { FIELD_RESETLESS_MIG = 184, FIELD_MODE_INDEPENDENT_MIG_QUERY = 199 };

static void field(const struct subject *it, nvmlFieldValue_t *value) {
    value->timestamp = (int64_t)(now_ns() / 1000);
    value->latencyUsec = 0;
    value->valueType = 1;
    value->nvmlReturn = NVML_SUCCESS;
    value->value.number = 0;
    if (value->fieldId == FIELD_RESETLESS_MIG)
        value->value.word = it->board->profile_count > 0 && !it->board->mode_needs_reset;
    else if (value->fieldId == FIELD_MODE_INDEPENDENT_MIG_QUERY)
        value->value.word = 0;  // the versioned profile queries answer only with MIG on
    else
        value->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count,
                                             nvmlFieldValue_t *values) {
    CALL(GPU_OF(device), CALL_DRIVER);
    DEVICE(KIND(HANDLE_GPU));
    NEED(values != NULL && count > 0, NVML_ERROR_INVALID_ARGUMENT);
    for (int index = 0; index < count; index++)
        field(&it, &values[index]);
    DONE(NVML_SUCCESS);
}

