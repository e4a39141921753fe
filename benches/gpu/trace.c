// Writes every kernel that a program runs on a GPU to the file that SCONCE_TRACE names, a line each: begin and end in nanoseconds,
// blocks, name. The driver loads this library where CUDA_INJECTION64_PATH names it. Kernels are timed one by one, in graphs too, and
// begin when the one before them has ended or a little later: what overlaps otherwise does not here.

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cupti.h>

enum { BUFFER_BYTES = 8 << 20 };

static FILE *file;

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *bytes, size_t *max_records) {
    *buffer = aligned_alloc(ACTIVITY_RECORD_ALIGNMENT, BUFFER_BYTES);
    *bytes = *buffer == NULL ? 0 : BUFFER_BYTES;
    *max_records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t bytes, size_t valid_bytes) {
    (void)context, (void)stream, (void)bytes;
    CUpti_Activity *record = NULL;
    while (valid_bytes > 0 && cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS) {
        if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
        const CUpti_ActivityKernel10 *kernel = (const CUpti_ActivityKernel10 *)record;
        const int64_t blocks = (int64_t)kernel->gridX * kernel->gridY * kernel->gridZ;
        fprintf(file, "%" PRIu64 ",%" PRIu64 ",%" PRId64 ",%s\n", kernel->start, kernel->end, blocks, kernel->name);
    }
    free(buffer);
}

static void finish(void) {
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    fclose(file);
}

// Called by the driver when it is initialized. Returns whether it was.
int InitializeInjection(void) {
    const char *path = getenv("SCONCE_TRACE");
    if (path == NULL) return 1;
    file = fopen(path, "w");
    if (file == NULL) {
        perror(path);
        return 0;
    }
    const CUptiResult taken = cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
    const CUptiResult enabled = cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    if (taken != CUPTI_SUCCESS || enabled != CUPTI_SUCCESS) {
        fprintf(stderr, "CUPTI: %d, %d\n", (int)taken, (int)enabled);
        return 0;
    }
    atexit(finish);
    return 1;
}
