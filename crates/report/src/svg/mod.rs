//! Plots as SVG, for a page that defines their colours.
//!
//! A plot names its colours by the classes `s0` … `s7` and its foreground by `currentColor`, so that
//! one image serves a light and a dark page. Series differ by marker and dash as well as by colour.

mod axis;
mod plot;

pub(crate) use lowrank_spec::text::xml as escape;
pub(crate) use plot::{COLOURS, Plot, Point, Series, swatch};
