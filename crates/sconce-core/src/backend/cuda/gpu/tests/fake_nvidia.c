// Stands in for libcuda, libcublasLt and libnvrtc in tests: memory is the host's, and everything runs at once, or is written
// down while a capture is on. One source, made into three libraries, for a test needs no more of each than is here.
// FAKE_FAIL=FUNCTION:CODE lets the first call of a function fail.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Op {
    void (*run)(struct Op*);
    void *dst, *src;
    size_t bytes, m, n, k, stride;
    int out_f32;
} Op;
typedef struct {
    int is_capturing, count;
    Op ops[64];
    // What products have taken.
    float ms;
} Stream;

static int fails(const char* function) {
    static int has_failed;
    const char* wanted = getenv("FAKE_FAIL");
    size_t len = strlen(function);
    if (!wanted || has_failed || strncmp(wanted, function, len) || wanted[len] != ':') return 0;
    has_failed = 1;
    return atoi(wanted + len + 1);
}
static int enqueue(Stream* s, Op op) {
    if (s->is_capturing) s->ops[s->count++] = op;
    else op.run(&op);
    return 0;
}
#define ENTER(function) { int code = fails(#function); if (code) return code; }

// The driver.
static int num_contexts, is_current;
int cuInit(unsigned flags) { ENTER(cuInit) return flags; }
int cuDriverGetVersion(int* v) { const char* e = getenv("FAKE_DRIVER"); *v = e ? atoi(e) : 13000; return 0; }
int cuGetErrorString(int code, const char** text) { (void)code; *text = "words of the driver"; return 0; }
// The real NVRTC asks the driver for its cache of compilations.
int cuGetExportTable(const void** table, const void* id) { *table = 0; return id ? 500 : 1; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return i ? 101 : 0; }
int cuDeviceGetName(char* name, int len, int d) { (void)d; snprintf(name, len, "Fake H100"); return 0; }
int cuDeviceTotalMem_v2(size_t* b, int d) { (void)d; *b = (size_t)80 << 30; return 0; }
int cuDeviceGetPCIBusId(char* id, int len, int d) { (void)d; snprintf(id, len, "0000:01:00.0"); return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) {
    (void)d;
    const char* e = getenv("FAKE_CC");
    int cc = e ? atoi(e) : 90;
    *v = a == 75 ? cc / 10 : a == 76 ? cc % 10 : a == 16 ? 132 : a == 97 ? 232448 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** c, int d) { (void)d; num_contexts++; *c = &num_contexts; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; num_contexts--; return 0; }
int cuDevicePrimaryCtxReset_v2(int d) { (void)d; fprintf(stderr, "fake: reset with %d contexts\n", num_contexts); return 0; }
int cuCtxSetCurrent(void* c) { is_current = c == &num_contexts; return is_current ? 0 : 201; }
int cuMemGetInfo_v2(size_t* f, size_t* t) { *f = *t = (size_t)79 << 30; return is_current ? 0 : 201; }
int cuMemAlloc_v2(uint64_t* p, size_t n) { ENTER(cuMemAlloc) *p = (uint64_t)(uintptr_t)aligned_alloc(256, (n + 255) / 256 * 256); return 0; }
int cuMemFree_v2(uint64_t p) { free((void*)(uintptr_t)p); return 0; }
int cuMemHostAlloc(void** p, size_t n, unsigned flags) { *p = malloc(n); return flags; }
int cuMemFreeHost(void* p) { free(p); return 0; }
static void run_copy(Op* o) { memcpy(o->dst, o->src, o->bytes); }
static void run_clear(Op* o) { memset(o->dst, 0, o->bytes); }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void* h, size_t n, Stream* s) { return enqueue(s, (Op){run_copy, (void*)d, (void*)h, n, 0, 0, 0, 0, 0}); }
int cuMemcpyDtoHAsync_v2(void* h, uint64_t d, size_t n, Stream* s) { return enqueue(s, (Op){run_copy, h, (void*)d, n, 0, 0, 0, 0, 0}); }
int cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t h, size_t n, Stream* s) { return enqueue(s, (Op){run_copy, (void*)d, (void*)h, n, 0, 0, 0, 0, 0}); }
int cuMemsetD8Async(uint64_t d, unsigned char c, size_t n, Stream* s) { return c ? 1 : enqueue(s, (Op){run_clear, (void*)d, 0, n, 0, 0, 0, 0, 0}); }
int cuStreamCreate(Stream** s, unsigned flags) { *s = calloc(1, sizeof **s); return flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(Stream* s) { free(s); return 0; }
int cuStreamSynchronize(Stream* s) { ENTER(cuStreamSynchronize) return s->is_capturing ? 900 : 0; }
int cuStreamBeginCapture_v2(Stream* s, int mode) { s->is_capturing = 1; s->count = 0; return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(Stream* s, Stream** g) { ENTER(cuStreamEndCapture) s->is_capturing = 0; *g = malloc(sizeof **g); **g = *s; return 0; }
// Events that keep the time know how long products have taken until they were recorded.
typedef struct { float ms; int is_timed; } Event;
int cuEventCreate(Event** e, unsigned flags) { *e = calloc(1, sizeof **e); (*e)->is_timed = flags == 0; return flags == 0 || flags == 2 ? 0 : 1; }
int cuEventDestroy_v2(Event* e) { free(e); return 0; }
int cuEventRecord(Event* e, Stream* s) { e->ms = e->is_timed ? s->ms : 0; return s->is_capturing ? 900 : 0; }
int cuEventSynchronize(Event* e) { return !e; }
int cuEventElapsedTime(float* ms, Event* start, Event* end) {
    ENTER(cuEventElapsedTime)
    *ms = end->ms - start->ms;
    return !start->is_timed || !end->is_timed;
}
int cuGraphInstantiateWithFlags(Stream** x, Stream* g, unsigned long long flags) { *x = malloc(sizeof **x); **x = *g; return (int)flags; }
int cuGraphUpload(Stream* x, Stream* s) { return !x || !s; }
int cuGraphLaunch(Stream* x, Stream* s) { for (int i = 0; i < x->count; i++) x->ops[i].run(&x->ops[i]); return !s; }
int cuGraphGetNodes(Stream* g, void* nodes, size_t* n) { *n = g->count; return nodes != 0; }
int cuGraphExecDestroy(Stream* x) { free(x); return 0; }
int cuGraphDestroy(Stream* g) { free(g); return 0; }
int cuModuleLoadDataEx(void** m, const void* image, unsigned n, int* options, void** values) {
    ENTER(cuModuleLoadDataEx)
    if (n != 2 || options[0] != 5 || options[1] != 6 || (size_t)values[1] != 8192) return 1;
    *m = (void*)image;
    return 0;
}
int cuModuleUnload(void* m) { return !m; }
int cuModuleGetFunction(void** f, void* m, const char* name) { *f = strdup(name); return !m; }
int cuFuncGetAttribute(int* v, int a, void* f) { *v = a == 1 ? 1024 : 0; return !f; }
int cuFuncSetAttribute(void* f, int a, int v) { return !f || a != 8 || v != 232448 - 1024; }
// A map that is what it was made of.
int cuTensorMapEncodeTiled(uint64_t* map, int type, unsigned rank, uint64_t at, const uint64_t* dims, const uint64_t* strides, const unsigned* box, const unsigned* steps, int interleave, int swizzle, int promotion, int fill) {
    ENTER(cuTensorMapEncodeTiled)
    if (type != 9 || rank != 3 || steps[0] != 1 || steps[1] != 1 || steps[2] != 1 || interleave || swizzle != 3 || promotion != 3 || fill) return 1;
    uint64_t seen[16] = {at, dims[0], dims[1], dims[2], strides[0], strides[1], box[0], box[1], box[2]};
    memcpy(map, seen, sizeof seen);
    return 0;
}
// Writes what it was given to the address that is its first argument: grid, block, shared bytes, second argument, and whether it may
// begin before the kernel before it has ended.
typedef struct { int id; char pad[4]; union { int value; char pad[64]; } of; } Attribute;
typedef struct { unsigned dims[7]; Stream* s; Attribute* attributes; unsigned count; } LaunchConfig;
int cuLaunchKernelEx(const LaunchConfig* c, char* f, void** params, void** extra) {
    ENTER(cuLaunchKernelEx)
    if (c->dims[0] == 9 || c->count > 1 || (c->count && (c->attributes->id != 6 || c->attributes->of.value != 1))) return 1;
    unsigned* seen = *(unsigned**)params[0];
    memcpy(seen, c->dims, sizeof c->dims);
    seen[7] = *(unsigned*)params[1];
    seen[8] = c->count;
    return !f || !c->s || extra;
}

// cuBLASLt: one product, of bf16, as the engine describes it.
typedef struct { int type, is_transposed; size_t rows, cols, ld; } Desc;
size_t cublasLtGetVersion(void) { return 130002; }
int cublasLtCreate(void** h) { ENTER(cublasLtCreate) *h = malloc(1); return 0; }
int cublasLtDestroy(void* h) { free(h); return 0; }
int cublasLtMatmulDescCreate(Desc** d, int compute, int scale) { *d = calloc(1, sizeof **d); return compute != 68 || scale != 0; }
int cublasLtMatmulDescSetAttribute(Desc* d, int a, const void* v, size_t n) { d->is_transposed = *(int*)v; return a != 3 || n != 4; }
int cublasLtMatmulDescDestroy(Desc* d) { free(d); return 0; }
int cublasLtMatrixLayoutCreate(Desc** d, int type, uint64_t rows, uint64_t cols, int64_t ld) { *d = malloc(sizeof **d); **d = (Desc){type, 0, rows, cols, ld}; return 0; }
int cublasLtMatrixLayoutDestroy(Desc* d) { free(d); return 0; }
int cublasLtMatmulPreferenceCreate(void** p) { *p = malloc(1); return 0; }
int cublasLtMatmulPreferenceSetAttribute(void* p, int a, const void* v, size_t n) {
    if (a == 1) return !p || n != 8 || *(uint64_t*)v != 32 << 20;
    return !p || a < 5 || a > 8 || n != 4 || *(uint32_t*)v != 256;
}
int cublasLtMatmulPreferenceDestroy(void* p) { free(p); return 0; }
typedef struct { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; } Result;
int cublasLtMatmulAlgoGetHeuristic(void* h, Desc* d, Desc* a, Desc* b, Desc* c, Desc* o, void* p, int wanted, Result* r, int* n) {
    if (!h || !d || !p || c != o || wanted != 8 || a->rows != b->rows) return 7;
    // Two are not to be tried: one is not supported, one needs too much memory. Of the others the third takes the least time.
    const unsigned ms[] = {5, 1, 4, 1, 3, 9};
    memset(r, 0, wanted * sizeof *r);
    for (*n = 0; *n < 6; ++*n) {
        r[*n].algo[0] = b->cols;
        r[*n].algo[1] = ms[*n];
        r[*n].state = *n == 1 ? 15 : 0;
        r[*n].workspace = *n == 3 ? 33 << 20 : 32 << 20;
    }
    return 0;
}
// As the real one may: an algorithm for 64 rows serves fewer.
int cublasLtMatmulAlgoCheck(void* h, Desc* d, Desc* a, Desc* b, Desc* c, Desc* o, const uint64_t* algo, Result* r) {
    r->workspace = 0;
    return !h || !d || !a || c != o || algo[0] != 64 || b->cols > 64 ? 15 : 0;
}
static float widen(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
static void run_product(Op* o) {
    uint16_t *w = o->src, *x = *(uint16_t**)&o->bytes;
    for (size_t n = 0; n < o->n; n++)
        for (size_t m = 0; m < o->m; m++) {
            float sum = 0;
            for (size_t k = 0; k < o->k; k++) sum += widen(w[m * o->k + k]) * widen(x[n * o->k + k]);
            uint32_t bits;
            memcpy(&bits, &sum, 4);
            if (o->out_f32) ((float*)o->dst)[n * o->stride + m] = sum;
            else ((uint16_t*)o->dst)[n * o->stride + m] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
}
int cublasLtMatmul(void* h, Desc* d, const float* alpha, void* a, Desc* ad, const float* beta_or_b, Desc* bd, const float* beta, void* c, Desc* cd, void* o, Desc* od, const uint64_t* algo, void* workspace, size_t bytes, Stream* s) {
    if (!h || !d->is_transposed || *alpha != 1 || *beta != 0 || c != o || cd != od || algo[0] != 64 || !workspace || bytes != 32 << 20) return 7;
    s->ms += algo[1];
    fprintf(stderr, "fake: a product of %d ms%s\n", (int)algo[1], s->is_capturing ? " in a graph" : "");
    if (ad->type != 14 || bd->type != 14 || ad->ld != ad->rows || bd->ld != bd->rows) return 15;
    return enqueue(s, (Op){run_product, o, a, (size_t)beta_or_b, ad->cols, bd->cols, ad->rows, od->ld, od->type == 0});
}

// NVRTC: an image that names one kernel, after its file.
int nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
int nvrtcCreateProgram(char** p, const char* text, const char* name, int n, const char** headers, const char** names) {
    for (int i = 0; i < n; i++)
        if (!headers[i] || !names[i]) return 3;
    *p = calloc(1, 256);
    snprintf(*p, 256, ".entry fake_%.*s(", (int)strcspn(name, "."), name);
    return !text;
}
int nvrtcCompileProgram(char* p, int n, const char** options) { ENTER(nvrtcCompileProgram) return !p || n != 3 || strcmp(options[0], "--gpu-architecture=sm_90a"); }
int nvrtcDestroyProgram(char** p) { free(*p); return 0; }
int nvrtcGetCUBINSize(char* p, size_t* n) { *n = strlen(p) + 1; return 0; }
int nvrtcGetCUBIN(char* p, char* out) { strcpy(out, p); return 0; }
int nvrtcGetProgramLogSize(char* p, size_t* n) { (void)p; *n = 16; return 0; }
int nvrtcGetProgramLog(char* p, char* out) { (void)p; strcpy(out, "no such thing"); return 0; }
