// The functions between an MLP's products: `Activation` of config/model.rs, by the numbers of ops/gate_act_mul.rs.
#pragma once

enum ActivationKind { SILU = 0, GELU_TANH = 1 };

// Both are x * sigmoid(y): SiLU with y = x; GELU's 0.5 * (1 + tanh(z)) is sigmoid(2z). Where the exponential is infinite the
// result is 0, as it is to be. Nothing is left to the compiler to fuse: the bits are the same in every kernel.
DEVICE float activation(float x, u32 kind) {
    const float cubed = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
    const float y = kind == SILU ? x : __fmul_rn(1.5957691f, __fadd_rn(x, cubed));
    return __fdividef(x, __fadd_rn(1.0f, fast_exp(-y)));
}
