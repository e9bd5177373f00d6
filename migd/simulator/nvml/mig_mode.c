// SPDX-License-Identifier: Apache-2.0
// MIG mode, current and pending. Boards of the Ampere generation need a reset, which the driver
// tries by itself; later ones switch at once (NVIDIA MIG User Guide; open-gpu-kernel-modules
// PDB_PROP_GPU_RESETLESS_MIG_SUPPORTED).
#include "call.h"
#include "holders.h"
#include "session.h"

static void set_pending(struct gpu *gpu, uint pending) {
    uint64_t word = gpu->word;
    gpu->word = word_of(mode_of(word), pending, minor_of(word), epoch_of(word));
}

static nvmlReturn_t switch_with_reset(struct call *call, struct gpu *gpu, uint mode,
                                      nvmlReturn_t *status) {
    uint index = (uint)(gpu - call->state->gpus);
    bool waiting = mode_of(gpu->word) != pending_of(gpu->word);
    *status = NVML_ERROR_IN_USE;
    if (waiting && gpu->surprises[PENDING_STICKS])
        return NVML_SUCCESS;
    set_pending(gpu, mode);
    if (mode == mode_of(gpu->word)) {
        *status = NVML_SUCCESS;
        return NVML_SUCCESS;
    }
    // A GPU passed through to a virtual machine: header and nvidia-smi disagree on the code.
    if (gpu->surprises[PASSTHROUGH_ASKS_RESET])
        *status = NVML_ERROR_RESET_REQUIRED;
    else if (gpu->surprises[PASSTHROUGH])
        *status = NVML_ERROR_NOT_SUPPORTED;
    else if (gpu->surprises[RESET_NEEDS_PEERS])
        *status = NVML_ERROR_RESET_REQUIRED;
    // "In use by another client" with nobody there (NVIDIA/gpu-operator issue 1845), or because of
    // nvidia_drm (NVIDIA/mig-parted issue 181).
    else if (gpu->surprises[NO_OWN_RESET] || gpu->surprises[DRM_HOLDS])
        return NVML_SUCCESS;
    else if (!has_other_session(call->node, own_session()) &&
             !is_held(call->node, (int)index, -1)) {
        *status = NVML_SUCCESS;
        gpu_void_instances(call->state, index, mode, mode, true);
    }
    return NVML_SUCCESS;
}

// Setting the mode that is in force resets nothing and takes next to no time: 8 H100 within a
// second (NVIDIA/gpu-operator issue 1310).
static const char *variant_of(nvmlDevice_t device, uint mode) {
    int index = GPU_OF(device);
    if (session.references == 0 || index < 0 || (uint)index >= session.node->state->gpu_count)
        return NULL;
    uint64_t word = session.node->state->gpus[index].word;
    return mode == mode_of(word) && mode == pending_of(word) ? "same" : NULL;
}

EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, uint mode,
                                         nvmlReturn_t *activationStatus) {
    CALL_AS(GPU_OF(device), CALL_CHANGE, variant_of(device, mode));
    struct subject it;
    NEED(handle_resolve(call.state, device, KIND(HANDLE_GPU), &it) && mode <= 1 &&
             activationStatus != NULL,
         NVML_ERROR_INVALID_ARGUMENT);
    NEED(it.board->profile_count > 0, NVML_ERROR_NOT_SUPPORTED);
    NEED(privileged(&call), NVML_ERROR_NO_PERMISSION);
    *activationStatus = NVML_SUCCESS;
    NEED(!call.no_effect, NVML_SUCCESS);
    // "In use by another client": NVIDIA DGX Station (GB300) MIG playbook.
    NEED(mode == 1 || mode_of(it.gpu->word) == 0 || instance_count(it.gpu) == 0,
         NVML_ERROR_IN_USE);
    if (it.board->mode_needs_reset)
        DONE(switch_with_reset(&call, it.gpu, mode, activationStatus));
    if (mode != mode_of(it.gpu->word))
        gpu_void_instances(call.state, it.handle.gpu, mode, mode, false);
    DONE(NVML_SUCCESS);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, uint *current, uint *pending) {
    CALL(GPU_OF(device), CALL_DRIVER);
    struct subject it;
    NEED(handle_resolve(call.state, device, KIND(HANDLE_GPU), &it) && current != NULL &&
             pending != NULL,
         NVML_ERROR_INVALID_ARGUMENT);
    NEED(it.board->profile_count > 0, NVML_ERROR_NOT_SUPPORTED);
    uint64_t word = it.gpu->word;
    *current = mode_of(word);
    *pending = pending_of(word);
    DONE(NVML_SUCCESS);
}
