//! The bill of materials, in CycloneDX 1.5.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{packages::Package, runtime::Runtime};

/// The document for a program: `packages` begins with its own package. `time` in RFC 3339. The same input gives the same
/// bytes.
pub(crate) fn document(
    packages: &[Package],
    runtime: &[Runtime],
    target: &str,
    time: &str,
) -> Result<String> {
    let (program, others) = packages.split_first().context("a build without packages")?;
    let purls: BTreeMap<&str, String> =
        packages.iter().map(|package| (package.id.as_str(), package.purl())).collect();
    let dependency = |package: &Package| {
        let mut on: Vec<String> =
            package.dependencies.iter().filter_map(|id| purls.get(id.as_str()).cloned()).collect();
        if package.id == program.id {
            on.extend(runtime.iter().map(Runtime::purl));
        }
        json!({"ref": package.purl(), "dependsOn": on})
    };
    let components = others.iter().map(|package| component(package, "library"));
    let leaves = runtime.iter().map(|library| json!({"ref": library.purl(), "dependsOn": []}));
    let mut main = component(program, "application");
    main["properties"] = json!([{"name": "lowrank:target", "value": target}]);
    let mut document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": "",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "tools": {"components": [{"type": "application", "name": "cargo xtask dist"}]},
            "component": main,
        },
        "components": components.chain(runtime.iter().map(Runtime::component)).collect::<Vec<_>>(),
        "dependencies": packages.iter().map(dependency).chain(leaves).collect::<Vec<_>>(),
    });
    document["serialNumber"] = format!("urn:uuid:{}", uuid(document.to_string().as_bytes())).into();
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn component(package: &Package, kind: &str) -> Value {
    let mut component = Map::new();
    let mut set = |key: &str, value: Value| component.insert(key.to_owned(), value);
    set("type", kind.into());
    set("bom-ref", package.purl().into());
    set("name", package.name.clone().into());
    set("version", package.version.clone().into());
    set("purl", package.purl().into());
    if let Some(checksum) = &package.checksum {
        set("hashes", json!([{"alg": "SHA-256", "content": checksum}]));
    }
    if !package.licence.is_empty() {
        set("licenses", json!([{"expression": package.licence}]));
    }
    if let Some(repository) = &package.repository {
        set("externalReferences", json!([{"type": "vcs", "url": repository}]));
    }
    component.into()
}

/// An identifier derived from the content, in the form of a random one (RFC 9562, version 8).
fn uuid(content: &[u8]) -> String {
    let mut bytes: Vec<u8> = Sha256::digest(content).iter().copied().take(16).collect();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(out, "{dash}{byte:02x}");
    }
    out
}
