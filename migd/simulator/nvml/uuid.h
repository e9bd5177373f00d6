// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "state.h"

#define MIG_UUID_LENGTH 41
void uuid_text(const unsigned char bytes[16], char *text);
void mig_uuid(const struct board *board, uint64_t pdi, uint gi, uint syspipe, char *text);
