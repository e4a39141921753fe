//! Settings: of the engine, of a model, of one request.

mod beam;
mod engine;
mod grammar;
mod model;
mod sampling;

pub use beam::{BeamLength, BeamParams, EarlyStopping};
pub use engine::{
    AdapterSource, DeviceKind, EngineConfig, KvCacheDtype, LoadFormat, MatmulPrecision, Quantization, WeightDtype,
};
pub use grammar::Grammar;
pub use model::{Activation, ExpertsConfig, LongRope, ModelConfig, QkNorm, RopeConfig, RopeScaling, Yarn};
pub use sampling::{LogprobsMode, SamplingParams};

pub(crate) use sampling::check_token_id;
