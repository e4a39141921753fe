//! The operations of a forward pass, one a file: what it computes, a plain reference, and the CPU's kernel.

// Lanes and tokens are indexed side by side in kernels.
#![allow(clippy::needless_range_loop)]

pub mod activate;
pub mod add;
pub mod attention;
pub mod copy_blocks;
pub mod embed;
pub(crate) mod expand_kv;
pub mod experts;
pub mod gate_act_mul;
pub mod gated_linear;
pub mod gather_columns;
pub mod gather_rows;
pub mod head_norm;
mod lanes;
pub mod layer_norm;
pub mod linear;
pub mod lora;
pub mod random;
pub mod rms_norm;
pub mod rope_append_kv;
pub mod sample;
mod simd;
pub mod softcap;
#[cfg(test)]
pub(crate) mod testing;
mod timing;
