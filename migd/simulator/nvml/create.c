// SPDX-License-Identifier: Apache-2.0
// Makes a state file from a description, one record a line, fields parted by tabs. The catalogue
// of boards is data on the other side of it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "control.h"
#include "version.h"

enum { MAX_FIELDS = 24 };

static void take_text(char *to, size_t length, const char *from) {
    snprintf(to, length, "%s", from);
}

static uint number(const char *text) { return (uint)strtoul(text, NULL, 0); }

static bool take_board(struct state *state, char **field) {
    if (state->board_count >= MAX_BOARDS)
        return false;
    struct board *board = &state->boards[state->board_count++];
    take_text(board->key, sizeof board->key, field[1]);
    take_text(board->name, sizeof board->name, field[2]);
    take_text(board->left_out, sizeof board->left_out, field[3]);
    take_text(board->filled, sizeof board->filled, field[4]);
    board->architecture = number(field[5]);
    board->capability_major = number(field[6]);
    board->capability_minor = number(field[7]);
    board->chip_id = number(field[8]);
    board->pci_device_id = number(field[9]);
    board->pci_subsystem_id = number(field[10]);
    board->memory_slices = number(field[11]);
    board->compute_slices = number(field[12]);
    board->max_gpu_instances = number(field[13]);
    board->mode_needs_reset = number(field[14]);
    board->mode_survives_reboot = number(field[15]);
    board->memory_mib = strtoull(field[16], NULL, 0);
    return true;
}

static bool take_placements(struct profile *profile, char *text) {
    for (char *rest = text, *item; (item = strsep(&rest, " ")) != NULL;) {
        struct placement *place = &profile->placements[profile->placement_count];
        if (profile->placement_count >= MAX_PLACEMENTS ||
            sscanf(item, "%u:%u", &place->start, &place->size) != 2)
            return false;
        profile->placement_count++;
    }
    return profile->placement_count > 0;
}

static bool take_profile(struct state *state, char **field) {
    if (state->board_count == 0)
        return false;
    struct board *board = &state->boards[state->board_count - 1];
    if (board->profile_count >= MAX_PROFILES)
        return false;
    struct profile *profile = &board->profiles[board->profile_count++];
    take_text(profile->name, sizeof profile->name, field[1]);
    profile->id = number(field[2]);
    profile->enumerator = number(field[3]);
    profile->slices = number(field[4]);
    profile->instances = number(field[5]);
    profile->memory_mib = strtoull(field[6], NULL, 0);
    profile->sm = number(field[7]);
    profile->copy_engines = number(field[8]);
    profile->decoders = number(field[9]);
    profile->encoders = number(field[10]);
    profile->jpeg = number(field[11]);
    profile->ofa = number(field[12]);
    profile->p2p = number(field[13]);
    profile->graphics = number(field[14]);
    return take_placements(profile, field[15]);
}

static bool take_compute(struct state *state, char **field) {
    if (state->board_count == 0 || state->boards[state->board_count - 1].profile_count == 0)
        return false;
    struct board *board = &state->boards[state->board_count - 1];
    struct profile *profile = &board->profiles[board->profile_count - 1];
    if (profile->compute_count >= MAX_COMPUTE_PROFILES)
        return false;
    struct compute_profile *compute = &profile->compute[profile->compute_count++];
    take_text(compute->name, sizeof compute->name, field[1]);
    compute->id = number(field[2]);
    compute->slices = number(field[3]);
    compute->instances = number(field[4]);
    compute->sm = number(field[5]);
    compute->is_default = number(field[6]);
    return true;
}

static bool take_gpu(struct state *state, char **field) {
    if (state->gpu_count >= MAX_GPUS || number(field[1]) >= state->board_count)
        return false;
    struct gpu *gpu = &state->gpus[state->gpu_count];
    gpu->board = number(field[1]);
    take_text(gpu->uuid, sizeof gpu->uuid, field[2]);
    gpu->pci_bus = number(field[3]);
    gpu->pdi = strtoull(field[4], NULL, 0);
    gpu->boot = 1;
    gpu->shown_minor = state->gpu_count++;
    gpu->word = word_of(0, 0, gpu->shown_minor, 1);
    return true;
}

static const struct record {
    const char *name;
    int fields;
    bool (*take)(struct state *, char **);
} records[] = {{"board", 17, take_board},
               {"profile", 16, take_profile},
               {"compute", 7, take_compute},
               {"gpu", 5, take_gpu}};

static bool take_line(struct state *state, char *line) {
    char *field[MAX_FIELDS];
    int count = 0;
    for (char *rest = line, *item; count < MAX_FIELDS && (item = strsep(&rest, "\t")) != NULL;)
        field[count++] = item;
    for (size_t index = 0; index < sizeof records / sizeof *records; index++)
        if (strcmp(records[index].name, field[0]) == 0)
            return count == records[index].fields && records[index].take(state, field);
    return false;
}

static void init_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static bool fill(struct state *state, char *description) {
    init_mutex(&state->lock);
    init_mutex(&state->operation);
    for (int index = 0; index < MAX_GPUS; index++)
        init_mutex(&state->gpus[index].operation);
    state->layout = STATE_LAYOUT;
    state->size = sizeof *state;
    state->boot = state->loaded = 1;
    take_text(state->module_version, sizeof state->module_version, DRIVER_VERSION);
    for (char *rest = description, *line; (line = strsep(&rest, "\n")) != NULL;)
        if (*line != '\0' && !take_line(state, line))
            return false;
    state->magic = STATE_MAGIC;
    return true;
}

EXPORT int sim_create(const char *path, const char *description) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return SIM_NO_ACCESS;
    int result = SIM_NO_ACCESS;
    if (ftruncate(fd, sizeof(struct state)) == 0) {
        void *memory = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        char *text = strdup(description);
        if (memory != MAP_FAILED && text != NULL) {
            result = fill(memory, text) ? SIM_DONE : SIM_BAD_DESCRIPTION;
            munmap(memory, sizeof(struct state));
        }
        free(text);
    }
    close(fd);
    return result;
}
