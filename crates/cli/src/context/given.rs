//! Which options were given on the command line, as opposed to their defaults.

use std::collections::HashSet;
use std::sync::OnceLock;

use anyhow::Result;
use clap::ArgMatches;
use clap::parser::ValueSource;

static GIVEN: OnceLock<HashSet<String>> = OnceLock::new();

/// Records the options of the subcommand.
pub(crate) fn record_given(matches: &ArgMatches) {
    let Some((_, options)) = matches.subcommand() else { return };
    let is_given = |id: &&clap::Id| options.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    let ids = options.ids().filter(is_given).map(|id| id.as_str().to_owned());
    GIVEN.get_or_init(|| ids.collect());
}

/// Whether an option was given; `id` is the name of its field.
pub(crate) fn is_given(id: &str) -> bool {
    GIVEN.get().is_some_and(|given| given.contains(id))
}

/// Refuses options that contradict the others, e.g. "--stride requires --file".
///
/// # Errors
/// The first of the options that was given although `has_effect` is false, followed by `rule`.
pub(crate) fn check_effect(has_effect: bool, ids: &[&str], rule: &str) -> Result<()> {
    match ids.iter().find(|id| !has_effect && is_given(id)) {
        Some(id) => bail_usage!("--{} {rule}; leave it out", id.replace('_', "-")),
        None => Ok(()),
    }
}

/// Warns of options without effect, e.g. "--density applies to ties and dare". A script that runs several
/// methods with the same options goes on.
pub(crate) fn warn_unused(has_effect: bool, ids: &[&str], rule: &str) {
    for id in ids.iter().filter(|id| !has_effect && is_given(id)) {
        eprintln!("warning: --{} {rule} and is ignored", id.replace('_', "-"));
    }
}
