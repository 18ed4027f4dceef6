//! The initrd of the image: what systemd needs to find the disk, check the root against `roothash=`, and go there.
//!
//! It is cut out of the root itself, so the two are always of one version: some programs, and everything that they say
//! they need. Libraries are found by `DT_NEEDED` and by systemd's own note of what it loads at run time
//! (`.note.dlopen`, uapi-group.org "ELF dlopen metadata"); a unit comes along if its program did.

use std::collections::{BTreeMap, BTreeSet};

use flash::live;

use crate::config::ModuleName;
use crate::elf;
use crate::tree::{Kind, Node, Tree, TreeError};

/// Programs of the initrd.
const PROGRAMS: [&str; 24] = [
    "usr/bin/dash",
    "usr/bin/journalctl",
    "usr/bin/kmod",
    "usr/bin/mount",
    "usr/bin/sleep",
    "usr/bin/systemctl",
    "usr/bin/systemd-tmpfiles",
    "usr/bin/tee",
    "usr/bin/tr",
    "usr/bin/udevadm",
    "usr/bin/umount",
    "usr/lib/systemd/system-generators/systemd-fstab-generator",
    "usr/lib/systemd/system-generators/systemd-veritysetup-generator",
    "usr/lib/systemd/systemd",
    "usr/lib/systemd/systemd-executor",
    "usr/lib/systemd/systemd-journald",
    "usr/lib/systemd/systemd-modules-load",
    "usr/lib/systemd/systemd-pcrextend",
    "usr/lib/systemd/systemd-shutdown",
    "usr/lib/systemd/systemd-sysctl",
    "usr/lib/systemd/systemd-sysroot-fstab-check",
    "usr/lib/systemd/systemd-veritysetup",
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "usr/sbin/dmsetup", // called by its udev rules
];

/// Files and whole directories that come along as they are.
const DATA: [&str; 13] = [
    "bin",
    "etc/group",
    "etc/ld.so.cache",
    "etc/passwd",
    "lib",
    "lib64",
    "sbin",
    "usr/bin/sh",
    "usr/lib/decent-cloud/initrd-emergency",
    "usr/lib/tmpfiles.d/20-systemd-stub.conf",
    "usr/lib/udev",
    "usr/lib64",
    "usr/sbin/modprobe",
];

const UNITS: &str = "usr/lib/systemd/system/";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu/";

/// Why the initrd can't be cut out of the root.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// A program isn't in the root.
    #[error("the root has no {0}, which the initrd needs; is a package missing in `packages`?")]
    Missing(String),
    /// A module isn't in the kernel.
    #[error("the kernel has no module {name:?} (needed by {wanted_by}); correct `initrd` in [kernel]")]
    Module {
        /// The module.
        name: String,
        /// The configuration, or the module that depends on it.
        wanted_by: String,
    },
    /// A file can't be put in.
    #[error("cannot put {0} into the initrd")]
    Place(String, #[source] TreeError),
}

/// Cuts the initrd out of `root`. `modules` are paths below `usr/lib/modules/RELEASE` in `root`; `load` are loaded
/// before anything else.
pub fn cut(root: &Tree, modules: &[String], load: &[ModuleName]) -> Result<Tree, InitrdError> {
    let mut tree = Tree::default();
    for dir in ["dev", "etc", "proc", "run", "sys", "sysroot", "tmp", "var"] {
        tree.dir(dir, 0o755)
            .map_err(|e| InitrdError::Place(dir.to_owned(), e))?;
    }
    // tpm2-tss puts this name together when it runs.
    let mut libraries = vec!["libtss2-tcti-device.so.0".to_owned()];
    for program in PROGRAMS {
        take(root, &mut tree, program)?;
        libraries.extend(needs(root.file(program).unwrap_or_default()));
    }
    let data = root.iter().map(|(path, _)| path).filter(|path| {
        DATA.iter().any(|data| {
            path.strip_prefix(data)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }) && !path.ends_with("hwdb.bin")
            && !path.starts_with("usr/lib/udev/hwdb.d/")
    });
    for path in data.chain(modules.iter().map(String::as_str)) {
        take(root, &mut tree, path)?;
        libraries.extend(needs(root.file(path).unwrap_or_default()));
    }
    let mut seen = BTreeSet::new();
    while let Some(name) = libraries.pop() {
        // What is only suggested may be missing; a library that is truly needed would have kept its package out.
        let Some(content) = library(root, &mut tree, &name)? else {
            continue;
        };
        if seen.insert(name) {
            libraries.extend(needs(content));
        }
    }
    let names: String = load.iter().map(|name| format!("{name}\n")).collect();
    for (path, content) in [
        (
            "etc/initrd-release",
            "ID=decent-cloud\nPRETTY_NAME=\"Decent Cloud (initrd)\"\n".to_owned(),
        ),
        ("usr/lib/modules-load.d/initrd.conf", names),
        (
            "etc/systemd/system/emergency.service",
            super::root::INITRD_EMERGENCY.to_owned(),
        ),
    ] {
        tree.add_file(path, 0o644, content)
            .map_err(|e| InitrdError::Place(path.to_owned(), e))?;
    }
    for (path, target) in [
        ("init", "usr/lib/systemd/systemd"),
        ("usr/lib/systemd/systemd-udevd", "../../bin/udevadm"),
        (
            "etc/systemd/system/default.target",
            "/usr/lib/systemd/system/initrd.target",
        ),
    ] {
        tree.symlink(path, target)
            .map_err(|e| InitrdError::Place(path.to_owned(), e))?;
    }
    units(root, &mut tree)?;
    Ok(tree)
}

/// Puts the whole root, an erofs, into the initrd of a live image.
pub fn add_root(tree: &mut Tree, root: Vec<u8>) -> Result<(), TreeError> {
    tree.add_file("root.erofs", 0o444, root)?;
    tree.add_file(
        "etc/systemd/system/sysroot.mount",
        0o644,
        super::root::LIVE_SYSROOT,
    )?;
    tree.symlink(
        "etc/systemd/system/initrd-root-fs.target.requires/sysroot.mount",
        "../sysroot.mount",
    )
}

/// Puts what a live image installs into its initrd; the running system has it in [`live::FOLDER`].
pub fn add_payload(tree: &mut Tree, payload: &live::Payload, disk: Vec<u8>) -> Result<(), TreeError> {
    let description = serde_json::to_vec(payload).expect("strings and numbers always serialise");
    tree.add_file(&format!("install/{}", live::DESCRIPTION), 0o444, description)?;
    tree.add_file(&format!("install/{}", live::PAYLOAD), 0o444, disk)?;
    let copy = format!("C {} - - - - /install\n", live::FOLDER);
    tree.add_file("usr/lib/tmpfiles.d/decent-cloud-install.conf", 0o644, copy)
}

fn take(root: &Tree, tree: &mut Tree, path: &str) -> Result<(), InitrdError> {
    let node = root
        .get(path)
        .ok_or_else(|| InitrdError::Missing(path.to_owned()))?;
    put(tree, path, node)
}

fn put(tree: &mut Tree, path: &str, node: &Node) -> Result<(), InitrdError> {
    tree.insert(path, node.clone())
        .map_err(|e| InitrdError::Place(path.to_owned(), e))
}

/// Takes a library with the links that lead to it, and returns its content.
fn library<'a>(root: &'a Tree, tree: &mut Tree, name: &str) -> Result<Option<&'a [u8]>, InitrdError> {
    let dirs = [LIBRARIES, "usr/lib/systemd/", "usr/lib/x86_64-linux-gnu/systemd/"];
    for dir in dirs {
        let mut path = format!("{dir}{name}");
        while let Some(node) = root.get(&path) {
            put(tree, &path, node)?;
            match &node.kind {
                Kind::File(content) => return Ok(Some(content)),
                Kind::Symlink(target) if !target.contains('/') => path = format!("{dir}{target}"),
                _ => break,
            }
        }
    }
    Ok(None)
}

/// The libraries that a program or library names.
fn needs(content: &[u8]) -> Vec<String> {
    let mut names = elf::needed(content).unwrap_or_default();
    if let Ok(Some(note)) = elf::section(content, ".note.dlopen") {
        names.extend(sonames(&String::from_utf8_lossy(note)));
    }
    names
}

/// Every library in the JSON of `.note.dlopen` notes; their headers stand between them.
fn sonames(notes: &str) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Note {
        soname: Vec<String>,
    }
    notes
        .match_indices("[{")
        .filter_map(|(at, _)| {
            let mut values = serde_json::Deserializer::from_str(&notes[at..]).into_iter::<Vec<Note>>();
            values.next()?.ok()
        })
        .flatten()
        .flat_map(|note| note.soname)
        .collect()
}

/// Units whose program is in the initrd, and the links between units that are there.
fn units(root: &Tree, tree: &mut Tree) -> Result<(), InitrdError> {
    let all: BTreeMap<&str, &Node> = root.iter().filter(|(path, _)| path.starts_with(UNITS)).collect();
    let works = |path: &str| match all.get(path).map(|node| &node.kind) {
        Some(Kind::File(content)) => {
            let text = String::from_utf8_lossy(content);
            started(path, &text).is_none_or(|service| {
                match all.get(service.as_str()).map(|node| &node.kind) {
                    Some(Kind::File(content)) => programs_are_there(tree, &String::from_utf8_lossy(content)),
                    _ => false,
                }
            }) && programs_are_there(tree, &text)
        }
        Some(Kind::Symlink(_) | Kind::Dir) => true,
        _ => false,
    };
    let target = |path: &str, target: &str| {
        let mut parts: Vec<&str> = path.split('/').collect();
        parts.pop();
        for part in target.split('/') {
            match part {
                ".." => drop(parts.pop()),
                "." | "" => {}
                part => parts.push(part),
            }
        }
        parts.join("/")
    };
    let chosen: Vec<&str> = all
        .iter()
        .filter(|(path, node)| match &node.kind {
            Kind::Symlink(to) if to != "/dev/null" => {
                let to = target(path, to);
                // A link to a template names an instance of it: what counts is the template.
                all.contains_key(to.as_str()) && works(&to)
            }
            _ => works(path),
        })
        .map(|(path, _)| *path)
        .collect();
    for path in chosen {
        take(root, tree, path)?;
    }
    Ok(())
}

/// The service that a socket, path or timer starts, as a path of the root.
fn started(path: &str, text: &str) -> Option<String> {
    let (stem, kind) = path.rsplit_once('.')?;
    if !["socket", "path", "timer"].contains(&kind) {
        return None;
    }
    let named = text.lines().find_map(|line| {
        line.strip_prefix("Service=")
            .or_else(|| line.strip_prefix("Unit="))
    });
    Some(match named {
        Some(unit) => format!("{UNITS}{unit}"),
        None if text.lines().any(|line| line == "Accept=yes") => format!("{stem}@.service"),
        None => format!("{stem}.service"),
    })
}

fn programs_are_there(tree: &Tree, unit: &str) -> bool {
    let commands = unit.lines().filter_map(|line| line.strip_prefix("ExecStart="));
    let mut programs = commands.filter_map(|command| {
        let command = command.trim_start_matches(['-', '@', ':', '+', '!', '|']);
        command.split_whitespace().next()
    });
    programs.all(|program| {
        let path = program.trim_start_matches('/');
        ["usr/bin/", "usr/sbin/", "usr/lib/systemd/", ""]
            .iter()
            .any(|dir| tree.get(&format!("{dir}{path}")).is_some())
    })
}

/// The modules called `names` and all that they depend on, by the `modules.dep` that depmod made for `release`; as paths
/// in the root, without those that the kernel has built in.
pub fn modules(root: &Tree, release: &str, names: &[ModuleName]) -> Result<Vec<String>, InitrdError> {
    let base = format!("usr/lib/modules/{release}/");
    let text = |file: &str| {
        let content = root.file(&format!("{base}{file}")).unwrap_or_default();
        String::from_utf8_lossy(content).into_owned()
    };
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_")
    };
    let builtin: BTreeSet<String> = text("modules.builtin").lines().map(name).collect();
    let dep = text("modules.dep");
    let known: BTreeMap<String, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            Some((name(path), (path, needs.split_whitespace().collect())))
        })
        .collect();
    let (soft, aliases) = (text("modules.softdep"), text("modules.alias"));
    let softdeps = |wanted: &str| -> Vec<String> {
        let lines = soft.lines().filter_map(|line| line.strip_prefix("softdep "));
        lines
            .filter_map(|line| line.split_once(' '))
            .filter(|(module, _)| module.replace('-', "_") == wanted)
            .flat_map(|(_, rest)| rest.split_whitespace().filter(|word| !word.ends_with(':')))
            .map(|word| word.replace('-', "_"))
            .collect()
    };
    let mut queue: Vec<(String, String)> = names
        .iter()
        .map(|name| (name.to_string(), "the configuration".to_owned()))
        .collect();
    let mut paths = BTreeSet::new();
    while let Some((module, wanted_by)) = queue.pop() {
        if builtin.contains(&module) {
            continue;
        }
        let Some((path, needs)) = known.get(&module) else {
            return Err(InitrdError::Module {
                name: module,
                wanted_by,
            });
        };
        if !paths.insert(format!("{base}{path}")) {
            continue;
        }
        queue.extend(needs.iter().map(|path| (name(path), module.clone())));
        for word in softdeps(&module) {
            // Algorithms are named by alias, such as `crc32c`, and any module of that alias will do: all come along.
            let aliased = aliases
                .lines()
                .filter_map(|line| line.strip_prefix("alias ")?.split_once(' '));
            let aliased = aliased
                .filter(|(alias, _)| *alias == word)
                .map(|(_, module)| module.to_owned());
            let found = aliased
                .chain([word.clone()])
                .filter(|name| known.contains_key(name));
            queue.extend(found.map(|name| (name, module.clone())));
        }
    }
    for file in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        paths.insert(format!("{base}{file}"));
    }
    Ok(paths.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_comes_along_only_with_its_program() {
        let mut root = Tree::default();
        for (path, content) in [
            ("usr/lib/systemd/system/a.service", "ExecStart=-/usr/bin/a --x\n"),
            ("usr/lib/systemd/system/b.service", "ExecStart=/usr/bin/b\n"),
            ("usr/lib/systemd/system/a.socket", "[Socket]\n"),
            ("usr/lib/systemd/system/b.path", "[Path]\n"),
            ("usr/lib/systemd/system/c.target", "[Unit]\n"),
        ] {
            root.add_file(path, 0o644, content).unwrap();
        }
        for unit in ["a", "b"] {
            let link = format!("usr/lib/systemd/system/c.target.wants/{unit}.service");
            root.symlink(&link, &format!("../{unit}.service")).unwrap();
        }
        let mut tree = Tree::default();
        tree.add_file("usr/bin/a", 0o755, "").unwrap();
        units(&root, &mut tree).unwrap();
        let paths: Vec<_> = tree
            .iter()
            .map(|(path, _)| path)
            .filter(|p| p.contains("."))
            .collect();
        assert_eq!(
            paths,
            [
                "usr/lib/systemd/system/a.service",
                "usr/lib/systemd/system/a.socket",
                "usr/lib/systemd/system/c.target",
                "usr/lib/systemd/system/c.target.wants",
                "usr/lib/systemd/system/c.target.wants/a.service",
            ]
        );
    }

    #[test]
    fn modules_bring_what_they_depend_on_hard_and_soft() {
        let mut root = Tree::default();
        for (file, content) in [
            (
                "modules.dep",
                "kernel/a-b.ko.xz: kernel/c.ko.xz\nkernel/c.ko.xz:\nkernel/d.ko.xz:\nkernel/xyz_generic.ko.xz:\n",
            ),
            ("modules.builtin", "kernel/e.ko\n"),
            ("modules.alias", "alias xyz xyz_generic\nalias xyzz c\n"),
            ("modules.softdep", "softdep a-b pre: d xyz\n"),
        ] {
            root.add_file(&format!("usr/lib/modules/6/{file}"), 0o644, content)
                .unwrap();
        }
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        let paths = modules(&root, "6", &names(&["a_b", "e"])).unwrap();
        let modules: Vec<_> = paths
            .iter()
            .filter(|p| p.ends_with(".xz"))
            .map(|p| &p["usr/lib/modules/6/".len()..])
            .collect();
        assert_eq!(
            modules,
            [
                "kernel/a-b.ko.xz",
                "kernel/c.ko.xz",
                "kernel/d.ko.xz",
                "kernel/xyz_generic.ko.xz"
            ]
        );
        let error = super::modules(&root, "6", &names(&["floppy"])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("\"floppy\" (needed by the configuration)"),
            "{error}"
        );
    }

    #[test]
    fn libraries_are_read_out_of_dlopen_notes() {
        let notes = "\u{4}\0[{\"feature\":\"tpm\",\"priority\":\"suggested\",\"soname\":[\"libtss2-esys.so.0\"]}]\0\u{4}\0[{\"soname\":[\"libzstd.so.1\"]}]\0";
        assert_eq!(sonames(notes), ["libtss2-esys.so.0", "libzstd.so.1"]);
    }
}
