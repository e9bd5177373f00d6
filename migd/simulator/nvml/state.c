// SPDX-License-Identifier: Apache-2.0
// Maps the state file, keeps its locks sound over killed processes, and tells who is alive.
#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct node *node_open(const char *path, int *error) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        *error = errno;
        return NULL;
    }
    struct stat status;
    struct node *node = calloc(1, sizeof *node);
    *error = EINVAL;
    if (node == NULL || fstat(fd, &status) != 0 || status.st_size != (off_t)sizeof(struct state))
        goto refuse;
    struct state *state =
        mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (state == MAP_FAILED)
        goto refuse;
    if (state->magic != STATE_MAGIC || state->layout != STATE_LAYOUT ||
        strlen(path) >= sizeof node->path) {
        munmap(state, sizeof *state);
        goto refuse;
    }
    node->state = state;
    node->probe = fd;
    node->owner_uid = status.st_uid;
    node->device = status.st_dev;
    node->inode = status.st_ino;
    strcpy(node->path, path);
    *error = 0;
    return node;

refuse:
    free(node);
    close(fd);
    return NULL;
}

void node_close(struct node *node) {
    munmap(node->state, sizeof *node->state);
    close(node->probe);
    free(node);
}

static void finish_pending(struct state *state) {
    if (state->pending == REBOOT_PENDING)
        state_reboot(state);
    else if (state->pending == UNLOAD_PENDING)
        state_unload(state);
}

// Who is killed between giving a lock up and waking the next can take the wake-up along, when a
// third has the lock meanwhile: so nobody sleeps for it without looking again.
static int lock_within(pthread_mutex_t *lock, int seconds) {
    int result;
    do {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        result = pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &until);
    } while (result == ETIMEDOUT && --seconds > 0);
    return result;
}

// It is held for microseconds: somebody was stopped in the middle, and a wait in here is one that
// no signal handler of Python can end.
static void give_up(void) {
    fputs("simulator: somebody has had the state of the node locked for a minute;"
          " is a process that uses it stopped?\n", stderr);
    abort();
}

void state_lock(struct state *state) {
    int result = lock_within(&state->lock, 60);
    if (result == ETIMEDOUT)
        give_up();
    if (result == EOWNERDEAD) {
        pthread_mutex_consistent(&state->lock);
        finish_pending(state);
        event_wake(state);
    }
}

void state_unlock(struct state *state) { pthread_mutex_unlock(&state->lock); }

void operation_lock(pthread_mutex_t *lock) {
    if (lock_within(lock, INT_MAX) == EOWNERDEAD)
        pthread_mutex_consistent(lock);
}

static struct flock slot_range(int index, short type) {
    return (struct flock){
        .l_type = type, .l_whence = SEEK_SET, .l_start = SLOT_LOCKS + index, .l_len = 1};
}

bool slot_alive(struct node *node, int index) {
    struct slot *slot = &node->state->slots[index];
    if (!slot->used)
        return false;
    struct flock range = slot_range(index, F_WRLCK);
    if (fcntl(node->probe, F_OFD_GETLK, &range) == 0 && range.l_type == F_UNLCK) {
        slot->used = 0;
        return false;
    }
    return slot->boot == node->state->boot;
}

int slot_claim(struct node *node, int fd, struct slot wanted) {
    for (int index = 0; index < MAX_SLOTS; index++) {
        struct slot *slot = &node->state->slots[index];
        struct flock range = slot_range(index, F_WRLCK);
        if (fcntl(fd, F_OFD_SETLK, &range) != 0)
            continue;
        slot->used = 0;
        slot->kind = wanted.kind;
        slot->boot = node->state->boot;
        slot->hidden = wanted.hidden;
        slot->pid = wanted.pid;
        slot->gpu = wanted.gpu;
        slot->gi = wanted.gi;
        slot->used = 1;
        return index;
    }
    return -1;
}

void slot_free(struct node *node, int index) { node->state->slots[index].used = 0; }

void event_wake(struct state *state) {
    state->event++;
    syscall(SYS_futex, &state->event, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void event_raise(struct state *state, struct gpu *gpu) {
    gpu->changes++;
    event_wake(state);
}

void event_wait(struct state *state, uint seen, uint64_t nanoseconds) {
    struct timespec longest = {(time_t)(nanoseconds / 1000000000u),
                               (long)(nanoseconds % 1000000000u)};
    syscall(SYS_futex, &state->event, FUTEX_WAIT, seen, &longest, NULL, 0);
}

uint next_serial(struct state *state) {
    state->serial = (state->serial + 1) & 0xffffff;
    if (state->serial == 0)
        state->serial = 1;
    return state->serial;
}

uint instance_count(const struct gpu *gpu) {
    uint count = 0;
    for (uint id = 0; id < MAX_GI; id++)
        count += gi_is_live(gpu, &gpu->gi[id]);
    return count;
}

static uint unused_minor(const struct state *state) {
    for (uint minor = 0;; minor++) {
        bool taken = false;
        for (uint index = 0; index < state->gpu_count; index++)
            taken |= minor_of(state->gpus[index].word) == minor;
        if (!taken)
            return minor;
    }
}

void gpu_void_instances(struct state *state, uint index, uint mode, uint pending, bool was_reset) {
    struct gpu *gpu = &state->gpus[index];
    uint64_t word = gpu->word;
    uint minor = minor_of(word);
    if (was_reset && gpu->surprises[MINOR_CHANGES_AFTER_RESET])
        minor = unused_minor(state);
    gpu->word = word_of(mode, pending, minor, epoch_of(word) + 1);
}

// A reboot keeps the mode where it is a bit in the InfoROM (Ampere) and loses it where it lives in
// the memory of nvidia.ko (Hopper and later): NVIDIA MIG User Guide.
void state_reboot(struct state *state) {
    if (state->pending != REBOOT_PENDING) {
        state->boot++;
        state->pending = REBOOT_PENDING;
    }
    for (uint index = 0; index < state->gpu_count; index++) {
        struct gpu *gpu = &state->gpus[index];
        if (gpu->boot == state->boot)
            continue;
        bool kept = board_of(state, gpu)->mode_survives_reboot;
        uint pending = kept ? pending_of(gpu->word) : 0, mode = pending;
        if (kept && gpu->surprises[PENDING_SURVIVES_REBOOT])
            mode = mode_of(gpu->word);
        gpu->persistence = 0;
        gpu_void_instances(state, index, mode, pending, true);
        gpu->boot = state->boot;
    }
    state->loaded = 1;
    state->pending = NOTHING_PENDING;
    event_wake(state);
}

void state_unload(struct state *state) {
    state->pending = UNLOAD_PENDING;
    for (uint index = 0; index < state->gpu_count; index++) {
        struct gpu *gpu = &state->gpus[index];
        uint64_t word = gpu->word;
        bool kept = board_of(state, gpu)->mode_survives_reboot;
        gpu_void_instances(state, index, kept ? mode_of(word) : 0, kept ? pending_of(word) : 0,
                           false);
        gpu->persistence = 0;
    }
    state->loaded = 0;
    state->pending = NOTHING_PENDING;
}
