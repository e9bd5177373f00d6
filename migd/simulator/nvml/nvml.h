// SPDX-License-Identifier: Apache-2.0
// The part of NVML's binary interface that the simulator speaks: numbers and struct layouts as
// nvidia-ml-py declares them. Handles are opaque numbers in pointer form (handle.h).
#pragma once

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef unsigned int uint;
typedef struct nvml_device *nvmlDevice_t;
typedef struct nvml_gpu_instance *nvmlGpuInstance_t;
typedef struct nvml_compute_instance *nvmlComputeInstance_t;
typedef struct event_set *nvmlEventSet_t;

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_ALREADY_INITIALIZED = 5,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_INSUFFICIENT_POWER = 8,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_IRQ_ISSUE = 11,
    NVML_ERROR_LIBRARY_NOT_FOUND = 12,
    NVML_ERROR_FUNCTION_NOT_FOUND = 13,
    NVML_ERROR_CORRUPTED_INFOROM = 14,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_RESET_REQUIRED = 16,
    NVML_ERROR_OPERATING_SYSTEM = 17,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_IN_USE = 19,
    NVML_ERROR_MEMORY = 20,
    NVML_ERROR_NO_DATA = 21,
    NVML_ERROR_INSUFFICIENT_RESOURCES = 23,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_DEPRECATED = 26,
    NVML_ERROR_NOT_READY = 27,
    NVML_ERROR_GPU_NOT_FOUND = 28,
    NVML_ERROR_INVALID_STATE = 29,
    NVML_ERROR_RESET_TYPE_NOT_SUPPORTED = 30,
    NVML_ERROR_UNKNOWN = 999,
} nvmlReturn_t;

#define NVML_NO_INSTANCE 0xFFFFFFFFu  // gpuInstanceId and computeInstanceId of a process without MIG

typedef struct {
    uint start;
    uint size;
} nvmlGpuInstancePlacement_t, nvmlComputeInstancePlacement_t;

typedef struct {
    uint id, isP2pSupported, sliceCount, instanceCount, multiprocessorCount;
    uint copyEngineCount, decoderCount, encoderCount, jpegCount, ofaCount;
    unsigned long long memorySizeMB;
} nvmlGpuInstanceProfileInfo_t;

#define NVML_GI_PROFILE_INFO_V2 0x02000098u
typedef struct {
    uint version, id, isP2pSupported, sliceCount, instanceCount, multiprocessorCount;
    uint copyEngineCount, decoderCount, encoderCount, jpegCount, ofaCount;
    unsigned long long memorySizeMB;
    char name[96];
} nvmlGpuInstanceProfileInfo_v2_t;

#define NVML_GI_PROFILE_INFO_V3 0x03000098u
typedef struct {
    uint version, id, sliceCount, instanceCount, multiprocessorCount;
    uint copyEngineCount, decoderCount, encoderCount, jpegCount, ofaCount;
    unsigned long long memorySizeMB;
    char name[96];
    uint capabilities;  // 1: peer to peer, 2: graphics
} nvmlGpuInstanceProfileInfo_v3_t;

typedef struct {
    nvmlDevice_t device;
    uint id, profileId;
    nvmlGpuInstancePlacement_t placement;
} nvmlGpuInstanceInfo_t;

typedef struct {
    uint id, sliceCount, instanceCount, multiprocessorCount;
    uint sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount, sharedJpegCount;
    uint sharedOfaCount;
} nvmlComputeInstanceProfileInfo_t;

#define NVML_CI_PROFILE_INFO_V2 0x02000088u
#define NVML_CI_PROFILE_INFO_V3 0x0300008Cu
typedef struct {
    uint version, id, sliceCount, instanceCount, multiprocessorCount;
    uint sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount, sharedJpegCount;
    uint sharedOfaCount;
    char name[96];
} nvmlComputeInstanceProfileInfo_v2_t;

typedef struct {
    nvmlComputeInstanceProfileInfo_v2_t v2;
    uint capabilities;  // 1: graphics
} nvmlComputeInstanceProfileInfo_v3_t;

typedef struct {
    nvmlDevice_t device;
    nvmlGpuInstance_t gpuInstance;
    uint id, profileId;
    nvmlComputeInstancePlacement_t placement;
} nvmlComputeInstanceInfo_t;

typedef struct {
    uint multiprocessorCount, sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount;
    uint sharedJpegCount, sharedOfaCount, gpuInstanceSliceCount, computeInstanceSliceCount;
    unsigned long long memorySizeMB;
} nvmlDeviceAttributes_t;

typedef struct {
    char busIdLegacy[16];
    uint domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    char busId[16];
    uint domain, bus, device, pciDeviceId, pciSubSystemId, reserved[4];
} nvmlPciInfo_v2_t;

#define NVML_PCI_INFO_EXT_V1 0x01000040u
typedef struct {
    uint version, domain, bus, device, pciDeviceId, pciSubSystemId, baseClass, subClass;
    char busId[32];
} nvmlPciInfoExt_v1_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

#define NVML_MEMORY_V2 0x02000028u
typedef struct {
    uint version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    uint pid;
    unsigned long long usedGpuMemory;
} nvmlProcessInfo_v1_t;

typedef struct {
    uint pid;
    unsigned long long usedGpuMemory;
    uint gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

typedef struct {
    uint32_t fieldId, scopeId;
    int64_t timestamp, latencyUsec;
    uint valueType, nvmlReturn;
    union {
        double real;
        unsigned long long number;
        uint word;
    } value;
} nvmlFieldValue_t;

#define NVML_UUID_V1 0x01000034u
typedef struct {
    uint version, type;  // type 1: text, 2: sixteen bytes
    union {
        char text[41];
        unsigned char bytes[16];
    } value;
} nvmlUUID_t;

#define NVML_PDI_V1 0x01000010u
typedef struct {
    uint version;
    unsigned long long value;
} nvmlPdi_v1_t;

#define NVML_PROCESS_DETAIL_LIST_V1 0x01000018u
typedef struct {
    uint pid;
    unsigned long long usedGpuMemory;
    uint gpuInstanceId, computeInstanceId;
    unsigned long long usedGpuCcProtectedMemory;
} nvmlProcessDetail_v1_t;

typedef struct {
    uint version, mode, numProcArrayEntries;  // mode 0 compute, 1 graphics, 2 MPS
    nvmlProcessDetail_v1_t *procArray;
} nvmlProcessDetailList_v1_t;

#define NVML_EVENT_MIG_CONFIG_CHANGE 0x100ULL
typedef struct {
    nvmlDevice_t device;
    unsigned long long eventType, eventData;
} nvmlEventData_v1_t;

typedef struct {
    nvmlDevice_t device;
    unsigned long long eventType, eventData;
    uint gpuInstanceId, computeInstanceId;
} nvmlEventData_v2_t;

_Static_assert(sizeof(nvmlGpuInstanceProfileInfo_v2_t) == 0x98, "GPU instance profile v2");
_Static_assert(sizeof(nvmlGpuInstanceProfileInfo_v3_t) == 0x98, "GPU instance profile v3");
_Static_assert(sizeof(nvmlComputeInstanceProfileInfo_v2_t) == 0x88, "compute profile v2");
_Static_assert(sizeof(nvmlComputeInstanceProfileInfo_v3_t) == 0x8C, "compute profile v3");
_Static_assert(sizeof(nvmlMemory_v2_t) == 0x28, "memory v2");
_Static_assert(sizeof(nvmlPciInfoExt_v1_t) == 0x40, "pci ext v1");
_Static_assert(sizeof(nvmlUUID_t) == 0x34, "uuid v1");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "process info");
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "pci info");
_Static_assert(sizeof(nvmlPdi_v1_t) == 0x10, "pdi v1");
_Static_assert(sizeof(nvmlProcessDetailList_v1_t) == 0x18, "process detail list v1");
_Static_assert(sizeof(nvmlProcessDetail_v1_t) == 32, "process detail v1");
_Static_assert(sizeof(nvmlEventData_v1_t) == 24, "event data v1");
_Static_assert(sizeof(nvmlEventData_v2_t) == 32, "event data v2");
