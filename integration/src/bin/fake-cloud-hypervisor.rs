//! A program that behaves like `cloud-hypervisor` towards hostd and runs no guest. See [`integration::fake_ch`].

use std::process::ExitCode;

fn main() -> ExitCode {
    integration::fake_ch::main(std::env::args().skip(1))
}
