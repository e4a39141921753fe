// experts_quant: what experts_linear.cu computes of weights that stay in block formats (lib/quant.h), with the bits that it has of the same
// numbers in bf16. Names, arguments and grids are its own; an expert's rows are whole tiles of 16; scale unused.
//
// Shared memory: as linear_quant.cu's kernels of 8 tokens and of tiles have it.
// Bounded as linear_quant.cu is, by each tile's matrix.
#include "lib/platform.h"
#include "lib/activation.h"
#include "lib/vector.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"
#include "lib/linear.h"
#include "lib/linear_rows.h"
#include "lib/linear_tile.h"
#include "lib/quant.h"
#include "lib/linear_quant.h"

template <typename W>
using Tile64x64 = Tile<W, 4, 1, 8, 4, 3>;

#include "lib/experts.h"

EXPERTS(Q4_0, bf16, q4_0_bf16, 3)
EXPERTS(Q4_1, bf16, q4_1_bf16, 3)
EXPERTS(Q5_0, bf16, q5_0_bf16, 3)
EXPERTS(Q5_1, bf16, q5_1_bf16, 3)
EXPERTS(Q8_0, bf16, q8_0_bf16, 3)
EXPERTS(Q4_K, bf16, q4_k_bf16, 3)
EXPERTS(Q5_K, bf16, q5_k_bf16, 3)
EXPERTS(Q6_K, bf16, q6_k_bf16, 3)
EXPERTS(INT4_G32, bf16, int4_g32_bf16, 3)
EXPERTS(INT4_G128, bf16, int4_g128_bf16, 3)
EXPERTS(MXFP4, bf16, mxfp4_bf16, 3)
