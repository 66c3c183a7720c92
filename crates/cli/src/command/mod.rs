//! The subcommands, one file each.

pub(crate) mod chat;
pub(crate) mod combine;
pub(crate) mod compress;
pub(crate) mod convert;
pub(crate) mod datasets;
pub(crate) mod embed;
pub(crate) mod evaluate;
pub(crate) mod extract;
pub(crate) mod finetune;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod manual;
pub(crate) mod merge;
pub(crate) mod perplexity;
pub(crate) mod predict;
pub(crate) mod report;
pub(crate) mod resize;
