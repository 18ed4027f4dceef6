//! Updates: the folder that machines read, and one machine's way from a version to the next and back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use image_builder::appliance::keys::Keys;
use image_builder::appliance::tools::{self, Tools};
use image_builder::appliance::update::{self, PublishError};
use image_builder::apt::Apt;
use image_builder::progress::Progress;

use crate::machine::{image, named};

fn build_tools() -> Tools {
    let apt = Apt {
        cache: named("IMAGE_BUILDER_CACHE"),
        refresh: false,
    };
    Tools::prepare(&apt, "tools", &tools::BUILD, &"trixie".parse().unwrap(), None).unwrap()
}

#[test]
fn a_folder_of_updates_grows_and_what_its_owner_did_not_sign_is_refused() {
    let (dir, image) = image();
    let keys = Keys::read(&named("DC_KEYS")).unwrap();
    let tools = build_tools();
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("updates");
    let publish = |from: &std::path::Path| {
        update::publish(&[from.to_owned()], &folder, &keys, &tools, &Progress::quiet())
    };
    let first = publish(&dir).unwrap();
    assert_eq!(first.versions, std::slice::from_ref(&image.image_version));
    assert_eq!(first.files.len(), 4);
    assert_eq!(publish(&dir).unwrap(), first);
    // The same version with other content never takes the first one's place.
    let other = scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    for file in fs::read_dir(&dir).unwrap().flatten() {
        std::os::unix::fs::symlink(file.path(), other.join(file.file_name())).unwrap();
    }
    let mut changed = image.clone();
    changed.root_hash = "00".repeat(32);
    fs::remove_file(other.join("image.json")).unwrap();
    fs::write(other.join("image.json"), changed.to_bytes()).unwrap();
    assert!(matches!(publish(&other), Err(PublishError::Version(_))));
    // Somebody with the web server's password, but not the key, puts in a kernel image of his own.
    let uki = folder.join(format!("{}_{}.efi", image.name, image.image_version));
    let file = File::options().write(true).open(&uki).unwrap();
    file.write_all_at(b"MY", 0).unwrap();
    assert!(matches!(publish(&dir), Err(PublishError::Foreign { .. })));
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    fs::write(folder.join("SHA256SUMS"), sums.to_uppercase()).unwrap();
    let refused = publish(&dir);
    assert!(
        matches!(refused, Err(PublishError::Foreign { .. })),
        "{refused:?}"
    );
}
