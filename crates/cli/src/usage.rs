//! Wrong usage, as opposed to a job that failed.

use anyhow::Error;

/// Options that no model could make right: a value out of range, a missing option, a combination without meaning. The
/// program ends with 2, as for options that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(String);

/// An error of wrong usage.
pub(crate) fn usage(message: impl std::fmt::Display) -> Error {
    Error::new(Usage(message.to_string()))
}

/// Whether an error is one of wrong usage.
pub(crate) fn is_usage(error: &Error) -> bool {
    error.chain().any(|cause| cause.is::<Usage>())
}

/// `anyhow::bail!` for [wrong usage](Usage).
macro_rules! bail_usage {
    ($($message:tt)*) => {
        return Err($crate::usage::usage(format!($($message)*)))
    };
}

/// `anyhow::ensure!` for [wrong usage](Usage).
macro_rules! ensure_usage {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            bail_usage!($($message)*);
        }
    };
}
