// The functions between an MLP's products: `Activation` of config/model.rs, by the numbers of ops/gate_act_mul.rs.
#pragma once

enum ActivationKind { SILU = 0, GELU_TANH = 1, CLAMPED_SWIGLU = 2 };

static constexpr float SWIGLU_LIMIT = 7.0f, SWIGLU_ALPHA = 1.702f;

// All are x * sigmoid(y): SiLU with y = x; GELU's 0.5 * (1 + tanh(z)) is sigmoid(2z). Where the exponential is infinite the
// result is 0, as it is to be. Nothing is left to the compiler to fuse: the bits are the same in every kernel.
DEVICE float activation(float x, u32 kind) {
    if (kind == CLAMPED_SWIGLU && x > SWIGLU_LIMIT) x = SWIGLU_LIMIT;
    const float cubed = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
    const float linear = kind == SILU ? x : __fmul_rn(SWIGLU_ALPHA, x);
    const float y = kind == GELU_TANH ? __fmul_rn(1.5957691f, __fadd_rn(x, cubed)) : linear;
    return __fdividef(x, __fadd_rn(1.0f, fast_exp(-y)));
}

// act(gate) * up; of clamped SwiGLU times 1 + up, within the limits.
DEVICE float gated(float gate, float up, u32 kind) {
    if (kind == CLAMPED_SWIGLU) {
        const float most = up > SWIGLU_LIMIT ? SWIGLU_LIMIT : up;
        up = __fadd_rn(most < -SWIGLU_LIMIT ? -SWIGLU_LIMIT : most, 1.0f);
    }
    return __fmul_rn(activation(gate, kind), up);
}
