// SPDX-License-Identifier: Apache-2.0
// Finds the node, opens and closes this process's session.
#define _GNU_SOURCE
#include "session.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "version.h"

#define INSTALLED_STATE "/var/lib/nvidia-simulator/state"

struct session session = {.fd = -1, .slot = -1, .log = -1};
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static char beside_library[PATH_MAX];

// At load, because the name may be relative to a directory that is left later.
__attribute__((constructor)) static void remember_where_loaded_from(void) {
    Dl_info info;
    char path[PATH_MAX];
    if (dladdr((void *)remember_where_loaded_from, &info) == 0 ||
        realpath(info.dli_fname, path) == NULL)
        return;
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return;
    *slash = '\0';
    int length = snprintf(beside_library, sizeof beside_library, "%s/../state", path);
    if (length < 0 || (size_t)length >= sizeof beside_library)
        beside_library[0] = '\0';
}

static const char *state_path(void) {
    const char *named = secure_getenv("NVIDIA_SIMULATOR_STATE");
    if (named != NULL && *named != '\0')
        return named;
    if (beside_library[0] != '\0' && access(beside_library, F_OK) == 0)
        return beside_library;
    return INSTALLED_STATE;
}

// A call of another thread may hang inside the old mapping, so it is never unmapped.
static bool attach(void) {
    const char *path = state_path();
    struct stat status;
    int error;
    if (stat(path, &status) != 0)
        return false;
    if (session.node != NULL && session.node->device == status.st_dev &&
        session.node->inode == status.st_ino)
        return true;
    struct node *node = node_open(path, &error);
    if (node != NULL)
        session.node = node;
    return node != NULL;
}

int session_log(const struct node *node) {
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s", node->path);
    char *slash = strrchr(path, '/');
    strcpy(slash == NULL ? path : slash + 1, "calls.log");
    return open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
}

static nvmlReturn_t enter(void) {
    struct node *node = session.node;
    nvmlReturn_t result = NVML_SUCCESS;
    session.fd = open(node->path, O_RDWR | O_CLOEXEC);
    if (session.fd < 0)
        return NVML_ERROR_NO_PERMISSION;
    state_lock(node->state);
    if (!node->state->loaded)
        result = NVML_ERROR_DRIVER_NOT_LOADED;
    else if (strcmp(node->state->module_version, DRIVER_VERSION) != 0)
        result = NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    else {
        struct slot wanted = {.kind = SLOT_SESSION, .pid = getpid(), .gpu = -1, .gi = -1};
        session.slot = slot_claim(node, session.fd, wanted);
        session.boot = node->state->boot;
        if (session.slot < 0)
            result = NVML_ERROR_MEMORY;
    }
    state_unlock(node->state);
    if (result != NVML_SUCCESS) {
        close(session.fd);
        session.fd = -1;
        return result;
    }
    session.first_handle_done = false;
    session.opened++;
    session.log = session_log(node);
    return NVML_SUCCESS;
}

nvmlReturn_t session_open(void) {
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&guard);
    if (session.references == 0)
        result = attach() ? enter() : NVML_ERROR_DRIVER_NOT_LOADED;
    if (result == NVML_SUCCESS)
        session.references++;
    pthread_mutex_unlock(&guard);
    return result;
}

nvmlReturn_t session_close(void) {
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&guard);
    if (session.references == 0) {
        result = NVML_ERROR_UNINITIALIZED;
    } else if (--session.references == 0) {
        state_lock(session.node->state);
        slot_free(session.node, session.slot);
        close(session.fd);
        state_unlock(session.node->state);
        if (session.log >= 0)
            close(session.log);
        session.fd = session.slot = session.log = -1;
    }
    pthread_mutex_unlock(&guard);
    return result;
}
