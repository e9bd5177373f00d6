// SPDX-License-Identifier: Apache-2.0
// Finding GPUs and what identifies them; the same for MIG device handles where NVML allows it.
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "call.h"
#include "uuid.h"

static nvmlDevice_t gpu_handle(uint index) { return handle_make(HANDLE_GPU, index, 0, 0, 0); }

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(uint *count) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(count != NULL, NVML_ERROR_INVALID_ARGUMENT);
    *count = call.state->gpu_count;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(uint *count) { return nvmlDeviceGetCount_v2(count); }

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(uint index, nvmlDevice_t *device) {
    CALL(index < MAX_GPUS ? (int)index : NO_GPU, CALL_IDENTITY);
    NEED(device != NULL && index < call.state->gpu_count, NVML_ERROR_INVALID_ARGUMENT);
    *device = gpu_handle(index);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(uint index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvmlDevice_t mig_by_uuid(const struct state *state, uint index, const char *uuid) {
    const struct gpu *gpu = &state->gpus[index];
    for (uint gi = 0; gi < MAX_GI; gi++) {
        if (!gi_is_live(gpu, &gpu->gi[gi]))
            continue;
        for (uint ci = 0; ci < MAX_CI; ci++) {
            const struct ci *found = &gpu->gi[gi].ci[ci];
            char text[MIG_UUID_LENGTH];
            if (!ci_is_live(&gpu->gi[gi], found))
                continue;
            mig_uuid(board_of(state, gpu), gpu->pdi, gi, gpu->gi[gi].start + found->start, text);
            if (strcasecmp(text, uuid) == 0)
                return handle_make(HANDLE_MIG, index, gi, ci, found->serial);
        }
    }
    return NULL;
}

// "MIG-GPU-<uuid>/<gi>/<ci>" is the form from before R470; both are taken (NVML's changelog).
static nvmlDevice_t mig_by_old_uuid(const struct state *state, const char *uuid) {
    const char *slash = strchr(uuid, '/');
    uint gi, ci;
    if (strncmp(uuid, "MIG-GPU-", 8) != 0 || slash == NULL ||
        sscanf(slash, "/%u/%u", &gi, &ci) != 2 || gi >= MAX_GI || ci >= MAX_CI)
        return NULL;
    for (uint index = 0; index < state->gpu_count; index++) {
        const struct gpu *gpu = &state->gpus[index];
        size_t length = strlen(gpu->uuid);
        if ((size_t)(slash - uuid - 4) == length && strncmp(uuid + 4, gpu->uuid, length) == 0 &&
            gi_is_live(gpu, &gpu->gi[gi]) && ci_is_live(&gpu->gi[gi], &gpu->gi[gi].ci[ci]))
            return handle_make(HANDLE_MIG, index, gi, ci, gpu->gi[gi].ci[ci].serial);
    }
    return NULL;
}

static nvmlDevice_t by_uuid(const struct state *state, const char *uuid) {
    for (uint index = 0; index < state->gpu_count; index++) {
        nvmlDevice_t mig = mig_by_uuid(state, index, uuid);
        if (strcasecmp(state->gpus[index].uuid, uuid) == 0)
            return gpu_handle(index);
        if (mig != NULL)
            return mig;
    }
    return mig_by_old_uuid(state, uuid);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(uuid != NULL && device != NULL, NVML_ERROR_INVALID_ARGUMENT);
    nvmlDevice_t found = by_uuid(call.state, uuid);
    NEED(found != NULL, NVML_ERROR_NOT_FOUND);
    *device = found;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(uuid != NULL && device != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(uuid->version == NVML_UUID_V1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    NEED(uuid->type == 1 || uuid->type == 2, NVML_ERROR_INVALID_ARGUMENT);
    char text[sizeof uuid->value.text + 1] = "GPU-";
    if (uuid->type == 1)
        memcpy(text, uuid->value.text, sizeof uuid->value.text);
    else
        uuid_text(uuid->value.bytes, text + 4);
    nvmlDevice_t found = by_uuid(call.state, text);
    if (found == NULL && uuid->type == 2) {
        memcpy(text, "MIG-", 4);
        found = by_uuid(call.state, text);
    }
    NEED(found != NULL, NVML_ERROR_NOT_FOUND);
    *device = found;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *address, nvmlDevice_t *device) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(address != NULL && device != NULL, NVML_ERROR_INVALID_ARGUMENT);
    uint domain = 0, bus, slot, function = 0;
    int fields = sscanf(address, "%x:%x:%x.%x", &domain, &bus, &slot, &function);
    if (fields < 3) {
        domain = 0;
        fields = sscanf(address, "%x:%x.%x", &bus, &slot, &function) + 1;
    }
    NEED(fields >= 3, NVML_ERROR_INVALID_ARGUMENT);
    for (uint index = 0; index < call.state->gpu_count; index++)
        if (domain == 0 && call.state->gpus[index].pci_bus == bus && slot == 0 && function == 0) {
            *device = gpu_handle(index);
            DONE(NVML_SUCCESS);
        }
    DONE(NVML_ERROR_NOT_FOUND);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *address, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(address, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, uint length) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    char text[160];
    snprintf(text, sizeof text, it.ci == NULL ? "%s" : "%s MIG %s", it.board->name,
             it.ci == NULL ? "" : it.compute->name);
    DONE(put_text(name, length, text));
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, uint length) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    char text[MIG_UUID_LENGTH];
    if (it.ci == NULL)
        DONE(put_text(uuid, length, it.gpu->uuid));
    mig_uuid(it.board, it.gpu->pdi, it.handle.gi, it.gi->start + it.ci->start, text);
    DONE(put_text(uuid, length, text));
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, uint *index) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    NEED(index != NULL, NVML_ERROR_INVALID_ARGUMENT);
    *index = it.ci == NULL ? it.handle.gpu : it.ci->mig_index;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, uint *minor) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(KIND(HANDLE_GPU));
    NEED(minor != NULL, NVML_ERROR_INVALID_ARGUMENT);
    *minor = minor_of(it.gpu->word);
    DONE(NVML_SUCCESS);
}

static void pci_address(const struct gpu *gpu, char *text, size_t length, int domain_digits) {
    snprintf(text, length, "%0*X:%02X:00.0", domain_digits, 0, gpu->pci_bus);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    NEED(pci != NULL, NVML_ERROR_INVALID_ARGUMENT);
    *pci = (nvmlPciInfo_t){.bus = it.gpu->pci_bus,
                           .pciDeviceId = it.board->pci_device_id,
                           .pciSubSystemId = it.board->pci_subsystem_id};
    pci_address(it.gpu, pci->busIdLegacy, sizeof pci->busIdLegacy, 4);
    pci_address(it.gpu, pci->busId, sizeof pci->busId, 8);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_v2_t *pci) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    NEED(pci != NULL, NVML_ERROR_INVALID_ARGUMENT);
    *pci = (nvmlPciInfo_v2_t){.bus = it.gpu->pci_bus,
                              .pciDeviceId = it.board->pci_device_id,
                              .pciSubSystemId = it.board->pci_subsystem_id};
    pci_address(it.gpu, pci->busId, sizeof pci->busId, 4);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_v2_t *pci) {
    return nvmlDeviceGetPciInfo_v2(device, pci);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_v1_t *pci) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    NEED(pci != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(pci->version == NVML_PCI_INFO_EXT_V1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    *pci = (nvmlPciInfoExt_v1_t){.version = pci->version,
                                 .bus = it.gpu->pci_bus,
                                 .pciDeviceId = it.board->pci_device_id,
                                 .pciSubSystemId = it.board->pci_subsystem_id,
                                 .baseClass = 3,
                                 .subClass = 2};
    pci_address(it.gpu, pci->busId, sizeof pci->busId, 8);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major,
                                                       int *minor) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(GPU_OR_MIG);
    NEED(major != NULL && minor != NULL, NVML_ERROR_INVALID_ARGUMENT);
    *major = (int)it.board->capability_major;
    *minor = (int)it.board->capability_minor;
    DONE(NVML_SUCCESS);
}

#define PROPERTY(function, kinds, kind_of_call, expression)          \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, uint *value) { \
        CALL(GPU_OF(device), kind_of_call);                          \
        DEVICE(kinds);                                               \
        NEED(value != NULL, NVML_ERROR_INVALID_ARGUMENT);            \
        *value = (expression);                                       \
        DONE(NVML_SUCCESS);                                          \
    }

PROPERTY(nvmlDeviceGetArchitecture, GPU_OR_MIG, CALL_IDENTITY, it.board->architecture)
PROPERTY(nvmlDeviceGetBrand, GPU_OR_MIG, CALL_IDENTITY, 14)  // NVML_BRAND_NVIDIA
PROPERTY(nvmlDeviceGetPersistenceMode, KIND(HANDLE_GPU), CALL_DRIVER, it.gpu->persistence)
PROPERTY(nvmlDeviceGetComputeMode, GPU_OR_MIG, CALL_DRIVER, 0)
PROPERTY(nvmlDeviceGetPerformanceState, KIND(HANDLE_GPU), CALL_DRIVER, 0)
PROPERTY(nvmlDeviceGetBoardId, KIND(HANDLE_GPU), CALL_IDENTITY, it.gpu->pci_bus << 8)
PROPERTY(nvmlDeviceGetBusType, KIND(HANDLE_GPU), CALL_IDENTITY, 2)  // PCI Express
PROPERTY(nvmlDeviceGetMultiGpuBoard, KIND(HANDLE_GPU), CALL_IDENTITY, 0)

// Not for a GPU in MIG mode: its instances' profiles tell theirs (nvml.h).
EXPORT nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, uint *cores) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(KIND(HANDLE_GPU));
    NEED(cores != NULL, NVML_ERROR_INVALID_ARGUMENT);
    uint last = it.board->profile_count;
    NEED(last > 0 && !mode_of(it.gpu->word), NVML_ERROR_NOT_SUPPORTED);
    *cores = it.board->profiles[last - 1].sm * 128;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, uint mode) {
    CALL(GPU_OF(device), CALL_CHANGE);
    DEVICE(KIND(HANDLE_GPU));
    NEED(mode <= 1, NVML_ERROR_INVALID_ARGUMENT);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    if (!call.no_effect)
        it.gpu->persistence = mode;
    DONE(NVML_SUCCESS);
}

// The number that a MIG device's UUID is made from.
EXPORT nvmlReturn_t nvmlDeviceGetPdi(nvmlDevice_t device, nvmlPdi_v1_t *pdi) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(KIND(HANDLE_GPU));
    NEED(pdi != NULL, NVML_ERROR_INVALID_ARGUMENT);
    NEED(pdi->version == NVML_PDI_V1, NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    pdi->value = it.gpu->pdi;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t device, nvmlDevice_t other, int *same) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(KIND(HANDLE_GPU));
    struct subject second;
    NEED(handle_resolve(call.state, other, KIND(HANDLE_GPU), &second) && same != NULL,
         NVML_ERROR_INVALID_ARGUMENT);
    *same = second.gpu == it.gpu;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, uint length) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    DEVICE(KIND(HANDLE_GPU));
    char text[32];
    snprintf(text, sizeof text, "%013llu", (unsigned long long)(it.gpu->pdi % 10000000000000ULL));
    DONE(put_text(serial, length, text));
}
