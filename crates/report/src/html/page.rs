//! The page around the sections, and their common parts.

use std::fmt::Write;

use crate::svg::{Plot, Series, escape, swatch};

/// A whole, self-contained page.
pub(super) fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    let css = include_str!("page.css");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{css}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// A section with a heading.
pub(super) fn section(heading: &str, body: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n{body}</section>\n", escape(heading))
}

pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// A table cell: its text, and whether it is highlighted.
pub(super) struct Cell {
    pub(super) html: String,
    pub(super) class: &'static str,
}

impl Cell {
    pub(super) fn text(text: &str, class: &'static str) -> Self {
        Self { html: escape(text), class }
    }
}

/// A row of a table.
pub(super) enum TableRow {
    /// The common label of the rows below it.
    Group(String),
    /// Names, followed by numbers; marked if published by others.
    Cells { cells: Vec<Cell>, published: bool },
}

impl TableRow {
    pub(super) fn new(name: &str, cells: impl Iterator<Item = Cell>) -> Self {
        Self::Cells { cells: std::iter::once(Cell::text(name, "")).chain(cells).collect(), published: false }
    }
}

/// A table whose first column names the rows, with its caption above; it scrolls separately if it is wider
/// than the page. `id` is unique in the page.
pub(super) fn table(id: &str, caption: &str, headers: &[String], rows: &[TableRow]) -> String {
    let mut out = format!(
        "<p class=\"faint\" id=\"{id}\">{}</p>\n\
         <div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-labelledby=\"{id}\">\n\
         <table aria-labelledby=\"{id}\">\n<thead><tr>",
        escape(caption)
    );
    // Writing to a string cannot fail; so below.
    for (index, header) in headers.iter().enumerate() {
        let class = if index == 0 { " class=\"name\"" } else { "" };
        let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escape(header));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        match row {
            TableRow::Group(name) => {
                let (columns, name) = (headers.len(), escape(name));
                let _ = write!(
                    out,
                    "<tr class=\"group\"><th colspan=\"{columns}\" scope=\"rowgroup\"><span>{name}</span></th>"
                );
            }
            TableRow::Cells { cells, published } => {
                out.push_str(if *published { "<tr class=\"published\">" } else { "<tr>" });
                for (index, cell) in cells.iter().enumerate() {
                    let _ = match index {
                        0 => write!(out, "<th scope=\"row\" class=\"name\">{}</th>", cell.html),
                        _ => write!(out, "<td class=\"{}\">{}</td>", cell.class, cell.html),
                    };
                }
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    out
}

/// Plots side by side, with one legend for them all. `prefix` makes the ids of their parts unique in the page.
pub(super) fn figures(prefix: &str, plots: &[(String, Plot)]) -> String {
    let mut shown: Vec<&Series> = Vec::new();
    for series in plots.iter().flat_map(|(_, plot)| &plot.series) {
        match shown.iter_mut().find(|known| known.name == series.name) {
            None => shown.push(series),
            // A line represents a series better than the single point that it has elsewhere.
            Some(known) if known.points.len() < series.points.len() => *known = series,
            Some(_) => {}
        }
    }
    let mut out = String::from("<ul class=\"legend\">");
    for series in shown {
        let _ = write!(out, "<li>{}{}</li>", swatch(series), escape(&series.name));
    }
    out.push_str("</ul>\n<div class=\"figures\">\n");
    for (index, (caption, plot)) in plots.iter().enumerate() {
        let _ = write!(
            out,
            "<figure>\n<figcaption><h3>{}</h3></figcaption>\n{}\n</figure>\n",
            escape(caption),
            plot.to_svg(&format!("{prefix}{index}"))
        );
    }
    out.push_str("</div>\n");
    out
}

/// A collapsible part.
pub(super) fn details(summary: &str, body: &str) -> String {
    format!("<details>\n<summary>{}</summary>\n{body}</details>\n", escape(summary))
}
