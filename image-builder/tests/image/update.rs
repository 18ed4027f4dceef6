//! Updates: the folder that machines read, and one machine's way from a version to the next and back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use image_builder::appliance::image::Image;
use image_builder::appliance::keys::Keys;
use image_builder::appliance::tools::{self, Tools};
use image_builder::appliance::update::{self, PublishError};
use image_builder::apt::Apt;
use image_builder::progress::Progress;

use crate::boot::pcr;
use crate::firstboot::Stick;
use crate::machine::{Host, alone, image, named};
use crate::operator::{credential, operator};
use crate::provider::Provider;

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
    let publish =
        |from: &Path| update::publish(&[from.to_owned()], &folder, &keys, &tools, &Progress::quiet());
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

/// Makes a stick with the folder as `good`, with another list under its signature as `bad`, and with the list alone as
/// `unsigned`.
fn stick(tools: &Tools, folder: &Path, to: &Path) {
    let job = tools.job().unwrap();
    let disk = File::create(job.path("stick")).unwrap();
    disk.set_len(600 << 20).unwrap();
    job.run("mkfs.vfat", ["-n", "DC_UPDATE", "stick"]).unwrap();
    job.run("mmd", ["-i", "stick", "::/good", "::/bad", "::/unsigned"])
        .unwrap();
    for file in fs::read_dir(folder).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        fs::copy(file.path(), job.path("file")).unwrap();
        job.run("mcopy", ["-i", "stick", "file", &format!("::/good/{name}")])
            .unwrap();
        if name == "SHA256SUMS" {
            job.run("mcopy", ["-i", "stick", "file", "::/unsigned/SHA256SUMS"])
                .unwrap();
            let mut content = fs::read(file.path()).unwrap();
            content[0] ^= 1;
            fs::write(job.path("file"), content).unwrap();
        }
        if name.starts_with("SHA256SUMS") {
            job.run("mcopy", ["-i", "stick", "file", &format!("::/bad/{name}")])
                .unwrap();
        }
    }
    fs::rename(job.path("stick"), to).unwrap();
}

/// What the machine's operator does, by the version that runs.
const OPERATOR: &str = r#"#!/bin/sh
exec >/dev/ttyS1 2>&1
. /usr/lib/os-release
until hostd update status; do sleep 3; done
mkdir -p /var/lib/test
step=$(cat /var/lib/test/step)
next() {
  echo "$1" >/var/lib/test/step
  sync
}
if [ "$IMAGE_VERSION" = OLD ]; then
  case $step in
  "")
    for source in bad unsigned; do
      ln -sfn "/run/update/$source" /run/test-source
      hostd update check && echo "OPERATOR took $source"
    done
    next cut
    ;;
  cut) next tried ;;
  tried)
    next again
    hostd update status | grep RETURNED && echo "OPERATOR is back"
    exit 0
    ;;
  esac
  ln -sfn /run/update/good /run/test-source
  until hostd update stage NEW; do sleep 3; done
  hostd update apply --yes
else
  ln -sfn /run/update/good /run/test-source
  until hostd update status | grep "NEW good"; do sleep 3; done
  hostd update stage OLD
  echo "OPERATOR is done"
fi
"#;

/// Goal: B doesn't prove itself, and A comes back and says so; mended, B is tried again, proves itself, and measures what
/// was predicted; bad and missing signatures and older versions are refused on the way, and power cuts while the slot is
/// filled and while B boots lose nothing. Method: an operator's script inside, and a unit that lets B's check fail, come by
/// SMBIOS; updates come on a stick.
#[test]
fn a_machine_returns_from_a_broken_version_and_keeps_a_good_one() {
    let _alone = alone();
    let (dir, old) = image();
    let next_dir = named("DC_IMAGE_NEXT");
    let next = Image::read(&next_dir).unwrap();
    let keys = Keys::read(&named("DC_KEYS")).unwrap();
    let tools = build_tools();
    let mut host = Host::new(&dir, &old);
    let folder = host.dir.path().join("updates");
    let images = [dir, next_dir];
    update::publish(&images, &folder, &keys, &tools, &Progress::quiet()).unwrap();
    let disk = host.dir.path().join("stick");
    stick(&tools, &folder, &disk);
    fs::remove_dir_all(&folder).unwrap();

    let script = OPERATOR
        .replace("OLD", &old.image_version)
        .replace("NEW", &next.image_version);
    let drive = format!("file={},format=raw,if=none,id=stick,readonly=on", disk.display());
    let mut extra = ["-drive", &drive, "-device", "virtio-blk-pci,drive=stick"]
        .map(str::to_owned)
        .to_vec();
    // The settings, with a stick for the delegation.
    let provider = Provider::without_ledger();
    let settings = provider.settings("under-test", "") + "source = \"/run/test-source\"\n";
    fs::write(provider.at("seed"), settings).unwrap();
    let seed = provider.at("seed");
    let seed = format!(
        "name=opt/io.systemd.credentials/provider-seed,file={}",
        seed.display()
    );
    extra.extend(["-fw_cfg".to_owned(), seed]);
    extra.extend(operator(&script));
    let broken = format!(
        "[Service]\nExecStartPre=/bin/sh -c '. /usr/lib/os-release; [ $IMAGE_VERSION != {} ]'\n",
        next.image_version
    );
    let sabotage = credential("systemd.unit-dropin.decent-cloud-healthy.service", &broken);

    let pocket = Stick::new(&provider);
    extra.extend(pocket.arguments());
    let sabotaged = [extra.clone(), sabotage.to_vec()].concat();
    let mut boot = host.boot_with(&[], &sabotaged);
    pocket.put_in(&provider.delegation(&mut boot));
    host.until_written("_empty");
    let text = boot.text();
    for line in [
        "isn't signed with the key that this image trusts",
        "has no signature (SHA256SUMS.gpg)",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("OPERATOR took"), "{text}");
    // The current fails while the slot is filled. What there is of B is never booted, and it is filled anew.
    drop(boot);
    assert!(host.partitions().contains(&"_empty".to_owned()));
    let mut boot = host.boot_with(&[], &sabotaged);
    boot.until(&["is staged"]);
    // And it fails in B's first boot: one of its three tries.
    let welcome = format!("Welcome to Decent Cloud {}", next.image_version);
    boot.until(&[&welcome]);
    drop(boot);
    let mut boot = host.boot_with(&[], &sabotaged);
    // Each within the time of a boot; there are three.
    for wanted in ["did not prove itself: the machine reboots", "RETURNED"] {
        let text = boot.until(&[wanted, "OPERATOR is done"]);
        assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
    }
    let text = boot.until(&["OPERATOR is back"]);
    assert!(text.contains(&welcome), "{text}");
    drop(boot);

    let mut boot = host.boot_with(&[], &extra);
    let text = boot.until(&["OPERATOR is done"]);
    let ready = format!("READY {} {}", next.name, next.image_version);
    let older = format!("{} is older than {}", old.image_version, next.image_version);
    for line in [&ready, &older] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let report = boot.report();
    assert_eq!(pcr(&report, "4"), next.pcr_4);
    assert_eq!(pcr(&report, "7"), next.pcr_7);
    assert!(next.profiles[0].pcr_11.contains(&pcr(&report, "11")));
}
