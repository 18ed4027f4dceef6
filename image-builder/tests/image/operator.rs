//! An operator's hands inside: a script that the machine runs once it is up. The firmware brings it, so that the image stays
//! as it is shipped; only a longer command line, which PCR 12 shows, lets systemd take it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// QEMU's arguments for one of systemd's credentials.
pub(crate) fn credential(name: &str, text: &str) -> [String; 2] {
    let text = STANDARD.encode(text);
    [
        "-smbios".to_owned(),
        format!("type=11,value=io.systemd.credential.binary:{name}={text}"),
    ]
}

/// QEMU's arguments for a machine on which `sh` runs the script.
pub(crate) fn operator(script: &str) -> Vec<String> {
    let imports = "io.systemd.stub.kernel-cmdline-extra=systemd.import_credentials=yes";
    let script = format!("f+~ /run/operator 0700 root root - {}\n", STANDARD.encode(script));
    let unit = "[Unit]\nAfter=multi-user.target\n[Service]\nType=exec\nExecStart=/bin/sh /run/operator\n";
    let wanted = "[Unit]\nWants=operator.service\n";
    [
        ["-smbios".to_owned(), format!("type=11,value={imports}")],
        credential("tmpfiles.extra", &script),
        credential("systemd.extra-unit.operator.service", unit),
        credential("systemd.unit-dropin.multi-user.target", wanted),
    ]
    .concat()
}
