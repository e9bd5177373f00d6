// SPDX-License-Identifier: Apache-2.0
// The true state as JSON. All texts in it are the simulator's own and need no escapes.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "capabilities.h"
#include "control.h"
#include "uuid.h"

struct out {
    char *text;
    size_t room, length;
};

__attribute__((format(printf, 2, 3))) static void put(struct out *out, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    bool fits = out->length < out->room;
    int wrote = vsnprintf(fits ? out->text + out->length : NULL, fits ? out->room - out->length : 0,
                          format, arguments);
    va_end(arguments);
    out->length += wrote > 0 ? (size_t)wrote : 0;
}

static const char *mode_name(const struct board *board, uint mode) {
    return board->profile_count == 0 ? "unsupported" : mode ? "enabled" : "disabled";
}

static void put_slots(struct out *out, struct node *node, uint kind, int gpu, int gi) {
    const char *comma = "";
    for (int index = 0; index < MAX_SLOTS; index++) {
        const struct slot *slot = &node->state->slots[index];
        if (!slot->used || slot->kind != kind || (gpu >= 0 && slot->gpu != gpu) ||
            (gi >= 0 && slot->gi != gi) || !slot_alive(node, index))
            continue;
        if (kind == SLOT_SESSION || gi >= 0)
            put(out, "%s%d", comma, slot->pid);
        else if (slot->gi < 0)
            put(out, "%s{\"pid\":%d,\"gi\":null,\"hidden\":%s}", comma, slot->pid,
                slot->hidden ? "true" : "false");
        else
            put(out, "%s{\"pid\":%d,\"gi\":%d,\"hidden\":%s}", comma, slot->pid, slot->gi,
                slot->hidden ? "true" : "false");
        comma = ",";
    }
}

static void put_ci(struct out *out, const struct board *board, const struct gpu *gpu, uint id,
                   uint inner) {
    const struct gi *gi = &gpu->gi[id];
    const struct ci *ci = &gi->ci[inner];
    const struct compute_profile *row = &board->profiles[gi->profile].compute[ci->profile];
    char uuid[MIG_UUID_LENGTH];
    mig_uuid(board, gpu->pdi, id, gi->start + ci->start, uuid);
    put(out,
        "{\"ci\":%u,\"profile\":\"%s\",\"profile_id\":%u,\"placement\":{\"start\":%u,\"size\":%u},"
        "\"uuid\":\"%s\",\"index\":%u,\"destroyed\":%s}",
        inner, row->name, row->id, ci->start, ci->size, uuid, ci->mig_index,
        ci->lingering ? "true" : "false");
}

static void put_gi(struct out *out, struct node *node, uint index, uint id) {
    const struct gpu *gpu = &node->state->gpus[index];
    const struct board *board = board_of(node->state, gpu);
    const struct gi *gi = &gpu->gi[id];
    const char *comma = "";
    put(out,
        "{\"gi\":%u,\"serial\":%u,\"profile\":\"%s\",\"profile_id\":%u,"
        "\"placement\":{\"start\":%u,\"size\":%u},\"destroyed\":%s,\"compute_instances\":[",
        id, gi->serial, board->profiles[gi->profile].name, board->profiles[gi->profile].id,
        gi->start, gi->size, gi->lingering ? "true" : "false");
    for (uint inner = 0; inner < MAX_CI; inner++)
        if (ci_is_live(gi, &gi->ci[inner])) {
            put(out, "%s", comma);
            put_ci(out, board, gpu, id, inner);
            comma = ",";
        }
    put(out, "],\"holders\":[");
    put_slots(out, node, SLOT_HOLDER, (int)index, (int)id);
    put(out, "]}");
}

const char *sim_surprise_name(int index);

static void put_surprises(struct out *out, const struct gpu *gpu) {
    const char *comma = "";
    for (int index = 0; index < SURPRISES; index++) {
        uint value = gpu->surprises[index];
        if (value == 0)
            continue;
        bool counts = index == DESTROYED_STAY_VISIBLE || index == GI_BUSY_AFTER_CI_DESTROY ||
                      index == RESET_NEEDS_PEERS;
        if (counts && value != SURPRISE_ON)
            put(out, "%s\"%s\":%u", comma, sim_surprise_name(index), value);
        else
            put(out, "%s\"%s\":true", comma, sim_surprise_name(index));
        comma = ",";
    }
}

static void put_gpu(struct out *out, struct node *node, uint index) {
    const struct gpu *gpu = &node->state->gpus[index];
    const struct board *board = board_of(node->state, gpu);
    uint64_t word = gpu->word;
    const char *comma = "";
    put(out,
        "{\"index\":%u,\"uuid\":\"%s\",\"name\":\"%s\",\"board\":\"%s\","
        "\"pci\":\"00000000:%02X:00.0\",\"pci_device_id\":\"0x%08X\","
        "\"pci_subsystem_id\":\"0x%08X\",\"minor\":%u,\"epoch\":%u,"
        "\"mode\":{\"current\":\"%s\",\"pending\":\"%s\"},\"instances\":[",
        index, gpu->uuid, board->name, board->key, gpu->pci_bus, board->pci_device_id,
        board->pci_subsystem_id, minor_of(word), epoch_of(word),
        mode_name(board, mode_of(word)), mode_name(board, pending_of(word)));
    for (uint id = 0; id < MAX_GI; id++)
        if (gi_is_live(gpu, &gpu->gi[id])) {
            put(out, "%s", comma);
            put_gi(out, node, index, id);
            comma = ",";
        }
    put(out, "],\"holders\":[");
    put_slots(out, node, SLOT_HOLDER, (int)index, -1);
    put(out, "],\"surprises\":{");
    put_surprises(out, gpu);
    put(out, "}}");
}

// Texts parted by "; " as a list.
static void put_list(struct out *out, const char *name, const char *text) {
    put(out, ",\"%s\":[", name);
    for (const char *comma = ""; *text != '\0'; comma = ",") {
        const char *end = strstr(text, "; ");
        size_t length = end == NULL ? strlen(text) : (size_t)(end - text);
        put(out, "%s\"%.*s\"", comma, (int)length, text);
        text += length + (end == NULL ? 0 : 2);
    }
    put(out, "]");
}

static void put_board(struct out *out, const struct board *board, const char *comma) {
    put(out, "%s{\"board\":\"%s\"", comma, board->key);
    put_list(out, "filled", board->filled);
    put_list(out, "left_out", board->left_out);
    put(out, "}");
}

static void put_boards(struct out *out, const struct state *state) {
    for (uint index = 0; index < state->board_count; index++)
        put_board(out, &state->boards[index], index ? "," : "");
}

static void put_calls(struct out *out, const struct state *state) {
    for (uint index = 0; index < state->counter_count; index++)
        put(out, "%s\"%s\":%llu", index ? "," : "", state->counters[index].call,
            (unsigned long long)state->counters[index].count);
}

// What the calls so far would have taken one after the other: counts times latencies, as modelled.
static void put_modelled(struct out *out, const struct state *state) {
    const char *comma = "";
    uint64_t total = 0;
    put(out, ",\"modelled\":{\"calls\":{");
    for (uint index = 0; index < state->counter_count; index++) {
        uint64_t spent = state->counters[index].modelled_us;
        if (spent == 0)
            continue;
        total += spent;
        put(out, "%s\"%s\":%.3f", comma, state->counters[index].call, (double)spent / 1000.0);
        comma = ",";
    }
    put(out, "},\"total_ms\":%.3f}", (double)total / 1000.0);
}

static const char *const actions[] = {"", "return", "hang", "no-effect", "die", "die-after"};

static void put_faults(struct out *out, const struct state *state) {
    const char *comma = "";
    for (int index = 0; index < MAX_FAULTS; index++) {
        const struct fault *fault = &state->faults[index];
        if (!fault->used)
            continue;
        put(out, "%s{\"call\":\"%s\",\"action\":\"%s\",\"code\":%u,\"nth\":%u,\"seen\":%u", comma,
            fault->call, actions[fault->action], fault->result, fault->nth, fault->seen);
        if (fault->gpu >= 0)
            put(out, ",\"gpu\":%d}", fault->gpu);
        else
            put(out, ",\"gpu\":null}");
        comma = ",";
    }
}

static void put_latencies(struct out *out, const struct state *state) {
    const char *comma = "";
    for (int index = 0; index < MAX_LATENCIES; index++) {
        const struct latency *latency = &state->latencies[index];
        if (!latency->used)
            continue;
        put(out, "%s\"%s\":{\"ms\":%.3f,\"assumed\":%s}", comma, latency->call,
            latency->microseconds / 1000.0, latency->assumed ? "true" : "false");
        comma = ",";
    }
}

// Returns the length of the whole text, also where it is more than `room`.
EXPORT size_t sim_dump(struct node *node, char *text, size_t room) {
    struct out out = {text, room, 0};
    struct state *state = node->state;
    state_lock(state);
    capabilities_follow_all(node);
    put(&out, "{\"driver\":{\"loaded\":%s,\"version\":\"%s\"},\"boot\":%u,\"lock\":\"%s\"",
        state->loaded ? "true" : "false", state->module_version, state->boot,
        state->lock_node ? "node" : "gpu");
    put(&out, ",\"sessions\":[");
    put_slots(&out, node, SLOT_SESSION, -1, -1);
    put(&out, "],\"gpus\":[");
    for (uint index = 0; index < state->gpu_count; index++) {
        put(&out, "%s", index ? "," : "");
        put_gpu(&out, node, index);
    }
    put(&out, "],\"boards\":[");
    put_boards(&out, state);
    put(&out, "],\"calls\":{");
    put_calls(&out, state);
    put(&out, "}");
    put_modelled(&out, state);
    put(&out, ",\"faults\":[");
    put_faults(&out, state);
    put(&out, "],\"latencies\":{");
    put_latencies(&out, state);
    put(&out, "}}");
    state_unlock(state);
    return out.length;
}
