//! What the compiler and the linker put into every program, which Cargo does not list.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{printed, rustc};

/// A library that no package declares.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    /// Unknown for what comes with the compiler in binary form.
    pub(crate) version: Option<String>,
    /// An SPDX expression.
    pub(crate) licence: &'static str,
    /// Its notices.
    pub(crate) notices: String,
}

impl Runtime {
    /// Rust's standard library, and for a static program of Linux the C library.
    pub(crate) fn of_target(target: &str) -> Result<Vec<Self>> {
        let sysroot = printed(rustc().args(["--print", "sysroot"]))?;
        let path = Path::new(&sysroot).join("share/doc/rust/COPYRIGHT-library.html");
        let html = fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}, the notices of Rust's standard library, which a release must contain; use a toolchain that \
                 rustup installed",
                path.display()
            )
        })?;
        let said = printed(rustc().arg("-vV"))?;
        let version = said.lines().find_map(|line| line.strip_prefix("release: ")).map(str::to_owned);
        let mut found =
            vec![Self { name: "rust-std", version, licence: "MIT OR Apache-2.0", notices: text_of(&html) }];
        if target.ends_with("-musl") {
            let notices = MUSL.to_owned();
            found.push(Self { name: "musl", version: None, licence: "MIT", notices });
        }
        Ok(found)
    }

    /// Its package URL.
    pub(crate) fn purl(&self) -> String {
        let version = self.version.as_ref().map(|version| format!("@{version}"));
        format!("pkg:generic/{}{}", self.name, version.unwrap_or_default())
    }

    /// Its entry in the bill of materials.
    pub(crate) fn component(&self) -> Value {
        let mut component = json!({
            "type": "library", "bom-ref": self.purl(), "name": self.name, "purl": self.purl(),
            "licenses": [{"expression": self.licence}],
        });
        if let Some(version) = &self.version {
            component["version"] = version.as_str().into();
        }
        component
    }
}

/// The text of a document in HTML, without its style.
fn text_of(html: &str) -> String {
    let style = html.find("<style").zip(html.find("</style>")).filter(|(start, end)| start < end);
    let html = style.map_or(html.to_owned(), |(start, end)| [&html[..start], &html[end..]].concat());
    let (mut text, mut rest) = (String::with_capacity(html.len()), html.as_str());
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        rest = tag.split_once('>').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    for (name, sign) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#60;", "<"),
        ("&#62;", ">"),
    ] {
        text = text.replace(name, sign);
    }
    let text = text.replace("&#38;", "&").replace("&amp;", "&");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    // Tags leave runs of empty lines.
    let kept = lines
        .iter()
        .enumerate()
        .filter(|(at, line)| *at == 0 || !line.is_empty() || !lines[at - 1].is_empty());
    kept.map(|(_, line)| *line).collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// The notice of musl's `COPYRIGHT`.
const MUSL: &str = "musl as a whole is licensed under the following standard MIT license:

Copyright © 2005-2020 Rich Felker, et al.

Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
\"Software\"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_become_text() {
        let html = "<html><style>p { a > b }</style>\n<p>A &#60;b@c&gt; &amp;lt;</p>\n\n\n<b>d</b>\n</html>";
        assert_eq!(text_of(html), "A <b@c> &lt;\n\nd");
    }
}
