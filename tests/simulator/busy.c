// SPDX-License-Identifier: Apache-2.0
// Makes and destroys whatever it can on all GPUs of a node, for ever, and minds no refusal: for
// test_kills.py, which ends it at any moment. Nearly all of its time is inside the library.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef void *handle;
typedef struct {
    unsigned start, size;
} placement;

static void *library;
static unsigned seed;

static unsigned below(unsigned limit) { return (unsigned)rand_r(&seed) % limit; }

// A code that no busy neighbour explains ends this program, which the test notices.
static int done(const char *name, int code) {
    static const int usual[] = {0, 2, 3, 6, 10, 19, 23};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (code == usual[i])
            return code;
    fprintf(stderr, "%s: %d\n", name, code);
    exit(3);
}

#define CALL(name, types, ...) \
    done(#name, ((int(*) types)dlsym(library, #name))(__VA_ARGS__))

static void make(handle device) {
    static const unsigned profiles[] = {19, 20, 15, 14, 9, 5, 0}, inner[] = {0, 1, 2, 7};
    unsigned profile = profiles[below(7)];
    handle gi, ci;
    placement places[16];
    unsigned count = 0;
    CALL(nvmlDeviceGetGpuInstancePossiblePlacements_v2, (handle, unsigned, placement *, unsigned *),
         device, profile, places, &count);
    int code = count > 0 && below(2)
                   ? CALL(nvmlDeviceCreateGpuInstanceWithPlacement,
                          (handle, unsigned, const placement *, handle *), device, profile,
                          &places[below(count)], &gi)
                   : CALL(nvmlDeviceCreateGpuInstance, (handle, unsigned, handle *), device,
                          profile, &gi);
    for (int tries = 0; code == 0 && tries < 2; tries++)
        CALL(nvmlGpuInstanceCreateComputeInstance, (handle, unsigned, handle *), gi,
             inner[below(4)], &ci);
}

static void clear(handle device) {
    handle gi, ci;
    if (CALL(nvmlDeviceGetGpuInstanceById, (handle, unsigned, handle *), device, below(15), &gi))
        return;
    for (unsigned id = 0; id < 8; id++)
        if (CALL(nvmlGpuInstanceGetComputeInstanceById, (handle, unsigned, handle *), gi, id,
                 &ci) == 0)
            CALL(nvmlComputeInstanceDestroy, (handle), ci);
    CALL(nvmlGpuInstanceDestroy, (handle), gi);
}

static void look(handle device, handle set) {
    handle mig;
    unsigned count;
    unsigned long long data[4];
    CALL(nvmlDeviceGetGpuInstanceRemainingCapacity, (handle, unsigned, unsigned *), device, 19,
         &count);
    CALL(nvmlDeviceGetMigDeviceHandleByIndex, (handle, unsigned, handle *), device, below(7), &mig);
    CALL(nvmlEventSetWait_v2, (handle, void *, unsigned), set, data, 0);
}

int main(int argc, char **argv) {
    library = dlopen(argv[1], RTLD_NOW);
    if (argc != 3 || library == NULL)
        return 2;
    seed = (unsigned)strtoul(argv[2], NULL, 10);
    unsigned count = 0;
    int status;
    handle device, set;
    CALL(nvmlInit_v2, (void));
    CALL(nvmlDeviceGetCount_v2, (unsigned *), &count);
    CALL(nvmlEventSetCreate, (handle *), &set);
    puts("open");
    fflush(stdout);
    for (;;) {
        CALL(nvmlDeviceGetHandleByIndex_v2, (unsigned, handle *), below(count), &device);
        CALL(nvmlDeviceRegisterEvents, (handle, unsigned long long, handle), device, 0x100, set);
        if (below(8) == 0)
            CALL(nvmlDeviceSetMigMode, (handle, unsigned, int *), device, below(2), &status);
        for (int i = 0; i < 4; i++)
            make(device);
        look(device, set);
        for (int i = 0; i < 8; i++)
            clear(device);
    }
}
