// SPDX-License-Identifier: Apache-2.0
// Init, shutdown, versions, error texts.
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "session.h"
#include "version.h"

static nvmlReturn_t init(struct site *site) {
    uint64_t begun = now_ns();
    struct call call;
    nvmlReturn_t result = session_open();
    if (result != NVML_SUCCESS) {
        if (session.node != NULL)
            call_refused(session.node, site, result, begun);
        return result;
    }
    if (call_fault(session.node, site, &call, &result) && result != NVML_SUCCESS) {
        call_record(site, result, begun);
        session_close();
    } else {
        call_record(site, result, call.begun);
    }
    if (call.operation != NULL)
        pthread_mutex_unlock(call.operation);
    return result;
}

#define INIT                                     \
    static struct site site = {.name = __func__}; \
    return init(&site)

EXPORT nvmlReturn_t nvmlInit_v2(void) { INIT; }
EXPORT nvmlReturn_t nvmlInit(void) { INIT; }
EXPORT nvmlReturn_t nvmlInitWithFlags(uint flags) {
    (void)flags;
    INIT;
}

EXPORT nvmlReturn_t nvmlShutdown(void) {
    static struct site site = {.name = __func__};
    struct call call;
    nvmlReturn_t result = NVML_ERROR_UNINITIALIZED;
    if (session.references == 0)
        return result;
    bool decided = call_fault(session.node, &site, &call, &result);
    call_record(&site, result, call.begun);
    if (!decided)
        result = session_close();
    if (call.operation != NULL)
        pthread_mutex_unlock(call.operation);
    return result;
}

nvmlReturn_t put_text(char *to, uint length, const char *text) {
    if (to == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, text);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, uint length) {
    CALL(NO_GPU, CALL_IDENTITY);
    DONE(put_text(version, length, DRIVER_VERSION));
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, uint length) {
    CALL(NO_GPU, CALL_IDENTITY);
    DONE(put_text(version, length, NVML_VERSION));
}

static nvmlReturn_t cuda_version(int *version) {
    if (version == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = CUDA_DRIVER_VERSION;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return cuda_version(version); }
EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return cuda_version(version);
}

static nvmlReturn_t none(uint *count) {
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlUnitGetCount(uint *count) {
    CALL(NO_GPU, CALL_IDENTITY);
    DONE(none(count));
}

EXPORT nvmlReturn_t nvmlGetExcludedDeviceCount(uint *count) {
    CALL(NO_GPU, CALL_IDENTITY);
    DONE(none(count));
}

// The first word of the command line; cut off where there is no room.
EXPORT nvmlReturn_t nvmlSystemGetProcessName(uint pid, char *name, uint length) {
    CALL(NO_GPU, CALL_IDENTITY);
    NEED(name != NULL && length > 0, NVML_ERROR_INVALID_ARGUMENT);
    char path[32], text[1024] = "";
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    NEED(file != NULL, NVML_ERROR_NOT_FOUND);
    size_t read = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[read] = '\0';  // nothing, in the middle of an exec
    snprintf(name, length, "%s", text);
    DONE(NVML_SUCCESS);
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED: return "GPU requires reset";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case NVML_ERROR_IN_USE: return "In use by another client";
    case NVML_ERROR_INSUFFICIENT_RESOURCES: return "Insufficient Resources";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    case NVML_ERROR_NOT_READY: return "Not Ready";
    case NVML_ERROR_UNKNOWN: return "Unknown Error";
    default: return result_name(result);
    }
}
