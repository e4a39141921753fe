//! One error type for the whole crate. [`Error::kind`] says who must act.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Ask [`Error::kind`] rather than matching variants:
/// variants may be added.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of a request is wrong; `param` names it as the request API spells it.
    #[error("{message}")]
    InvalidRequest {
        /// The field at fault, for example `top_p`.
        param: Cow<'static, str>,
        /// What was expected and what was found, naming the field.
        message: String,
    },
    /// The engine's inbox is full. The same request can succeed later.
    #[error("{message}")]
    Overloaded {
        /// What is full and how full it is.
        message: String,
    },
    /// The engine has stopped or is stopping.
    #[error("{message}")]
    Unavailable {
        /// Why it stopped.
        message: String,
    },
    /// A model file is missing, truncated, corrupt, or does not fit the others.
    #[error("{}: {}{message}", path.display(), tensor.as_ref().map(|t| format!("tensor {t}: ")).unwrap_or_default())]
    ModelFile {
        /// The file at fault.
        path: PathBuf,
        /// The tensor at fault, where there is one.
        tensor: Option<String>,
        /// What was expected and what was found.
        message: String,
    },
    /// A setting of the engine is wrong or cannot be met on this machine.
    #[error("{field}: {message}")]
    Config {
        /// The setting, as `EngineConfig` or the command line spells it.
        field: Cow<'static, str>,
        /// What was expected and what was found.
        message: String,
    },
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A compute device failed.
    #[error("device error: {message}")]
    Device {
        /// The device's own words.
        message: String,
    },
    /// An invariant of the engine was broken: a bug.
    #[error("internal error: {message}")]
    Internal {
        /// What was broken.
        message: String,
    },
}

/// Who must act on an [`Error`].
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The sender of the request: it can never succeed as it stands.
    InvalidRequest,
    /// Nobody: try again later.
    Overloaded,
    /// The operator: the engine is not running.
    Unavailable,
    /// Whoever provided the model files.
    ModelFile,
    /// Whoever started the engine: a setting is wrong.
    Config,
    /// The operator: a file or a device failed.
    System,
    /// The developers: this is a bug.
    Internal,
}

impl Error {
    /// Who must act.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidRequest { .. } => ErrorKind::InvalidRequest,
            Error::Overloaded { .. } => ErrorKind::Overloaded,
            Error::Unavailable { .. } => ErrorKind::Unavailable,
            Error::ModelFile { .. } => ErrorKind::ModelFile,
            Error::Config { .. } => ErrorKind::Config,
            Error::Io { .. } | Error::Device { .. } => ErrorKind::System,
            Error::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// The request field at fault, for [`ErrorKind::InvalidRequest`].
    pub fn param(&self) -> Option<&str> {
        match self {
            Error::InvalidRequest { param, .. } => Some(param),
            _ => None,
        }
    }

    /// A request error at `param`.
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Error::InvalidRequest { param: param.into(), message: message.into() }
    }

    /// An error of a model file as a whole.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::ModelFile { path: path.as_ref().into(), tensor: None, message: message.into() }
    }

    /// An error of one tensor of a model file.
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, message: impl Into<String>) -> Self {
        Error::ModelFile { path: path.as_ref().into(), tensor: Some(tensor.into()), message: message.into() }
    }

    /// An error of a setting.
    pub fn config(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Error::Config { field: field.into(), message: message.into() }
    }

    /// A failed read or write of `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().into(), source }
    }

    /// A broken invariant.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::Internal { message: message.into() }
    }
}
