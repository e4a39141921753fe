// experts_linear: products of rows with their experts' matrices, of weights of 16 bits (`Plain`) or e4m3 (`Fp8`). The bits of a row are
// those of linear.cu with its expert's matrix and these segments.
//
// x [pairs, cols] in 16 bits and out [pairs, features] in x's type: rows in the order of their experts (experts.cu); weight
// [experts, expert_rows, cols], of e4m3 with rows padded as linear.cu has them, expert_bytes an expert; scale and
// bias [experts, expert_rows] f32, or null; tiles: what experts_sort writes.
//
// experts_rows: tiles of at most 8 rows; block, shared memory and `splits` as linear_rows8 has them. Grid (features / (128 / splits),
// tiles).
// experts_gated_rows: gate_act_mul.cu of what those give, where rows of weights are gate's, then up's, `features` each; `splits` at most
// 4. Grid (features / (64 / splits), tiles).
// experts_tile: tiles of at most 64 rows; block and shared memory as linear_tile64x64 has them. Grid (features / 64, tiles).
//
// Bounded by memory where an expert has few rows, its matrix's bytes once a tile, of which all but the first come from the second cache;
// by FLOPs of many.
#include "lib/platform.h"
#include "lib/activation.h"
#include "lib/vector.h"
#include "lib/tiles.h"
#include "lib/e4m3.h"
#include "lib/linear.h"
#include "lib/linear_rows.h"
#include "lib/linear_stream.h"
#include "lib/linear_tile.h"

template <typename W>
using Tile64x64 = Tile<W, 2, 2, 4, 2, 5>;

#include "lib/experts.h"

EXPERTS(Plain, bf16, bf16, 2)
EXPERTS(Plain, f16, f16, 2)
EXPERTS(Fp8, bf16, fp8_bf16, 2)
EXPERTS(Fp8, f16, fp8_f16, 2)
