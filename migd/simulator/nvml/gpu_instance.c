// SPDX-License-Identifier: Apache-2.0
// GPU instances: profiles, placements, capacity, making, destroying, listing.
#include <stdio.h>

#include "call.h"
#include "holders.h"
#include "placement.h"

#define GPU_NAMED_BY(device, condition)                                                       \
    struct subject it;                                                                        \
    NEED(handle_resolve(call.state, (device), KIND(HANDLE_GPU), &it) && (condition),          \
         NVML_ERROR_INVALID_ARGUMENT)
#define GI_NAMED_BY(instance, condition)                                                      \
    struct subject it;                                                                        \
    NEED(handle_resolve(call.state, (instance), KIND(HANDLE_GI), &it) && (condition),         \
         NVML_ERROR_INVALID_ARGUMENT)

enum { PROFILE_ENUMERATORS = 18 };

static int profile_by_enumerator(const struct board *board, uint enumerator) {
    for (uint index = 0; index < board->profile_count; index++)
        if (board->profiles[index].enumerator == enumerator)
            return (int)index;
    return -1;
}

static int profile_by_id(const struct board *board, uint id) {
    for (uint index = 0; index < board->profile_count; index++)
        if (board->profiles[index].id == id)
            return (int)index;
    return -1;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, uint enumerator,
                                                        nvmlGpuInstanceProfileInfo_t *info) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    GPU_NAMED_BY(device, info != NULL && enumerator < PROFILE_ENUMERATORS);
    int found = profile_by_enumerator(it.board, enumerator);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    const struct profile *row = &it.board->profiles[found];
    *info = (nvmlGpuInstanceProfileInfo_t){row->id,           row->p2p,      row->slices,
                                           row->instances,    row->sm,       row->copy_engines,
                                           row->decoders,     row->encoders, row->jpeg,
                                           row->ofa,          row->memory_mib};
    DONE(NVML_SUCCESS);
}

static void fill_v2(nvmlGpuInstanceProfileInfo_v2_t *info, const struct profile *row) {
    *info = (nvmlGpuInstanceProfileInfo_v2_t){
        .version = NVML_GI_PROFILE_INFO_V2, .id = row->id, .isP2pSupported = row->p2p,
        .sliceCount = row->slices, .instanceCount = row->instances,
        .multiprocessorCount = row->sm, .copyEngineCount = row->copy_engines,
        .decoderCount = row->decoders, .encoderCount = row->encoders, .jpegCount = row->jpeg,
        .ofaCount = row->ofa, .memorySizeMB = row->memory_mib};
    snprintf(info->name, sizeof info->name, "MIG %s", row->name);
}

static void fill_v3(nvmlGpuInstanceProfileInfo_v3_t *info, const struct profile *row) {
    *info = (nvmlGpuInstanceProfileInfo_v3_t){
        .version = NVML_GI_PROFILE_INFO_V3, .id = row->id, .sliceCount = row->slices,
        .instanceCount = row->instances, .multiprocessorCount = row->sm,
        .copyEngineCount = row->copy_engines, .decoderCount = row->decoders,
        .encoderCount = row->encoders, .jpegCount = row->jpeg, .ofaCount = row->ofa,
        .memorySizeMB = row->memory_mib, .capabilities = row->p2p | row->graphics << 1};
    snprintf(info->name, sizeof info->name, "MIG %s", row->name);
}

static nvmlReturn_t versioned_info(const struct subject *it, int found, uint *info) {
    if (*info != NVML_GI_PROFILE_INFO_V2 && *info != NVML_GI_PROFILE_INFO_V3)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (found < 0 || !mode_of(it->gpu->word))
        return NVML_ERROR_NOT_SUPPORTED;
    if (*info == NVML_GI_PROFILE_INFO_V2)
        fill_v2((nvmlGpuInstanceProfileInfo_v2_t *)info, &it->board->profiles[found]);
    else
        fill_v3((nvmlGpuInstanceProfileInfo_v3_t *)info, &it->board->profiles[found]);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, uint enumerator,
                                                         uint *info) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    GPU_NAMED_BY(device, info != NULL && enumerator < PROFILE_ENUMERATORS);
    DONE(versioned_info(&it, profile_by_enumerator(it.board, enumerator), info));
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvmlDevice_t device, uint id,
                                                             uint *info) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    GPU_NAMED_BY(device, info != NULL);
    DONE(versioned_info(&it, profile_by_id(it.board, id), info));
}

// All placements of the profile, whatever exists and also with MIG off; the array is as large as
// the caller says elsewhere, `count` is written only (nvml.h).
EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    nvmlDevice_t device, uint id, nvmlGpuInstancePlacement_t *placements, uint *count) {
    CALL(GPU_OF(device), CALL_IDENTITY);
    GPU_NAMED_BY(device, count != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    int found = profile_by_id(it.board, id);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    const struct profile *row = &it.board->profiles[found];
    *count = row->placement_count;
    for (uint index = 0; placements != NULL && index < row->placement_count; index++)
        placements[index] = (nvmlGpuInstancePlacement_t){row->placements[index].start,
                                                         row->placements[index].size};
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(
    nvmlDevice_t device, uint id, nvmlGpuInstancePlacement_t *placements, uint *count) {
    return nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, id, placements, count);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, uint id,
                                                              uint *count) {
    CALL(GPU_OF(device), CALL_DRIVER);
    GPU_NAMED_BY(device, count != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    int found = profile_by_id(it.board, id);
    NEED(found >= 0 && mode_of(it.gpu->word), NVML_ERROR_NOT_SUPPORTED);
    *count = gi_capacity(call.state, it.gpu, (uint)found);
    DONE(NVML_SUCCESS);
}

static void gi_make(struct call *call, struct gpu *gpu, uint id, uint profile,
                    struct placement place) {
    struct gi *gi = &gpu->gi[id];
    gi->serial = next_serial(call->state);
    gi->profile = profile;
    gi->start = place.start;
    gi->size = place.size;
    gi->lingering = 0;
    gi->busy = 0;
    event_raise(call->state, gpu);
    gi->live = epoch_of(gpu->word);
}

static nvmlReturn_t create(struct call *call, nvmlDevice_t device, uint profile_id,
                           const struct placement *wanted, nvmlGpuInstance_t *instance) {
    struct subject it;
    struct placement place = {0, 0};
    if (!handle_resolve(call->state, device, KIND(HANDLE_GPU), &it) || instance == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!privileged(call))
        return NVML_ERROR_NO_PERMISSION;
    int found = profile_by_id(it.board, profile_id);
    if (!mode_of(it.gpu->word) || found < 0)
        return NVML_ERROR_NOT_SUPPORTED;
    // The first instance needs an idle GPU: open-gpu-kernel-modules
    // kmigmgrCreateGPUInstanceCheck_GA100.
    if (instance_count(it.gpu) == 0 && is_held(call->node, (int)it.handle.gpu, -1))
        return NVML_ERROR_IN_USE;
    nvmlReturn_t result = gi_place(call->state, it.gpu, (uint)found, wanted, &place);
    if (result != NVML_SUCCESS)
        return result;
    uint id = (uint)gi_free_id(call->state, it.gpu, place);
    if (call->no_effect) {
        *instance = handle_make(HANDLE_GI, it.handle.gpu, id, 0, next_serial(call->state));
        return NVML_SUCCESS;
    }
    gi_make(call, it.gpu, id, (uint)found, place);
    *instance = handle_make(HANDLE_GI, it.handle.gpu, id, 0, it.gpu->gi[id].serial);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, uint profile_id,
                                                nvmlGpuInstance_t *instance) {
    CALL(GPU_OF(device), CALL_CHANGE);
    DONE(create(&call, device, profile_id, NULL, instance));
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(
    nvmlDevice_t device, uint profile_id, const nvmlGpuInstancePlacement_t *placement,
    nvmlGpuInstance_t *instance) {
    CALL(GPU_OF(device), CALL_CHANGE);
    NEED(placement != NULL, NVML_ERROR_INVALID_ARGUMENT);
    struct placement wanted = {placement->start, placement->size};
    DONE(create(&call, device, profile_id, &wanted, instance));
}

static bool has_ci(const struct gi *gi) {
    for (uint id = 0; id < MAX_CI; id++)
        if (ci_is_live(gi, &gi->ci[id]))
            return true;
    return false;
}

EXPORT nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t instance) {
    CALL(GPU_OF(instance), CALL_CHANGE);
    GI_NAMED_BY(instance, true);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    NEED(!has_ci(it.gi) && !is_held(call.node, (int)it.handle.gpu, (int)it.handle.gi),
         NVML_ERROR_IN_USE);
    // "In use by another client" for a while after the last compute instance went, with nobody
    // there: kubernetes-sigs/dra-driver-nvidia-gpu issue 907.
    if (it.gi->busy > 0) {
        it.gi->busy -= it.gi->busy != SURPRISE_ON;
        DONE(NVML_ERROR_IN_USE);
    }
    NEED(!call.no_effect, NVML_SUCCESS);
    event_raise(call.state, it.gpu);
    uint listings = it.gpu->surprises[DESTROYED_STAY_VISIBLE];
    if (listings == 0)
        it.gi->live = 0;
    else if (it.gi->lingering == 0)
        it.gi->lingering = listings == SURPRISE_ON ? -1 : (int)listings;
    DONE(NVML_SUCCESS);
}

// An instance that was destroyed and still shows is gone after so many looks.
static bool seen(struct gi *gi) {
    if (gi->lingering > 0 && --gi->lingering == 0)
        gi->live = 0;
    return gi->live != 0;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, uint profile_id,
                                              nvmlGpuInstance_t *instances, uint *count) {
    CALL(GPU_OF(device), CALL_DRIVER);
    GPU_NAMED_BY(device, instances != NULL && count != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    int found = profile_by_id(it.board, profile_id);
    NEED(found >= 0 && mode_of(it.gpu->word), NVML_ERROR_NOT_SUPPORTED);
    uint listed = 0;
    for (uint id = 0; id < MAX_GI; id++) {
        struct gi *gi = &it.gpu->gi[id];
        if (gi_is_live(it.gpu, gi) && gi->profile == (uint)found && seen(gi))
            instances[listed++] = handle_make(HANDLE_GI, it.handle.gpu, id, 0, gi->serial);
    }
    *count = listed;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, uint id,
                                                 nvmlGpuInstance_t *instance) {
    CALL(GPU_OF(device), CALL_DRIVER);
    GPU_NAMED_BY(device, instance != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    NEED(mode_of(it.gpu->word), NVML_ERROR_NOT_SUPPORTED);
    NEED(id < MAX_GI && gi_is_live(it.gpu, &it.gpu->gi[id]) && seen(&it.gpu->gi[id]),
         NVML_ERROR_NOT_FOUND);
    *instance = handle_make(HANDLE_GI, it.handle.gpu, id, 0, it.gpu->gi[id].serial);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t instance,
                                           nvmlGpuInstanceInfo_t *info) {
    CALL(GPU_OF(instance), CALL_DRIVER);
    GI_NAMED_BY(instance, info != NULL);
    *info = (nvmlGpuInstanceInfo_t){.device = handle_make(HANDLE_GPU, it.handle.gpu, 0, 0, 0),
                                    .id = it.handle.gi,
                                    .profileId = it.profile->id,
                                    .placement = {it.gi->start, it.gi->size}};
    DONE(NVML_SUCCESS);
}
