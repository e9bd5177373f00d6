// SPDX-License-Identifier: Apache-2.0
// Compute instances inside a GPU instance.
#include <stdio.h>

#include "call.h"
#include "holders.h"
#include "placement.h"

#define GI_NAMED_BY(instance, condition)                                                      \
    struct subject it;                                                                        \
    NEED(handle_resolve(call.state, (instance), KIND(HANDLE_GI), &it) && (condition),         \
         NVML_ERROR_INVALID_ARGUMENT)
#define CI_NAMED_BY(instance, condition)                                                      \
    struct subject it;                                                                        \
    NEED(handle_resolve(call.state, (instance), KIND(HANDLE_CI), &it) && (condition),         \
         NVML_ERROR_INVALID_ARGUMENT)

enum { COMPUTE_ENUMERATORS = 9, ENGINE_PROFILES = 1 };

// A compute profile's id is its number in the enumeration, in every listing that was published.
static int compute_by_id(const struct profile *profile, uint id) {
    for (uint index = 0; index < profile->compute_count; index++)
        if (profile->compute[index].id == id)
            return (int)index;
    return -1;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(
    nvmlGpuInstance_t instance, uint enumerator, uint engines,
    nvmlComputeInstanceProfileInfo_t *info) {
    CALL(GPU_OF(instance), CALL_IDENTITY);
    GI_NAMED_BY(instance, info != NULL && enumerator < COMPUTE_ENUMERATORS &&
                              engines < ENGINE_PROFILES);
    int found = compute_by_id(it.profile, enumerator);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    const struct compute_profile *row = &it.profile->compute[found];
    *info = (nvmlComputeInstanceProfileInfo_t){
        row->id,          row->slices,          row->instances,
        row->sm,          it.profile->copy_engines, it.profile->decoders,
        it.profile->encoders, it.profile->jpeg, it.profile->ofa};
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(
    nvmlGpuInstance_t instance, uint enumerator, uint engines,
    nvmlComputeInstanceProfileInfo_v3_t *info) {
    CALL(GPU_OF(instance), CALL_IDENTITY);
    GI_NAMED_BY(instance, info != NULL && enumerator < COMPUTE_ENUMERATORS &&
                              engines < ENGINE_PROFILES);
    uint version = info->v2.version;
    NEED(version == NVML_CI_PROFILE_INFO_V2 || version == NVML_CI_PROFILE_INFO_V3,
         NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    int found = compute_by_id(it.profile, enumerator);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    const struct compute_profile *row = &it.profile->compute[found];
    info->v2 = (nvmlComputeInstanceProfileInfo_v2_t){
        .version = version, .id = row->id, .sliceCount = row->slices,
        .instanceCount = row->instances, .multiprocessorCount = row->sm,
        .sharedCopyEngineCount = it.profile->copy_engines,
        .sharedDecoderCount = it.profile->decoders, .sharedEncoderCount = it.profile->encoders,
        .sharedJpegCount = it.profile->jpeg, .sharedOfaCount = it.profile->ofa};
    snprintf(info->v2.name, sizeof info->v2.name, "MIG %s", row->name);
    if (version == NVML_CI_PROFILE_INFO_V3)
        info->capabilities = it.profile->graphics;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlGpuInstance_t instance,
                                                                       uint id, uint *count) {
    CALL(GPU_OF(instance), CALL_DRIVER);
    GI_NAMED_BY(instance, count != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    int found = compute_by_id(it.profile, id);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    *count = ci_capacity(it.profile, it.gi, (uint)found);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(
    nvmlGpuInstance_t instance, uint id, nvmlComputeInstancePlacement_t *placements,
    uint *count) {
    CALL(GPU_OF(instance), CALL_IDENTITY);
    GI_NAMED_BY(instance, count != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    int found = compute_by_id(it.profile, id);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    struct placement places[MAX_PLACEMENTS];
    *count = ci_placements(it.profile, &it.profile->compute[found], places);
    for (uint index = 0; placements != NULL && index < *count; index++)
        placements[index] =
            (nvmlComputeInstancePlacement_t){places[index].start, places[index].size};
    DONE(NVML_SUCCESS);
}

static uint free_mig_index(const struct gpu *gpu) {
    uint64_t taken = 0;
    for (uint gi = 0; gi < MAX_GI; gi++)
        for (uint ci = 0; gi_is_live(gpu, &gpu->gi[gi]) && ci < MAX_CI; ci++)
            if (ci_is_live(&gpu->gi[gi], &gpu->gi[gi].ci[ci]))
                taken |= 1ULL << gpu->gi[gi].ci[ci].mig_index;
    uint index = 0;
    while (taken >> index & 1)
        index++;
    return index;
}

static void ci_make(struct call *call, struct subject *it, uint id, uint compute,
                    struct placement place) {
    struct ci *ci = &it->gi->ci[id];
    ci->serial = next_serial(call->state);
    ci->profile = compute;
    ci->start = place.start;
    ci->size = place.size;
    ci->mig_index = free_mig_index(it->gpu);
    ci->lingering = 0;
    event_raise(call->state, it->gpu);
    ci->owner = it->gi->serial;
}

static nvmlReturn_t create(struct call *call, nvmlGpuInstance_t instance, uint profile_id,
                           const struct placement *wanted, nvmlComputeInstance_t *made) {
    struct subject it;
    struct placement place = {0, 0};
    if (!handle_resolve(call->state, instance, KIND(HANDLE_GI), &it) || made == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!privileged(call))
        return NVML_ERROR_NO_PERMISSION;
    int found = compute_by_id(it.profile, profile_id);
    if (found < 0)
        return NVML_ERROR_NOT_SUPPORTED;
    nvmlReturn_t result = ci_place(it.profile, it.gi, (uint)found, wanted, &place);
    if (result != NVML_SUCCESS)
        return result;
    uint id = 0;
    while (ci_is_live(it.gi, &it.gi->ci[id]))
        id++;
    uint serial = call->no_effect ? next_serial(call->state) : 0;
    if (!call->no_effect) {
        ci_make(call, &it, id, (uint)found, place);
        serial = it.gi->ci[id].serial;
    }
    *made = handle_make(HANDLE_CI, it.handle.gpu, it.handle.gi, id, serial);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t instance,
                                                         uint profile_id,
                                                         nvmlComputeInstance_t *made) {
    CALL(GPU_OF(instance), CALL_CHANGE);
    DONE(create(&call, instance, profile_id, NULL, made));
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(
    nvmlGpuInstance_t instance, uint profile_id, const nvmlComputeInstancePlacement_t *placement,
    nvmlComputeInstance_t *made) {
    CALL(GPU_OF(instance), CALL_CHANGE);
    NEED(placement != NULL, NVML_ERROR_INVALID_ARGUMENT);
    struct placement wanted = {placement->start, placement->size};
    DONE(create(&call, instance, profile_id, &wanted, made));
}

EXPORT nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t instance) {
    CALL(GPU_OF(instance), CALL_CHANGE);
    CI_NAMED_BY(instance, true);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    // Who holds a GPU instance works in its compute instance 0.
    NEED(it.handle.ci != 0 || !is_held(call.node, (int)it.handle.gpu, (int)it.handle.gi),
         NVML_ERROR_IN_USE);
    NEED(!call.no_effect, NVML_SUCCESS);
    event_raise(call.state, it.gpu);
    it.gi->busy = it.gpu->surprises[GI_BUSY_AFTER_CI_DESTROY];
    uint listings = it.gpu->surprises[DESTROYED_STAY_VISIBLE];
    if (listings == 0)
        it.ci->owner = 0;
    else if (it.ci->lingering == 0)
        it.ci->lingering = listings == SURPRISE_ON ? -1 : (int)listings;
    DONE(NVML_SUCCESS);
}

static bool seen(struct ci *ci) {
    if (ci->lingering > 0 && --ci->lingering == 0)
        ci->owner = 0;
    return ci->owner != 0;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t instance,
                                                       uint profile_id,
                                                       nvmlComputeInstance_t *instances,
                                                       uint *count) {
    CALL(GPU_OF(instance), CALL_DRIVER);
    GI_NAMED_BY(instance, instances != NULL && count != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    int found = compute_by_id(it.profile, profile_id);
    NEED(found >= 0, NVML_ERROR_NOT_SUPPORTED);
    uint listed = 0;
    for (uint id = 0; id < MAX_CI; id++) {
        struct ci *ci = &it.gi->ci[id];
        if (ci_is_live(it.gi, ci) && ci->profile == (uint)found && seen(ci))
            instances[listed++] =
                handle_make(HANDLE_CI, it.handle.gpu, it.handle.gi, id, ci->serial);
    }
    *count = listed;
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t instance, uint id,
                                                          nvmlComputeInstance_t *found) {
    CALL(GPU_OF(instance), CALL_DRIVER);
    GI_NAMED_BY(instance, found != NULL);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    NEED(id < MAX_CI && ci_is_live(it.gi, &it.gi->ci[id]) && seen(&it.gi->ci[id]),
         NVML_ERROR_NOT_FOUND);
    *found = handle_make(HANDLE_CI, it.handle.gpu, it.handle.gi, id, it.gi->ci[id].serial);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t instance,
                                                  nvmlComputeInstanceInfo_t *info) {
    CALL(GPU_OF(instance), CALL_DRIVER);
    CI_NAMED_BY(instance, info != NULL);
    struct handle at = it.handle;
    *info = (nvmlComputeInstanceInfo_t){
        .device = handle_make(HANDLE_MIG, at.gpu, at.gi, at.ci, it.ci->serial),
        .gpuInstance = handle_make(HANDLE_GI, at.gpu, at.gi, 0, it.gi->serial),
        .id = at.ci,
        .profileId = it.compute->id,
        .placement = {it.ci->start, it.ci->size}};
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo(nvmlComputeInstance_t instance,
                                               nvmlComputeInstanceInfo_t *info) {
    return nvmlComputeInstanceGetInfo_v2(instance, info);
}
