// SPDX-License-Identifier: Apache-2.0
// UUIDs of MIG devices: RFC 4122 version 5 over chip, GPU, GPU instance id and graphics engine, as
// open-gpu-kernel-modules' gpu_uuid.c makes them. The profile is not part of it, so two layouts
// can share a UUID.
#include "uuid.h"

#include <stdio.h>
#include <string.h>

static uint32_t rotate(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

static void sha1_block(uint32_t state[5], const uint8_t block[64]) {
    uint32_t words[80];
    for (int i = 0; i < 16; i++)
        words[i] = (uint32_t)block[i * 4] << 24 | (uint32_t)block[i * 4 + 1] << 16 |
                   (uint32_t)block[i * 4 + 2] << 8 | block[i * 4 + 3];
    for (int i = 16; i < 80; i++)
        words[i] = rotate(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int i = 0; i < 80; i++) {
        uint32_t mix, constant;
        if (i < 20)
            mix = (b & c) | (~b & d), constant = 0x5a827999;
        else if (i < 40)
            mix = b ^ c ^ d, constant = 0x6ed9eba1;
        else if (i < 60)
            mix = (b & c) | (b & d) | (c & d), constant = 0x8f1bbcdc;
        else
            mix = b ^ c ^ d, constant = 0xca62c1d6;
        uint32_t next = rotate(a, 5) + mix + e + constant + words[i];
        e = d, d = c, c = rotate(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

// Of at most 55 bytes: one block.
static void sha1_short(const uint8_t *data, size_t length, uint8_t digest[20]) {
    uint8_t block[64] = {0};
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    memcpy(block, data, length);
    block[length] = 0x80;
    block[62] = (uint8_t)(length * 8 >> 8);
    block[63] = (uint8_t)(length * 8);
    sha1_block(state, block);
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(state[i / 4] >> (24 - i % 4 * 8));
}

static uint8_t *put(uint8_t *to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        *to++ = (uint8_t)(value >> (8 * i));
    return to;
}

void uuid_text(const unsigned char bytes[16], char *text) {
    for (int i = 0; i < 16; i++)
        text += sprintf(text, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", bytes[i]);
}

void mig_uuid(const struct board *board, uint64_t pdi, uint gi, uint syspipe, char *text) {
    static const uint8_t namespace[16] = {0xc8, 0x16, 0xc9, 0xa3, 0x52, 0x24, 0x56, 0xbf,
                                          0x9d, 0x9a, 0xac, 0x7e, 0xa7, 0x03, 0xfb, 0x5b};
    uint8_t data[55], digest[20], *end = data;
    memcpy(end, namespace, sizeof namespace);
    end += sizeof namespace;
    memcpy(end, "NVIDIA GPU", 10);
    end = put(end + 10, 0x02, 1);
    end = put(end, board->chip_id, 2);
    end = put(end, 0x08, 1);
    end = put(end, pdi, 8);
    end = put(end, 0x0b, 1);
    memcpy(end, "SMC", 3);
    end = put(end + 3, gi, 4);
    end = put(end, syspipe, 4);
    sha1_short(data, (size_t)(end - data), digest);
    digest[6] = (digest[6] & 0x0f) | 0x50;
    digest[8] = (digest[8] & 0x3f) | 0x80;
    memcpy(text, "MIG-", 4);
    uuid_text(digest, text + 4);
}
