// SPDX-License-Identifier: Apache-2.0
// The files of MIG capabilities, as the kernel module keeps them in /proc/driver/nvidia: one for
// each instance, made and removed with it (open-gpu-kernel-modules nv-caps.c).
//
// `shown` says which there are. A file is there before its bit and goes before it, and making or
// removing it twice is no error: so a process that is killed in between leaves it to the next.
#define _GNU_SOURCE
#include "capabilities.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM = PATH_MAX + 96, GI_BIT = 1 };
#define CI_BIT(ci) (2u << (ci))

struct place {
    char node[PATH_MAX];  // the folder that the state lies in
    uint minor, gi;
};

__attribute__((format(printf, 2, 3))) static bool name(char *path, const char *format,
                                                       ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(path, ROOM, format, arguments);
    va_end(arguments);
    return length > 0 && length < ROOM;
}

static bool find(const struct node *node, struct place *place) {
    if (snprintf(place->node, sizeof place->node, "%s", node->path) >= (int)sizeof place->node)
        return false;
    char *slash = strrchr(place->node, '/');
    strcpy(slash == NULL ? place->node : slash, slash == NULL ? "." : "");
    return true;
}

// The folder of an instance; gi < 0 and ci < 0 leave out what is below.
static bool folder(char *path, const struct place *place, int gi, int ci) {
    char below[64] = "";
    if (ci >= 0)
        snprintf(below, sizeof below, "/gi%d/ci%d", gi, ci);
    else if (gi >= 0)
        snprintf(below, sizeof below, "/gi%d", gi);
    return name(path, "%s/view/driver/nvidia/capabilities/gpu%u/mig%s", place->node, place->minor,
                below);
}

static bool make_folder(const char *path) {
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

// Whole from the first moment that it can be seen.
static bool write_access(const struct place *place, const char *folder, uint device) {
    char temporary[ROOM], path[ROOM], text[96];
    if (!name(temporary, "%s/view/.access.%d", place->node, getpid()) ||
        !name(path, "%s/access", folder))
        return false;
    int length = snprintf(text, sizeof text,
                          "DeviceFileMinor: %u\nDeviceFileMode: %d\nDeviceFileModify: 1\n", device,
                          0444);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (fd < 0)
        return false;
    bool written = write(fd, text, (size_t)length) == length;
    close(fd);
    if (written && rename(temporary, path) == 0)
        return true;
    unlink(temporary);
    return false;
}

static bool show(const struct place *place, int gi, int ci) {
    char path[ROOM];
    uint device = 3 + 135 * place->minor + 9 * (uint)gi + (uint)(ci + 1);
    return folder(path, place, gi, ci) && make_folder(path) && write_access(place, path, device);
}

static bool hide(const struct place *place, int gi, int ci) {
    char path[ROOM], access[ROOM];
    if (!folder(path, place, gi, ci) || !name(access, "%s/access", path))
        return false;
    return (unlink(access) == 0 || errno == ENOENT) && (rmdir(path) == 0 || errno == ENOENT);
}

// The folders that all instances of a GPU are in.
static bool make_above(const struct place *place) {
    static const char *const parts[] = {"", "/nvidia", "/nvidia/capabilities"};
    char path[ROOM];
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++)
        if (!name(path, "%s/view/driver%s", place->node, parts[part]) || !make_folder(path))
            return false;
    return name(path, "%s/view/driver/nvidia/capabilities/gpu%u", place->node, place->minor) &&
           make_folder(path) && folder(path, place, -1, -1) && make_folder(path);
}

static void remove_above(const struct place *place) {
    char path[ROOM];
    if (!folder(path, place, -1, -1) || rmdir(path) != 0)
        return;
    *strrchr(path, '/') = '\0';
    rmdir(path);
}

static uint wanted(const struct state *state, const struct gpu *gpu, uint id) {
    const struct gi *gi = &gpu->gi[id];
    if (!state->loaded || !gi_is_live(gpu, gi))
        return 0;
    uint bits = GI_BIT;
    for (uint ci = 0; ci < MAX_CI; ci++)
        bits |= ci_is_live(gi, &gi->ci[ci]) ? CI_BIT(ci) : 0;
    return bits;
}

// What is to go goes first, compute instances before their GPU instance; it comes after it.
static bool follow_gi(const struct place *place, _Atomic uint *shown, int gi, uint bits) {
    for (int ci = MAX_CI - 1; ci >= -1; ci--) {
        uint bit = ci < 0 ? (uint)GI_BIT : CI_BIT(ci);
        if (*shown & bit & ~bits) {
            if (!hide(place, gi, ci))
                return false;
            *shown &= ~bit;
        }
    }
    for (int ci = -1; ci < MAX_CI; ci++) {
        uint bit = ci < 0 ? (uint)GI_BIT : CI_BIT(ci);
        if (bits & ~*shown & bit) {
            if (!show(place, gi, ci))
                return false;
            *shown |= bit;
        }
    }
    return true;
}

static bool follow_minor(struct gpu *gpu, struct place *place, const uint *bits) {
    bool any = false;
    place->minor = gpu->shown_minor;
    for (uint id = 0; id < MAX_GI; id++) {
        if (bits[id] != 0 && !any && !make_above(place))
            return false;
        any |= bits[id] != 0;
        if (gpu->shown[id] != bits[id] && !follow_gi(place, &gpu->shown[id], (int)id, bits[id]))
            return false;
    }
    if (!any)
        remove_above(place);
    return true;
}

void capabilities_follow(struct node *node, uint index) {
    static const uint none[MAX_GI];
    struct state *state = node->state;
    struct gpu *gpu = &state->gpus[index];
    uint bits[MAX_GI];
    bool same = true;
    for (uint id = 0; id < MAX_GI; id++) {
        bits[id] = wanted(state, gpu, id);
        same &= bits[id] == gpu->shown[id];
    }
    bool moved = gpu->shown_minor != minor_of(gpu->word);
    struct place place;
    if ((same && !moved) || !find(node, &place))
        return;
    if (moved) {
        if (!follow_minor(gpu, &place, none))
            return;
        gpu->shown_minor = minor_of(gpu->word);
    }
    follow_minor(gpu, &place, bits);
}

void capabilities_follow_all(struct node *node) {
    for (uint index = 0; index < node->state->gpu_count; index++)
        capabilities_follow(node, index);
}
