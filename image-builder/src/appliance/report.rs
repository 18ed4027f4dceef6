//! What is in an image, for others: an SPDX document, and the difference between two images.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::image::Image;

/// The software bill of materials as SPDX 2.3 in JSON. It holds no time of its own, so that the same image always gives
/// the same document.
pub fn spdx(image: &Image) -> Value {
    let name = format!("{}-{}", image.name, image.image_version);
    let system = json!({
        "SPDXID": "SPDXRef-Image",
        "name": image.name,
        "versionInfo": image.image_version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "checksums": [{ "algorithm": "SHA256", "checksumValue": image.disk_sha256 }],
    });
    let hostd = json!({
        "SPDXID": "SPDXRef-hostd",
        "name": "hostd",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "checksums": [{ "algorithm": "SHA256", "checksumValue": image.hostd_sha256 }],
    });
    let id = |package: &str| format!("SPDXRef-Package-{}", package.replace(['+', '_'], "-"));
    let packages = image.packages.iter().map(|package| {
        json!({
            "SPDXID": id(&package.package),
            "name": package.package,
            "versionInfo": package.version,
            "supplier": "Organization: Debian",
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "checksums": [{ "algorithm": "SHA256", "checksumValue": package.sha256 }],
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": format!("pkg:deb/debian/{}@{}?arch=amd64", package.package, package.version),
            }],
        })
    });
    let parts = image.packages.iter().map(|package| id(&package.package));
    let contains = std::iter::once("SPDXRef-hostd".to_owned()).chain(parts).map(|part| {
        json!({ "spdxElementId": "SPDXRef-Image", "relationshipType": "CONTAINS", "relatedSpdxElement": part })
    });
    let describes = json!({
        "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-Image",
    });
    let packages: Vec<Value> = [system, hostd].into_iter().chain(packages).collect();
    let relationships: Vec<Value> = std::iter::once(describes).chain(contains).collect();
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/{name}-{}", image.root_hash),
        "creationInfo": { "created": "1970-01-01T00:00:00Z", "creators": ["Tool: image-builder"] },
        "packages": packages,
        "relationships": relationships,
    })
}

/// What differs between two images, a line each: `-` only in the first, `+` only in the second, `~` changed.
pub fn diff(a: &Image, b: &Image) -> Vec<String> {
    let mut lines = Vec::new();
    let mut field = |name: &str, a: &str, b: &str| {
        if a != b {
            lines.push(format!("~ {name}: {a} -> {b}"));
        }
    };
    field("version", &a.image_version, &b.image_version);
    field("disk", &a.disk_sha256, &b.disk_sha256);
    field("root hash", &a.root_hash, &b.root_hash);
    field("kernel", &a.kernel, &b.kernel);
    field("hostd", &a.hostd_sha256, &b.hostd_sha256);
    field("PCR 4", &a.pcr_4, &b.pcr_4);
    field("PCR 7", &a.pcr_7, &b.pcr_7);
    let profiles = |image: &Image| -> BTreeMap<String, String> {
        let profiles = image.profiles.iter();
        // The root hash is told above; here it would hide whether the words changed.
        profiles
            .map(|profile| {
                (
                    format!("profile {}", profile.name),
                    profile.cmdline.replace(&image.root_hash, "…"),
                )
            })
            .collect()
    };
    let packages = |image: &Image| -> BTreeMap<String, String> {
        let packages = image.packages.iter();
        packages
            .map(|package| (format!("package {}", package.package), package.version.clone()))
            .collect()
    };
    for (a, b) in [(profiles(a), profiles(b)), (packages(a), packages(b))] {
        for (name, value) in &a {
            match b.get(name) {
                None => lines.push(format!("- {name} {value}")),
                Some(other) if other != value => lines.push(format!("~ {name}: {value} -> {other}")),
                Some(_) => {}
            }
        }
        lines.extend(
            b.iter()
                .filter(|(name, _)| !a.contains_key(*name))
                .map(|(name, value)| format!("+ {name} {value}")),
        );
    }
    lines
}
