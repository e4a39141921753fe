// linear_rows: what linear.cu computes, of at most 16 tokens: weights pass by once. Arguments and the order of sums are linear.cu's.
//
// linear_rows8, linear_rows16: at most 8, 16 tokens. Block of 8 warps; a warp has 16 features and one of `splits` (1, 2, 4, 8)
// segments, so that also small matrices keep all multiprocessors loading (lib/linear_stream.h). The first steps' weights, and in the
// second cache some further ones, are asked for before the kernel before has ended. Grid: features / (128 / splits).
// linear_gated_rows8, linear_gated_rows16: gate_act_mul.cu of what those give, where rows of weights are gate's, then up's,
// `features` each. `splits` at most 4. Grid: features / (64 / splits).
//
// Dynamic shared memory: STAGES KiB a warp; static: at most 10 KiB, for the sums.
// Bounded by memory: the weights' bytes, once. 9 KiB are under way a warp.
#include "lib/platform.h"
#include "lib/activation.h"
#include "lib/e4m3.h"
#include "lib/linear.h"
#include "lib/linear_rows.h"
#include "lib/linear_stream.h"

#define KERNELS(FORM, T, NAME)                                                                                         \
    ROWS(FORM, T, NAME, 8, 2)                                                                                          \
    ROWS(FORM, T, NAME, 16, 2)
KERNELS(Plain, bf16, bf16)
KERNELS(Plain, f16, f16)
KERNELS(Fp8, bf16, fp8_bf16)
KERNELS(Fp8, f16, fp8_f16)
