// SPDX-License-Identifier: Apache-2.0
// Where instances fit: overlap, counts, shared engines, the default choice, and ids.
#include "placement.h"

static bool overlap(struct placement a, struct placement b) {
    return a.start < b.start + b.size && b.start < a.start + a.size;
}

static struct placement gi_span(const struct gi *gi) {
    return (struct placement){gi->start, gi->size};
}

static bool span_is_free(const struct gpu *gpu, struct placement span) {
    for (uint id = 0; id < MAX_GI; id++)
        if (gi_is_live(gpu, &gpu->gi[id]) && overlap(gi_span(&gpu->gi[id]), span))
            return false;
    return true;
}

struct engines {
    uint copy, decoders, encoders, jpeg, ofa;
};

static void engines_add(struct engines *sum, const struct profile *profile) {
    sum->copy += profile->copy_engines;
    sum->decoders += profile->decoders;
    sum->encoders += profile->encoders;
    sum->jpeg += profile->jpeg;
    sum->ofa += profile->ofa;
}

static bool engines_within(const struct engines *sum, const struct profile *whole) {
    return sum->copy <= whole->copy_engines && sum->decoders <= whole->decoders &&
           sum->encoders <= whole->encoders && sum->jpeg <= whole->jpeg && sum->ofa <= whole->ofa;
}

static const struct profile *whole_gpu(const struct board *board) {
    for (uint index = 0; index < board->profile_count; index++)
        if (board->profiles[index].placements[0].size == board->memory_slices)
            return &board->profiles[index];
    return &board->profiles[0];
}

// How many more of the profile its own count and the shared engines allow.
static uint allowance(const struct state *state, const struct gpu *gpu, uint profile) {
    const struct board *board = board_of(state, gpu);
    const struct profile *wanted = &board->profiles[profile];
    struct engines sum = {0};
    uint same = 0;
    for (uint id = 0; id < MAX_GI; id++) {
        if (!gi_is_live(gpu, &gpu->gi[id]))
            continue;
        engines_add(&sum, &board->profiles[gpu->gi[id].profile]);
        same += gpu->gi[id].profile == profile;
    }
    uint more = 0;
    for (engines_add(&sum, wanted); same + more < wanted->instances; more++) {
        if (!engines_within(&sum, whole_gpu(board)))
            break;
        engines_add(&sum, wanted);
    }
    return more;
}

enum { SM_OF_LAST_PAIR_FIRST = 114 };

// The smallest aligned block of free slices, a power of two wide, that `span` is part of: its
// growth stops where the doubled block is not free.
static uint free_block(const struct board *board, const struct gpu *gpu, struct placement span) {
    uint width = span.size;
    while (width < board->memory_slices) {
        uint doubled = width * 2;
        struct placement block = {span.start / doubled * doubled, doubled};
        if (!span_is_free(gpu, block))
            break;
        width = doubled;
    }
    return width;
}

// The firmware's choice is closed. This one reproduces all sequences that were pasted in public
// (NVIDIA MIG User Guide, dask-cuda issue 583, DCGM issue 138): the smallest free block first,
// then the upper half, then the lowest start. Slices 6 and 7 go to one-slice instances first,
// as slice 7 has no compute, and to others last; on an 80 GB Hopper with 114 SM the first
// 1g.20gb was seen at 6 (kubernetes-sigs/dra-driver-nvidia-gpu pull request 1018), so a board with
// 114 SM does so, and any other by a switch. For boards with other than eight slices nothing but
// the RTX PRO 6000's rising order was seen: lowest start first is assumed.
static uint preference(const struct board *board, const struct gpu *gpu, struct placement span) {
    if (board->memory_slices != 8 || gpu->surprises[PLACEMENT_LOWEST_FIRST])
        return span.start;
    uint block = free_block(board, gpu, span);
    bool last_pair = span.start == 6;
    bool small = span.size == 1 || gpu->surprises[PLACEMENT_114_SM] ||
                 whole_gpu(board)->sm == SM_OF_LAST_PAIR_FIRST;
    if (last_pair && span_is_free(gpu, (struct placement){6, 2}))
        block = small ? 0 : 99;
    return block * 100 + (span.start < 4 ? 50 : 0) + span.start;
}

nvmlReturn_t gi_place(const struct state *state, const struct gpu *gpu, uint profile,
                      const struct placement *wanted, struct placement *chosen) {
    const struct board *board = board_of(state, gpu);
    const struct profile *row = &board->profiles[profile];
    bool offered = false, found = false;
    uint best = 0;
    for (uint index = 0; index < row->placement_count; index++) {
        struct placement span = row->placements[index];
        if (wanted != NULL && (wanted->start != span.start || wanted->size != span.size))
            continue;
        offered = true;
        if (!span_is_free(gpu, span) || gi_free_id(state, gpu, span) < 0)
            continue;
        uint rank = preference(board, gpu, span);
        if (!found || rank < best) {
            best = rank;
            *chosen = span;
        }
        found = true;
    }
    if (!offered)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!found || allowance(state, gpu, profile) == 0)
        return NVML_ERROR_INSUFFICIENT_RESOURCES;
    return NVML_SUCCESS;
}

uint gi_capacity(const struct state *state, const struct gpu *gpu, uint profile) {
    const struct profile *row = &board_of(state, gpu)->profiles[profile];
    uint fit = 0, end = 0;
    for (uint index = 0; index < row->placement_count; index++) {
        struct placement span = row->placements[index];
        if (span.start >= end && span_is_free(gpu, span)) {
            fit++;
            end = span.start + span.size;
        }
    }
    uint allowed = allowance(state, gpu, profile);
    return fit < allowed ? fit : allowed;
}

// Ids by size class: whole 0, half 1-2, quarter 3-6, eighth 7-14 (open-gpu-kernel-modules
// kmigmgrMemSizeFlagToSwizzIdRange_GA100). Within the class the first free one is taken, so an id
// depends on history. Real boards tie the id to the placement, by one of two maps (DCGM issue
// 138); that is a switch here, because a program must not rely on either.
int gi_free_id(const struct state *state, const struct gpu *gpu, struct placement place) {
    uint parts = board_of(state, gpu)->memory_slices / place.size, first = parts - 1;
    uint part = place.start / place.size;
    if (gpu->surprises[GI_IDS_BY_PLACEMENT_FLIPPED])
        part = (part + parts / 2) % parts;
    if (gpu->surprises[GI_IDS_BY_PLACEMENT] || gpu->surprises[GI_IDS_BY_PLACEMENT_FLIPPED])
        return gi_is_live(gpu, &gpu->gi[first + part]) ? -1 : (int)(first + part);
    uint since = gpu->surprises[GI_IDS_OTHER_ORDER_AFTER_REBOOT];
    bool backwards = since != 0 && (state->boot - since) % 2 == 1;
    for (uint step = 0; step < parts; step++) {
        uint id = first + (backwards ? parts - 1 - step : step);
        if (!gi_is_live(gpu, &gpu->gi[id]))
            return (int)id;
    }
    return -1;
}

// Compute placements were never pasted in public. Assumed: as GPU instances lie in memory slices,
// one slice anywhere, two at even starts, three and more at multiples of four.
uint ci_placements(const struct profile *profile, const struct compute_profile *compute,
                   struct placement *places) {
    uint step = compute->slices <= 2 ? compute->slices : 4, count = 0;
    for (uint start = 0; start + compute->slices <= profile->slices; start += step)
        if (count < MAX_PLACEMENTS)
            places[count++] = (struct placement){start, compute->slices};
    return count;
}

static bool ci_span_is_free(const struct gi *gi, struct placement span) {
    for (uint id = 0; id < MAX_CI; id++) {
        const struct ci *ci = &gi->ci[id];
        if (ci_is_live(gi, ci) && overlap((struct placement){ci->start, ci->size}, span))
            return false;
    }
    return true;
}

static uint ci_allowance(const struct profile *profile, const struct gi *gi, uint compute) {
    const struct compute_profile *wanted = &profile->compute[compute];
    uint same = 0, sm = 0, all = 0;
    for (uint id = 0; id < MAX_CI; id++) {
        if (!ci_is_live(gi, &gi->ci[id]))
            continue;
        all++;
        same += gi->ci[id].profile == compute;
        sm += profile->compute[gi->ci[id].profile].sm;
    }
    uint by_count = wanted->instances > same ? wanted->instances - same : 0;
    uint by_sm = profile->sm > sm && wanted->sm > 0 ? (profile->sm - sm) / wanted->sm : 0;
    uint by_id = MAX_CI - all;
    uint least = by_count < by_sm ? by_count : by_sm;
    return least < by_id ? least : by_id;
}

nvmlReturn_t ci_place(const struct profile *profile, const struct gi *gi, uint compute,
                      const struct placement *wanted, struct placement *chosen) {
    struct placement places[MAX_PLACEMENTS];
    uint count = ci_placements(profile, &profile->compute[compute], places);
    bool offered = false, found = false;
    for (uint index = 0; index < count; index++) {
        if (wanted != NULL &&
            (wanted->start != places[index].start || wanted->size != places[index].size))
            continue;
        offered = true;
        if (!found && ci_span_is_free(gi, places[index])) {
            *chosen = places[index];
            found = true;
        }
    }
    if (!offered)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!found || ci_allowance(profile, gi, compute) == 0)
        return NVML_ERROR_INSUFFICIENT_RESOURCES;
    return NVML_SUCCESS;
}

uint ci_capacity(const struct profile *profile, const struct gi *gi, uint compute) {
    struct placement places[MAX_PLACEMENTS];
    uint count = ci_placements(profile, &profile->compute[compute], places), fit = 0;
    for (uint index = 0; index < count; index++)
        fit += ci_span_is_free(gi, places[index]);
    uint allowed = ci_allowance(profile, gi, compute);
    return fit < allowed ? fit : allowed;
}
