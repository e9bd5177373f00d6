// SPDX-License-Identifier: Apache-2.0
#pragma once

// Compiled in: a process that has an old library mapped goes on saying the old version.
#ifndef DRIVER_VERSION
#define DRIVER_VERSION "580.105.08"
#endif
#define CUDA_DRIVER_VERSION 13000
#define NVML_VERSION "13." DRIVER_VERSION
