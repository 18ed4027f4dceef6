//! The file system of the image as a value: paths to nodes, sorted, without times.
//!
//! It is filled from Debian's tar, changed in memory, and written as a cpio archive: nothing is unpacked onto this
//! machine's disk, so ownership and device nodes need no root, and a hostile archive has no file to overwrite.

use std::collections::BTreeMap;
use std::io::Read;

/// The most that one image may hold unpacked: an initrd of this size boots on no sensible VM.
const BYTES_MAX: u64 = 2 << 30;

/// Why an archive or a path was refused.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The archive can't be read as tar.
    #[error("not a readable tar archive")]
    Archive(#[source] std::io::Error),
    /// A member's name is absolute, climbs with `..`, or isn't text.
    #[error("the archive holds {0:?}, which is not a clean relative path; the archive is broken or hostile")]
    Path(String),
    /// A hard link to something that came neither before it nor is a file.
    #[error("the archive links {path:?} to {target:?}, which is not a file in it")]
    Link {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// A member lies under something that isn't a directory (the trick with a symbolic link to `/etc`).
    #[error("the archive puts {0:?} under something that is not a directory")]
    Parent(String),
    /// Too much.
    #[error("the archive holds more than {BYTES_MAX} bytes")]
    TooLarge,
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file with its content.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Symlink(String),
    /// A character device: major, minor.
    Char(u32, u32),
}

/// One path's permissions, owner and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Permission bits, with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: Kind,
}

/// A file system: every path is relative and clean, and every path's parent is a directory in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    /// File capabilities by path.
    capabilities: BTreeMap<String, Vec<u8>>,
}

/// How a tar says a file's capabilities (capabilities(7)), in a pax record.
pub const CAPABILITY: &str = "SCHILY.xattr.security.capability";

impl Tree {
    /// Everything, parents before their children.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The node at `path`; symbolic links aren't followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The content of the file at `path`.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        match self.nodes.get(path) {
            Some(Node {
                kind: Kind::File(content),
                ..
            }) => Some(content),
            _ => None,
        }
    }

    /// The capabilities of the file at `path` as the kernel keeps them, the extended attribute `security.capability`.
    pub fn capability(&self, path: &str) -> Option<&[u8]> {
        self.capabilities.get(path).map(Vec::as_slice)
    }

    /// Puts a node in, making missing parents; what was there is replaced, but a directory stays one with its
    /// children.
    pub fn insert(&mut self, path: &str, node: Node) -> Result<(), TreeError> {
        if clean(path).as_deref() != Some(path) {
            return Err(TreeError::Path(path.to_owned()));
        }
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.nodes.get(parent) {
                Some(Node { kind: Kind::Dir, .. }) => {}
                Some(_) => return Err(TreeError::Parent(path.to_owned())),
                None => {
                    self.nodes.insert(
                        parent.to_owned(),
                        Node {
                            mode: 0o755,
                            uid: 0,
                            gid: 0,
                            kind: Kind::Dir,
                        },
                    );
                }
            }
        }
        let holds_children = self.children(path).next().is_some();
        if holds_children && node.kind != Kind::Dir {
            return Err(TreeError::Parent(format!("{path}/…")));
        }
        self.nodes.insert(path.to_owned(), node);
        self.capabilities.remove(path);
        Ok(())
    }

    /// A directory of root.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<(), TreeError> {
        self.insert(
            path,
            Node {
                mode,
                uid: 0,
                gid: 0,
                kind: Kind::Dir,
            },
        )
    }

    /// A file of root.
    pub fn add_file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Result<(), TreeError> {
        self.insert(
            path,
            Node {
                mode,
                uid: 0,
                gid: 0,
                kind: Kind::File(content.into()),
            },
        )
    }

    /// A symbolic link of root.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), TreeError> {
        self.insert(
            path,
            Node {
                mode: 0o777,
                uid: 0,
                gid: 0,
                kind: Kind::Symlink(target.to_owned()),
            },
        )
    }

    /// Takes `path` out, with everything under it. Returns whether there was anything.
    pub fn remove(&mut self, path: &str) -> bool {
        let below: Vec<String> = self.children(path).map(str::to_owned).collect();
        let found = self.nodes.remove(path).is_some();
        self.capabilities.remove(path);
        for path in &below {
            self.nodes.remove(path);
            self.capabilities.remove(path);
        }
        found || !below.is_empty()
    }

    fn children<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let prefix = format!("{path}/");
        let bound = prefix.clone();
        self.nodes
            .range(bound..)
            .map(|(p, _)| p.as_str())
            .take_while(move |p| p.starts_with(&prefix))
    }

    /// Adds the members of a tar archive for whose path `wanted` says yes. Times are dropped; devices, sockets and
    /// pipes are left out, because the running kernel makes its own.
    pub fn add_tar(&mut self, archive: impl Read, wanted: impl Fn(&str) -> bool) -> Result<(), TreeError> {
        let mut archive = tar::Archive::new(archive);
        let mut budget = BYTES_MAX;
        for entry in archive.entries().map_err(TreeError::Archive)? {
            let mut entry = entry.map_err(TreeError::Archive)?;
            let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = clean(&raw).ok_or_else(|| TreeError::Path(raw.clone()))?;
            if path.is_empty() || !wanted(&path) {
                continue;
            }
            let records = entry.pax_extensions().map_err(TreeError::Archive)?;
            let capability = records
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .find(|record| record.key() == Ok(CAPABILITY))
                .map(|record| record.value_bytes().to_vec());
            let header = entry.header();
            let mode = header.mode().map_err(TreeError::Archive)? & 0o7777;
            let uid = header.uid().map_err(TreeError::Archive)? as u32;
            let gid = header.gid().map_err(TreeError::Archive)? as u32;
            let kind = match header.entry_type() {
                tar::EntryType::Directory => Kind::Dir,
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    budget = budget.checked_sub(entry.size()).ok_or(TreeError::TooLarge)?;
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).map_err(TreeError::Archive)?;
                    Kind::File(content)
                }
                tar::EntryType::Symlink => Kind::Symlink(link_name(&entry)),
                tar::EntryType::Link => {
                    let name = link_name(&entry);
                    let target = clean(&name).ok_or_else(|| TreeError::Path(name.clone()))?;
                    match self.nodes.get(&target) {
                        Some(Node {
                            kind: kind @ Kind::File(content),
                            ..
                        }) => {
                            budget = budget
                                .checked_sub(content.len() as u64)
                                .ok_or(TreeError::TooLarge)?;
                            kind.clone()
                        }
                        _ => return Err(TreeError::Link { path, target: name }),
                    }
                }
                _ => continue,
            };
            self.insert(&path, Node { mode, uid, gid, kind })?;
            if let Some(capability) = capability {
                self.capabilities.insert(path, capability);
            }
        }
        Ok(())
    }
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> String {
    entry
        .link_name_bytes()
        .map(|name| String::from_utf8_lossy(&name).into_owned())
        .unwrap_or_default()
}

/// `./usr/bin/` → `usr/bin`; `None` for absolute paths and those with `..`.
fn clean(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains(['\0', '\u{fffd}']) {
        return None;
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in members {
            let mut header = tar::Header::new_gnu();
            // Written by hand: the crate's own setters refuse hostile names.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(42);
            let data = if *kind == tar::EntryType::Regular {
                content.as_bytes()
            } else {
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
                b""
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn hostile_archives_are_refused() {
        use tar::EntryType::{Link, Regular, Symlink};
        type Row<'a> = (&'a str, Vec<(&'a str, tar::EntryType, &'a str)>, &'a str);
        let table: [Row<'_>; 6] = [
            (
                "absolute",
                vec![("/etc/passwd", Regular, "x")],
                "clean relative path",
            ),
            (
                "climbing",
                vec![("usr/../../etc/passwd", Regular, "x")],
                "clean relative path",
            ),
            ("only dots", vec![("..", Regular, "x")], "clean relative path"),
            (
                "through a link",
                vec![("a", Symlink, "/etc"), ("a/passwd", Regular, "x")],
                "not a directory",
            ),
            (
                "hard link out",
                vec![("a", Link, "../../etc/shadow")],
                "clean relative path",
            ),
            ("hard link to nothing", vec![("a", Link, "b")], "not a file in it"),
        ];
        for (row, members, wanted) in table {
            let error = Tree::default()
                .add_tar(&archive(&members)[..], |_| true)
                .expect_err(row);
            assert!(error.to_string().contains(wanted), "{row}: {error}");
        }
    }

    #[test]
    fn an_archive_becomes_nodes_without_times_and_devices() {
        use tar::EntryType::{Char, Link, Regular, Symlink};
        let tar = archive(&[
            ("./usr/bin/a", Regular, "text"),
            ("./usr/bin/b", Link, "./usr/bin/a"),
            ("./usr/bin/c", Symlink, "../lib/c"),
            ("./dev/null", Char, ""),
            ("./usr/share/doc/a", Regular, "long"),
        ]);
        let mut tree = Tree::default();
        tree.add_tar(&tar[..], |path| !path.starts_with("usr/share/doc"))
            .unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["usr", "usr/bin", "usr/bin/a", "usr/bin/b", "usr/bin/c"]);
        assert_eq!(tree.file("usr/bin/b"), Some(&b"text"[..]));
        assert_eq!(tree.get("usr/bin/a").unwrap().gid, 42);
        assert_eq!(
            tree.get("usr/bin/c").unwrap().kind,
            Kind::Symlink("../lib/c".to_owned())
        );
    }

    #[test]
    fn removing_a_directory_takes_its_content_but_not_its_namesakes() {
        let mut tree = Tree::default();
        for path in ["a/b/c", "a/b-c", "a/bc"] {
            tree.add_file(path, 0o644, "").unwrap();
        }
        assert!(tree.remove("a/b"));
        assert!(!tree.remove("a/b"));
        assert_eq!(
            tree.iter().map(|(path, _)| path).collect::<Vec<_>>(),
            ["a", "a/b-c", "a/bc"]
        );
    }
}
